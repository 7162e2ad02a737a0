"""Say what kind of source an address names, and print it without its secrets."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "AddressKind", "address_kind", "redact"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

_NETWORK = re.compile(r"^(rtsps?|rtmps?|https?|udp|tcp|srt|rtp|ftp)://", re.IGNORECASE)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_VALUE = re.compile(r"=[^/]*")
_HIDDEN = "***"


class AddressKind(StrEnum):
    """What an address names; it decides which source opens it."""

    IMAGE = "image"
    FOLDER = "folder"
    VIDEO = "video"
    WEBCAM = "webcam"
    NETWORK = "network"


def address_kind(address: str | Path) -> AddressKind:
    """Tell the kind of source from the address alone.

    A file or folder that exists wins over a number, so that a folder called ``0`` can be read.
    What does not exist is taken for a video: opening it then says that it is missing.
    """
    text = str(address)
    if _NETWORK.match(text):
        return AddressKind.NETWORK
    path = Path(text)
    if os.path.isdir(path):  # unlike Path's, it takes a name that is too long
        return AddressKind.FOLDER
    if text.isascii() and text.isdigit() and not os.path.exists(path):
        return AddressKind.WEBCAM
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return AddressKind.IMAGE
    return AddressKind.VIDEO


def redact(address: str | Path) -> str:
    """Print an address without what could let a reader in.

    In a network address, everything between the scheme and the last ``@`` becomes ``***``, and so
    do the query, the fragment, and what follows a ``=`` in the path: cameras put passwords in all
    of them. A password may itself hold ``/``, ``?`` or ``@``, so the last ``@`` counts, even where
    that hides a harmless part. Paths of files are given back as they are.
    """
    text = str(address)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return text
    rest = text[scheme.end() :]
    if "@" in rest:
        rest = _HIDDEN + rest[rest.rindex("@") :]
    path = re.split("[?#]", rest, maxsplit=1)[0]
    ending = rest[len(path) : len(path) + 1]
    return scheme.group() + _VALUE.sub("=" + _HIDDEN, path) + (ending and ending + _HIDDEN)
