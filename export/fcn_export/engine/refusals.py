"""Translate what TensorRT says when it refuses a graph into one line that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fcn_deploy.backends.tensorrt.api import TensorRT
from fcn_deploy.backends.tensorrt.messages import Message, Severity
from fcn_deploy.backends.tensorrt.surface import OnnxParser, ParserError
from fcn_deploy.errors import BuildError, UnsupportedOpError

__all__ = ["build_failure", "parse_failure", "plain_reason"]

_TAIL = 5  # messages that an error repeats: the last ones say what failed

# `Assertion failed: <condition in C++> && "reason"`, or `<condition>: reason`, or the reason alone
_QUOTED = re.compile(r'&& "([^"]+)"')
_CONDITION = re.compile(r"^Assertion failed: .*?(?<!:): (?!:)")
_SOURCE = re.compile(r"\.? In \w+ at /_src/[^)\s]*")
# of a machine without a GPU, and never the reason
_NOISE = re.compile(r"cudaError 35\b")

_OUT_OF_MEMORY = re.compile(r"Requested size was (\d+) bytes")


def parse_failure(library: TensorRT, name: str, parser: OnnxParser) -> BuildError:
    """Make the error for a graph that the parser refused: node, operator and reason of each.

    Args:
        name: of the graph's file.
    """
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    listed = "; ".join(_line(error) for error in errors) or "it gave no reason"
    unsupported = any(error.code().name.startswith("UNSUPPORTED") for error in errors)
    kind = UnsupportedOpError if unsupported else BuildError
    return kind(f"{library.title} could not parse '{name}': {listed.rstrip('.')}.")


def build_failure(library: TensorRT, name: str, messages: Sequence[Message]) -> BuildError:
    """Make the error for a build that gave no plan, from what the library said meanwhile.

    Args:
        name: of the graph's file.
    """
    errors = [m.text.strip() for m in messages if m.severity <= Severity.ERROR]
    said = " | ".join(errors[-_TAIL:]) or "it gave no reason"
    hint = None
    if wanted := [int(size) for size in _OUT_OF_MEMORY.findall(said)]:
        mebibytes = -(-max(wanted) // (1 << 20))
        hint = f"Allow more with --workspace-mb: {mebibytes} at least, or lower --max-size."
    elif "within workspace limit" in said:
        hint = "Allow more with --workspace-mb, or lower --max-size."
    elif "CUDA" in said:
        hint = "nvidia-smi says what the driver sees; --engine tensorrt-rtx needs no GPU."
    return BuildError(f"{library} could not build '{name}': {said}", hint=hint)


def plain_reason(description: str) -> str:
    """Take TensorRT's reason out of its C++ condition and source location."""
    lines = [line.strip() for line in description.splitlines() if not _NOISE.search(line)]
    text = _SOURCE.sub("", " ".join(lines).strip())
    if text == "false":  # all that it says of an operator that it has never heard of
        return "there is no such operator in TensorRT"
    if quoted := _QUOTED.search(text):
        return quoted[1]
    return _CONDITION.sub("", text, count=1)


def _line(error: ParserError) -> str:
    where = ""
    if error.node_operator():
        where = f"node {error.node()} '{error.node_name()}' ({error.node_operator()}): "
    return where + plain_reason(error.desc())
