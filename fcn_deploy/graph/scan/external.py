"""Weights beside the model: plain files in its own folder, and nothing else."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from fcn_deploy.errors import ArtifactError, ArtifactMissingError, UntrustedArtifactError
from fcn_deploy.graph.scan.onnx_graph import Node, StoredTensor
from fcn_deploy.graph.scan.tensor import shown

__all__ = ["check_external_data", "stored_tensors"]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_RULE = "expected the bare name of a plain file in the model's own folder"


def check_external_data(
    tensors: Iterable[tuple[str, StoredTensor]], *, folder: Path | None
) -> frozenset[str]:
    """Check where every tensor's bytes come from.

    Args:
        tensors: what to call each, and the tensor.
        folder: the model's own; None where no file may be read.

    Returns:
        The names of the files that hold weights.

    Raises:
        ArtifactMissingError: a file is not there.
        UntrustedArtifactError: a location is anything but a plain file directly in the folder,
            or bytes outside the file, or the same bytes more than once, are asked for.
    """
    sizes: dict[str, int] = {}
    used: dict[str, int] = {}
    for label, tensor in tensors:
        if tensor.external is None:
            continue
        location, offset = tensor.external.location, tensor.external.offset
        where = f"{label} has its bytes in {shown(location)}"
        if not _PLAIN_NAME.fullmatch(location):
            raise UntrustedArtifactError(f"{where}; {_RULE} ([A-Za-z0-9._-], at most 128 signs).")
        if folder is None:
            raise UntrustedArtifactError(
                f"{where}, but the model was given without a folder.", hint="Open it by its path."
            )
        if location not in sizes:
            sizes[location] = _plain_file_size(folder / location, where)
        if offset + tensor.nbytes > sizes[location]:
            raise UntrustedArtifactError(
                f"{where}, bytes {offset} to {offset + tensor.nbytes}; "
                f"the file has {sizes[location]}."
            )
        used[location] = used.get(location, 0) + tensor.nbytes
        if used[location] > sizes[location]:
            raise UntrustedArtifactError(
                f"{where}, which has {sizes[location]} bytes; "
                f"the tensors up to this one need {used[location]}."
            )
    return frozenset(sizes)


def stored_tensors(
    initializers: Iterable[StoredTensor], nodes: Iterable[Node]
) -> Iterable[tuple[str, StoredTensor]]:
    """Give every tensor that a model stores, with what to call it in messages."""
    for tensor in initializers:
        yield f"initializer {shown(tensor.name)}", tensor
    for node in nodes:
        for name, value in node.attributes.items():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, StoredTensor):
                    yield f"attribute {shown(name)} of node {node.label}", item


def _plain_file_size(path: Path, where: str) -> int:
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise ArtifactMissingError(
                f"{where}, which is missing in '{path.parent}'.",
                hint="Copy it there together with the model.",
            ) from error
        if error.errno == errno.ELOOP:
            raise UntrustedArtifactError(f"{where}, a symbolic link; {_RULE}.") from error
        raise ArtifactError(f"{where}, which cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        kind = "a hard link" if stat.S_ISREG(status.st_mode) else "not a plain file"
        raise UntrustedArtifactError(f"{where}, {kind}; {_RULE}.")
    return status.st_size
