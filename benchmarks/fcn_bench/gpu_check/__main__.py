"""python -m fcn_bench.gpu_check."""

import sys

from fcn_bench.gpu_check.cli import main

if __name__ == "__main__":
    sys.exit(main())
