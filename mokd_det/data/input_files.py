"""Files that a user names on a command line, one by one or by folders, to look at them with a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Literal

from mokd_det.errors import DatasetError

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "InputFile", "find_input_files"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class InputFile:
    """A file to be looked at, its kind by its suffix, and a name for what is made of it, without suffix, that no other
    input has."""

    path: Path
    kind: Kind
    output_name: str


def find_input_files(given: Iterable[str | Path], *, kinds: Sequence[Kind] = ("image",)) -> list[InputFile]:
    """The files that were named, and those of the folders that were named, each once.

    Of a folder these are the files directly in it whose suffix is one of :data:`IMAGE_SUFFIXES` (and, if wanted,
    :data:`VIDEO_SUFFIXES`), by name; its other files are left alone. Whether a file can be decoded shows when it is.

    Raises:
        DatasetError: a path that does not exist, a file of another kind, a folder without any of these, or nothing
            given.
    """
    found: dict[Path, tuple[Path, Kind]] = {}
    wanted = " or ".join(kinds)
    for path in map(Path, given):
        if path.is_dir():
            files = [(file, _kind(file)) for file in sorted(path.iterdir()) if file.is_file()]
            files = [(file, kind) for file, kind in files if kind in kinds]
            if not files:
                raise DatasetError(f"folder '{path}' has no {wanted} directly in it ({_suffixes(kinds)})")
        elif path.is_file():
            files = [(path, _kind(path))]
            if files[0][1] not in kinds:
                raise DatasetError(f"'{path}' is no {wanted}, going by its name ({_suffixes(kinds)})")
        else:
            raise DatasetError(f"there is no file or folder '{path}'")
        for file, kind in files:
            assert kind is not None
            found.setdefault(file.resolve(), (file, kind))
    if not found:
        raise DatasetError(f"nothing to look at: give an {wanted} or a folder")
    names = _output_names([file for file, _ in found.values()])
    return [InputFile(file, kind, name) for (file, kind), name in zip(found.values(), names, strict=True)]


def _kind(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _suffixes(kinds: Sequence[Kind]) -> str:
    known = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}
    return ", ".join(suffix for kind in kinds for suffix in known[kind])


def _output_names(files: Sequence[Path]) -> list[str]:
    """``a`` of ``a.png``; where several would be ``a``: ``a_png`` and ``a_jpg``; then ``a_png_2``, …"""
    stems = Counter(file.stem for file in files)
    names: list[str] = []
    taken = {file.stem for file in files if stems[file.stem] == 1}
    for file in files:
        name = file.stem
        if stems[name] > 1:
            base = f"{file.stem}_{file.suffix[1:]}"
            candidates = chain([base], (f"{base}_{number}" for number in count(2)))
            name = next(candidate for candidate in candidates if candidate not in taken)
            taken.add(name)
        names.append(name)
    return names
