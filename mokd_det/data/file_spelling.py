"""Which file an annotation means whose file name is spelled otherwise on disk."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote

from detectron2.utils.file_io import PathManager

__all__ = ["likely_file"]


def likely_file(image_root: str, file_name: str) -> str:
    """Half a sentence about the file below ``image_root`` that is probably meant by a file name of an annotation file,
    where there is no such file, with the likely cause; "" if none suggests itself."""
    slashes = file_name.replace("\\", "/")
    plain = unquote(slashes)
    parts = plain.split("/")
    readings: list[tuple[str, str, Callable[[str], str]]] = [
        ("folders are separated by backslashes", slashes, str),
        ("the name is URL-encoded", plain, str),
        ("its letters are composed otherwise in Unicode", plain, _composed),
        ("upper and lower case differ", plain, _folded),
        ("spaces around the name", plain, lambda text: _folded(text).strip()),
        ("its suffix is another one", plain, lambda text: os.path.splitext(_folded(text))[0]),
        *(("its folder is another one", "/".join(parts[start:]), _folded) for start in range(1, len(parts))),
    ]
    for cause, name, same in readings:
        found = _find(image_root, name.split("/"), same)
        if found:
            return f"there is {found!r} ({cause})"
    return ""


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(text).casefold()


def _find(root: str, parts: list[str], same: Callable[[str], str]) -> str:
    """The path below ``root`` whose components are the ``same`` as these; "" if there is none."""
    found: list[str] = []
    for part in parts:
        try:
            entries = PathManager.ls(os.path.join(root, *found))
        except OSError:
            return ""
        alike = [part] if part in entries else sorted(entry for entry in entries if same(entry) == same(part))
        if not alike:
            return ""
        found.append(alike[0])
    return "/".join(found)
