"""PEP 517 backend that repackages Detectron2's Python files as a distribution named ``detectron2``.

Building fetches one published wheel (``SOURCE_WHEEL``), verifies its SHA-256, and writes a new
``py3-none-any`` wheel with the files of ``detectron2/`` less the compiled module. Metadata comes from the
file ``METADATA`` beside this one and needs no download, so a resolver sees the requirements at no cost.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

HERE = Path(__file__).resolve().parent

SOURCE_REQUIREMENT = "sal-detectron2==0.7.2"
SOURCE_WHEEL = "sal_detectron2-0.7.2-cp310-none-any.whl"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

# The wheel's tag is cp310-none-any though all we keep of it is pure Python: ask for that tag on every Python.
_DOWNLOAD_OPTIONS = [
    "--no-deps",
    "--only-binary=:all:",
    "--python-version=3.10",
    "--implementation=cp",
    "--abi=none",
    "--platform=any",
]

# Options of an outer pip, exported as variables, that would change what this one download means.
_FOREIGN_PIP_OPTIONS = frozenset(
    f"PIP_{name}"
    for name in (
        "CONSTRAINT",
        "DRY_RUN",
        "NO_BINARY",
        "PREFIX",
        "REPORT",
        "REQUIREMENT",
        "REQUIRE_HASHES",
        "TARGET",
    )
)

_COMPILED_SUFFIXES = (".so", ".pyd", ".dylib")
_TIMESTAMP = (2024, 4, 17, 0, 0, 0)  # upstream's commit date: the same input gives the same bytes


class BuildError(RuntimeError):
    """The source wheel could not be had, or is not the expected one."""


def _metadata() -> tuple[str, str, str]:
    """Returns the METADATA text, the distribution name and its version."""
    text = (HERE / "METADATA").read_text(encoding="utf-8")
    headers = HeaderParser().parsestr(text)
    return text, headers["Name"], headers["Version"]


def _wheel_headers() -> str:
    return "Wheel-Version: 1.0\nGenerator: mokd_det\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def download_source_wheel(folder: Path) -> Path:
    """Fetches the source wheel into ``folder`` with pip, under pip's own configuration.

    Args:
        folder: existing folder to download into.

    Returns:
        Path of the wheel, not verified yet.

    Raises:
        BuildError: pip could not fetch it.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN_PIP_OPTIONS}
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *_DOWNLOAD_OPTIONS,
        "--dest",
        str(folder),
        SOURCE_REQUIREMENT,
    ]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wheel = folder / SOURCE_WHEEL
    if done.returncode != 0 or not wheel.is_file():
        raise BuildError(
            f"pip could not download {SOURCE_WHEEL} (exit status {done.returncode}). Without a network, "
            f"put that file into a folder and set PIP_FIND_LINKS to it. pip said:\n{done.stdout}"
        )
    return wheel


def verify_source_wheel(wheel: Path) -> None:
    """Raises BuildError unless the file's SHA-256 is the pinned one."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SOURCE_SHA256:
        raise BuildError(
            f"{wheel.name} has SHA-256 {found}, expected {SOURCE_SHA256}: not installing from it"
        )


def repackage(source_wheel: Path, wheel_directory: Path) -> Path:
    """Writes the pure-Python wheel from the (verified) source wheel.

    Args:
        source_wheel: wheel that holds ``detectron2/`` and a LICENSE in its ``.dist-info``.
        wheel_directory: existing folder that receives the new wheel.

    Returns:
        Path of ``detectron2-<version>-py3-none-any.whl``.
    """
    metadata, name, version = _metadata()
    info = f"{name}-{version}.dist-info"
    target = wheel_directory / f"{name}-{version}-py3-none-any.whl"
    record: list[str] = []
    with zipfile.ZipFile(source_wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:

        def add(path: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(path, _TIMESTAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            out.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(content)}")

        for path in source.namelist():
            if path.startswith("detectron2/") and not path.endswith(("/", *_COMPILED_SUFFIXES)):
                add(path, source.read(path))
        (licence,) = (path for path in source.namelist() if path.endswith(".dist-info/LICENSE"))
        add(f"{info}/LICENSE", source.read(licence))
        add(f"{info}/NOTICE", (HERE / "NOTICE").read_bytes())
        add(f"{info}/METADATA", metadata.encode())
        add(f"{info}/WHEEL", _wheel_headers().encode())
        add(f"{info}/top_level.txt", b"detectron2\n")
        record.append(f"{info}/RECORD,,")
        out.writestr(zipfile.ZipInfo(f"{info}/RECORD", _TIMESTAMP), "\n".join(record) + "\n")
    return target


# The hooks of PEP 517. Their names and arguments are fixed by it.


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: dict | None = None) -> str:
    """Writes the ``.dist-info`` folder, without any download; returns its name."""
    metadata, name, version = _metadata()
    info = f"{name}-{version}.dist-info"
    folder = Path(metadata_directory, info)
    folder.mkdir()
    (folder / "METADATA").write_text(metadata, encoding="utf-8")
    (folder / "WHEEL").write_text(_wheel_headers(), encoding="utf-8")
    return info


def build_wheel(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    """Builds the wheel into ``wheel_directory``; returns its file name. Raises BuildError."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_source_wheel(Path(folder))
        verify_source_wheel(wheel)
        return repackage(wheel, Path(wheel_directory)).name


def build_sdist(sdist_directory: str, config_settings: dict | None = None) -> str:
    """Packs this folder (the recipe, not Detectron2) as a source distribution; returns its file name."""
    _, name, version = _metadata()
    base = f"{name}-{version}"
    target = Path(sdist_directory, f"{base}.tar.gz")
    with tarfile.open(target, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in ("pyproject.toml", "build_backend.py", "METADATA", "NOTICE", "README.md"):
            archive.add(HERE / path, f"{base}/{path}")
        archive.add(HERE / "METADATA", f"{base}/PKG-INFO")
    return target.name
