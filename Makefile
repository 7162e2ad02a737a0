# Every target shares one environment, .venv, made on first use and kept in step with
# pyproject.toml and constraints.txt. `make help` lists the targets.

PYTHON ?= python3
PIP_VERSION := 26.3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo larger readme peers paper full-networks plans test test-fast test-avx2 gpu-check pycuda mutate lint format typecheck wheel constraints clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY)  ## make or update .venv with everything that the project uses

# The stamp is written last, so an interrupted installation is taken up again by the next make.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one, as in: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Bringing $(VENV) in step with $^ (at first: 5.5 GB with PyTorch, a few minutes)."
	@test -x $(BIN)/python -a -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq pip==$(PIP_VERSION)
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --build-constraint constraints.txt \
	  --editable '.[all]' --group dev
	@touch $@

demo: $(READY)  ## export, measure and run a trained network on real data, under build/demo
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

larger: $(READY)  ## train FCN-ResNet50 on the demo's data and export it, most of an hour
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/larger.sh

readme: $(READY)  ## put what the last make demo measured into README.md
	$(BIN)/python scripts/write_readme.py

peers: $(READY)  ## measure against other runtimes, half an hour, into benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.research.peers

paper: $(READY)  ## time the FCN paper's networks, full-size, at 500x500, into benchmarks/PAPER.md
	$(BIN)/python -m benchmarks.research.paper

full-networks: $(READY)  ## export and verify the FCN paper's networks, full-size, under build/paper
	$(BIN)/python -m benchmarks.research.paper --prepare

# whole files, so that what a module's fixtures make is made once
test: $(READY)  ## run all tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-fast: $(READY)  ## run the tests that are not marked slow, the last failures first
	$(BIN)/python -m pytest -m "not slow" --failed-first --exitfirst $(PYTEST_ARGS)

test-avx2: $(READY)  ## run the tests that the CPU decides about once more, as on a CPU with AVX2 alone
	$(BIN)/python scripts/run_tests_avx2.py $(PYTEST_ARGS)

gpu-check: $(READY)  ## on a machine with an NVIDIA GPU: build, compare and time plans, write a report
	$(BIN)/python -m fcn_bench.gpu_check $(GPU_CHECK_ARGS)

plans: $(READY)  ## build plans of the FCN family, without a GPU, in every precision
	$(BIN)/python -m benchmarks.research.build_plans --network family

pycuda: $(READY)  ## build PyCUDA for the tests into the user's cache, where CUDA's headers are
	$(BIN)/python scripts/build_pycuda.py

mutate: $(READY)  ## remove each wait, copy and lock of the TensorRT runtime in turn; tests must fail
	$(BIN)/python scripts/mutate_tensorrt.py

lint: $(READY)  ## check style, formatting, public docstrings and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYTHONPATH=.:export:benchmarks $(BIN)/lint-imports
	$(BIN)/python scripts/check_docstrings.py

format: $(READY)  ## rewrite the files as lint wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: $(READY)  ## run mypy --strict over the packages and the tests
	$(BIN)/mypy

wheel: $(READY)  ## build the wheel and try it in a clean environment without PyTorch
	$(BIN)/python scripts/smoke_wheel.py

constraints: $(READY)  ## pin the newest versions that fit pyproject.toml in constraints.txt
	$(BIN)/python scripts/write_constraints.py

clean:  ## remove what was built, keep .venv
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf $(VENV)
