"""Run a command: exit status, one-line errors, signals, logging."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from fcn_deploy.artifact.name_text import printable
from fcn_deploy.artifact.partial_files import write_whole
from fcn_deploy.errors import BudgetError, FcnDeployError, ParityError

__all__ = [
    "EXIT_CHECK_FAILED",
    "EXIT_ERROR",
    "EXIT_OK",
    "Parser",
    "add_common_options",
    "add_meaning_options",
    "parse_size",
    "run_command",
    "write_json",
]

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_ERROR = 2


class _Group(Protocol):
    def add_argument(self, *names: str, **options: Any) -> Any: ...


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that clean-up code runs."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"{self.prog}: {message}. See {self.prog} --help.\n")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all commands share: -v, -q and --debug."""
    group = parser.add_argument_group("messages")
    group.add_argument("-v", "--verbose", action="count", default=0, help="say more (twice: all)")
    group.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    group.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    # imported here: fcn_deploy/__init__ is loaded anyway, but only now is it needed
    from fcn_deploy import __version__

    parser.add_argument("--version", action="version", version=f"fcn-deploy {__version__}")


# written out here so that --help does not load NumPy; a test compares them with the library's
ACTIVATIONS = ("auto", "logits", "sigmoid", "softmax", "ids")


def add_meaning_options(group: _Group, *, of: str) -> None:
    """Add what all commands take on what outputs mean: --activation and --threshold.

    Args:
        of: whose outputs, for the help.
    """
    group.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="auto",
        help=f"what {of} outputs are; auto: found in the graph and checked by values [auto]",
    )
    group.add_argument(
        "--threshold",
        type=_probability,
        metavar="X",
        help="probability above which a single class is there [0.5]",
    )


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability between 0 and 1")
    return value


def parse_size(text: str) -> tuple[int, int]:
    """Read ``HxW``, as in ``720x1280``, as (height, width) in px.

    Raises:
        argparse.ArgumentTypeError: the text is of another form, or a size is below 1.
    """
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 720x1280")
    return int(height), int(width)


def run_command(
    run: Callable[[argparse.Namespace], int], parser: Parser, argv: Sequence[str] | None
) -> int:
    """Parse the arguments, run one command and turn what happens into its exit status.

    Args:
        run: takes the parsed arguments, returns the exit status.
        argv: arguments without the program's name; None takes them from the command line.

    Returns:
        0 done; 1 a check failed; 2 a reported error; 130 and 143 after SIGINT and SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names may hold any bytes
    args = parser.parse_args(argv)
    _set_up_logging(args)
    try:
        with _sigterm_raises():
            status = run(args)
            sys.stdout.flush()
            return status
    except (ParityError, BudgetError) as error:
        return _report(parser.prog, error, args, EXIT_CHECK_FAILED)
    except FcnDeployError as error:
        return _report(parser.prog, error, args, EXIT_ERROR)
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        return 128 + signal.SIGINT
    except Terminated:
        sys.stderr.write(f"{parser.prog}: terminated\n")
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        # the reader of stdout (`| head`) has gone: nothing left to say, and no message at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def write_json(target: str, document: dict[str, Any]) -> None:
    """Write a JSON document to a file, whole or not at all, or to stdout where target is ``-``.

    Raises:
        FcnDeployError: the file cannot be written.
    """
    document = _valid_unicode(document)
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    write_text(Path(target), text)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        FcnDeployError: the folder is missing or cannot be written.
    """
    try:
        write_whole(path, printable(text).encode())
    except OSError as error:
        raise FcnDeployError(
            f"cannot write '{path}': {error.strerror}.", hint="Name a file in a writable folder."
        ) from error


def _valid_unicode(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_valid_unicode(key): _valid_unicode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid_unicode(item) for item in value]
    return value


def _report(program: str, error: FcnDeployError, args: argparse.Namespace, status: int) -> int:
    if args.debug:
        logging.getLogger("fcn_deploy").error("%s", error, exc_info=error)
    line = " ".join(str(error).split())
    sys.stderr.write(f"{program}: {line}\n")
    return status


def _set_up_logging(args: argparse.Namespace) -> None:
    level = logging.WARNING - 10 * args.verbose
    if args.quiet:
        level = logging.ERROR
    if args.debug:
        level = logging.DEBUG
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    for name in ("fcn_deploy", "fcn_export", "fcn_bench"):
        logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def raise_terminated(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:  # not the main thread: the program that called us owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
