"""List the contenders, one for each row of the table, and how a process opens them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_bench.network import Network
from fcn_bench.opening import open_network
from fcn_deploy import machine
from fcn_deploy.preprocess import IMAGENET_MEAN, IMAGENET_STD
from research.peers.peer_libraries import LIBRARIES
from research.peers.subject import Subject

__all__ = ["Contender", "contenders", "our_row", "torch_rows"]

OURS = "fcn-deploy"


@dataclass(frozen=True, slots=True)
class Contender:
    """One row: a library, how it is used, and in which arithmetic.

    Attributes:
        description: what `open` needs, as plain values that cross to another process.
    """

    library: str
    mode: str
    precision: str
    description: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.library}, {self.mode}" if self.mode else self.library

    @property
    def is_ours(self) -> bool:
        return self.library == OURS

    def open(self) -> Network:
        """Load it, in the process that will run it."""
        if self.description["kind"] == "library":
            return LIBRARIES[self.library](
                Path(self.description["graph"]),
                precision=self.precision,
                threads=self.description["threads"],
            )
        return open_network(self.description, streams=1)


def torch_rows(subject: Subject, *, threads: int) -> list[Contender]:
    """List PyTorch's ways on this machine, eager first; bf16 only where the CPU has it."""
    ways = [("eager", "fp32"), ("channels_last", "fp32")]
    if machine.cpu_abilities().bf16:
        ways.append(("bf16-autocast", "bf16"))
    return [_torch_row(subject, mode, precision, threads=threads) for mode, precision in ways]


def our_row(subject: Subject, backend: str, precision: str, *, threads: int) -> Contender:
    """Describe the row of the subject's artifact on a backend."""
    described = {
        "kind": "segmenter",
        "path": str(subject.artifact),
        "backend": backend,
        "precision": precision,
        "threads": threads,
        "mean": None,
        "std": None,
        "color": None,
    }
    return Contender(OURS, f"on {backend}", precision, described)


def contenders(
    subject: Subject, graph: Path, *, threads: int, brief: bool = False
) -> list[Contender]:
    """List who takes part on this machine; the first is the reference, eager fp32 PyTorch.

    Args:
        graph: the user's graph, bound to the size of the frames.
        brief: only the one way of each library that its users begin with.
    """
    precisions = ["fp32", "bf16"] if machine.cpu_abilities().bf16 else ["fp32"]

    def library_row(library: str, precision: str) -> Contender:
        described = {"kind": "library", "graph": str(graph), "threads": threads}
        return Contender(library, "full graph", precision, described)

    ladder = torch_rows(subject, threads=threads)
    others = [
        library_row("ONNX Runtime", "fp32"),
        *(library_row("OpenVINO", precision) for precision in precisions),
        library_row("OpenCV dnn", "fp32"),
    ]
    ours = [our_row(subject, "openvino", precision, threads=threads) for precision in precisions]
    if brief:
        return [ladder[0], *others[:-1], *ours]
    portable = our_row(subject, "onnxruntime", "fp32", threads=threads)
    return [*ladder, *others, portable, *ours]


def _torch_row(subject: Subject, mode: str, precision: str, *, threads: int) -> Contender:
    described = {
        "kind": "torch",
        "path": str(subject.checkpoint),
        "arch": subject.arch,
        "arch_args": {},
        "output_key": None,
        "trust_code": False,
        "mode": mode,
        "threads": threads,
        "multiple_of": 1,
        "preprocess": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "color": "rgb"},
    }
    return Contender("PyTorch", mode, precision, described)
