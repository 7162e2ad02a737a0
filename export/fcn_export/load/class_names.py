"""Names and colours of the classes: from a file, or class ids and the PASCAL VOC palette."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.draw import voc_palette
from fcn_deploy.errors import ManifestError

__all__ = ["default_classes", "read_classes"]

_MAX_BYTES = 1 << 20


def default_classes(count: int) -> tuple[ClassInfo, ...]:
    """Name `count` classes by their ids; a network with one class gives labels 0 and 1."""
    count = max(count, 2)
    return tuple(ClassInfo(str(index), color) for index, color in enumerate(voc_palette(count)))


def read_classes(path: Path) -> tuple[ClassInfo, ...]:
    """Read a JSON list of ``{"name": "road", "color": [128, 64, 128]}``, or one name a line.

    An entry without a colour gets that of the PASCAL VOC palette.

    Raises:
        ManifestError: the file is missing, empty or of another form.
    """
    try:
        content = path.read_bytes()[: _MAX_BYTES + 1]
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ManifestError(f"cannot read the classes in '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"'{path}' is not text in UTF-8.") from error
    if len(content) > _MAX_BYTES:
        raise ManifestError(f"'{path}' has more than {_MAX_BYTES} bytes; expected class names.")
    if text.lstrip().startswith("["):
        entries = _parse_json(text, path)
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not entries:
        raise ManifestError(f"'{path}' names no classes.")
    palette = voc_palette(len(entries))
    return tuple(
        _class_of(entry, palette[index], f"{path}, entry {index}")
        for index, entry in enumerate(entries)
    )


def _parse_json(text: str, path: Path) -> list[Any]:
    try:
        entries: list[Any] = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"'{path}' is not JSON: {error}.") from error
    return entries


def _class_of(entry: Any, color: tuple[int, int, int], where: str) -> ClassInfo:
    if isinstance(entry, str):
        return ClassInfo(entry, color)
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        given = entry.get("color", color)
        if isinstance(given, list | tuple) and len(given) == 3:
            red, green, blue = given
            if all(type(value) is int for value in given):
                return ClassInfo(entry["name"], (red, green, blue))
    raise ManifestError(
        f"{where}: {str(entry)[:80]} is no class.",
        hint='Write {"name": "road", "color": [128, 64, 128]}, colours as red, green, blue.',
    )
