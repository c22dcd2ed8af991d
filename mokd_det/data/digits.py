"""Detection scenes composed of scikit-learn's real handwritten digits: small data that a detector can learn.

``digits`` (64 px): bright digits on dark backgrounds, learnable in minutes on a CPU. ``digits_few``: the same with
the digits 0 to 2 alone, on which small detectors converge. ``digits_hard`` (128 px): free colours on gradients, noise
and crops of scikit-learn's two photographs. The splits share neither a source digit nor a photo crop. Every image is
a pure function of (kind, seed, split, index), so two runs are equal to the pixel.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mokd_det.errors import ConfigError, DatasetError

__all__ = [
    "CLASS_NAMES",
    "DEFAULT_COUNTS",
    "KINDS",
    "SPLITS",
    "Scene",
    "SceneStyle",
    "annotation_file",
    "class_names",
    "compose_scene",
    "generate",
    "image_folder",
    "source_digits",
]

logger = logging.getLogger(__name__)

# Part of every manifest: raise it whenever the same arguments would give other pixels or annotations.
GENERATOR_VERSION = 1
SPLITS = ("train", "val", "test")
DEFAULT_COUNTS = {"train": 2000, "val": 300, "test": 300}
CLASS_NAMES = tuple(str(digit) for digit in range(10))

_SOURCE_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
_PHOTOS = ("china.jpg", "flower.jpg")
# Vertical bands of the photographs, as shares of their width: one per split, so crops never overlap.
_PHOTO_BANDS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
_PHOTO_CROP_PX = (64, 128)
# Digit opacity from which a pixel counts as visible; the boxes are tight around such pixels.
_VISIBLE = 0.3
_PLACEMENT_TRIES = 25
_MANIFEST = "manifest.json"
_SPLIT_STREAM, _IMAGE_STREAM = 1, 2

Background = tuple[np.ndarray, dict[str, Any]]


@dataclass(frozen=True)
class SceneStyle:
    """What a kind of scene looks like.

    Attributes:
        image_size: pixels of both sides.
        digits_per_image: smallest and largest number; fewer if there is no room.
        digit_size: smallest and largest pixels of a digit's longer side.
        max_overlap: largest share of the smaller box that another box may cover.
        background: (generator, image size, split) → float image (H, W, 3) in 0–255 and its description.
        colour: (generator, mean colour (3,) behind the digit) → colour (3,) of the digit in 0–255.
        digits: those that occur, from 0 up.
    """

    image_size: int
    digits_per_image: tuple[int, int]
    digit_size: tuple[int, int]
    max_overlap: float
    background: Callable[[np.random.Generator, int, str], Background]
    colour: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    digits: int = 10


@dataclass(frozen=True)
class Scene:
    """An image, (H, W, 3) uint8 RGB, where its background comes from, and its objects: boxes (N, 4), absolute xywh,
    tight around the visible pixels, digits (N,) 0–9, and which of scikit-learn's digits they are, (N,)."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    background: dict[str, Any]


def class_names(kind: str) -> tuple[str, ...]:
    return CLASS_NAMES[: KINDS[kind].digits]


def annotation_file(folder: str | os.PathLike[str], split: str) -> Path:
    return Path(folder) / "annotations" / f"{split}.json"


def image_folder(folder: str | os.PathLike[str], split: str) -> Path:
    return Path(folder) / split


def generate(
    kind: str, root: str | os.PathLike[str], *, seed: int = 0, counts: Mapping[str, int] | None = None
) -> bool:
    """Write ``<root>/<kind>`` unless it is already there, complete and made with the same arguments.

    The folder is built under a temporary name and renamed at the end, so it is never seen half-written; what
    an interrupted run left is removed by the next one. Processes that generate at once wait for each other.

    Args:
        kind: one of :data:`KINDS`.
        counts: images per split; None: :data:`DEFAULT_COUNTS`.

    Returns:
        Whether anything was written.

    Raises:
        ConfigError: unknown kind or split, a negative seed or count, or nothing to write for a split.
        DatasetError: the folder exists and holds files that this function did not write.
    """
    counts = dict(DEFAULT_COUNTS if counts is None else counts)
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of scenes {kind!r}; known: {', '.join(KINDS)}")
    if set(counts) != set(SPLITS) or any(count < 1 for count in counts.values()):
        raise ConfigError(f"counts={counts}: must give at least one image for each of {', '.join(SPLITS)}")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must not be negative")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / kind
    with _locked(root):
        if _is_complete(folder, kind, seed, counts):
            return False
        _refuse_foreign_files(folder)
        for leftover in root.glob(f".{kind}.part-*"):
            shutil.rmtree(leftover)
        part = root / f".{kind}.part-{os.getpid()}"
        _write(part, kind, seed, counts)
        if folder.exists():
            logger.info("replacing %s: incomplete, or made with other arguments", folder)
            shutil.rmtree(folder)
        part.rename(folder)
    return True


def source_digits(seed: int) -> dict[str, list[np.ndarray]]:
    """Indices of scikit-learn's digits per split and class: disjoint, with equal shares of every class."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    rng = np.random.default_rng([_SPLIT_STREAM, seed])
    sources: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    ends = np.cumsum([_SOURCE_SHARES[split] for split in SPLITS])[:-1]
    for digit in range(len(CLASS_NAMES)):
        shuffled = rng.permutation(np.flatnonzero(labels == digit))
        parts = np.split(shuffled, np.round(ends * len(shuffled)).astype(int))
        for split, part in zip(SPLITS, parts, strict=True):
            sources[split].append(part)
    return sources


def compose_scene(
    style: SceneStyle, digits: np.ndarray, sources: list[np.ndarray], split: str, rng: np.random.Generator
) -> Scene:
    """Draw one scene of scikit-learn's digits, (1797, 8, 8), values 0–16, of those whose indices ``sources`` allow for
    each class; the split decides which part of the photographs may be used."""
    size = style.image_size
    canvas, description = style.background(rng, size, split)
    owner = np.full((size, size), -1)
    placed: list[tuple[int, int, int, int]] = []
    labels, used = [], []
    for _ in range(rng.integers(style.digits_per_image[0], style.digits_per_image[1] + 1)):
        label = int(rng.integers(style.digits))
        source = int(rng.choice(sources[label]))
        place = _find_place(style, digits[source], placed, rng)
        if place is None:
            continue
        (x, y, w, h), alpha = place
        window = canvas[y : y + h, x : x + w]
        colour = style.colour(rng, window.mean(axis=(0, 1)))
        window[:] = window * (1 - alpha[..., None]) + colour * alpha[..., None]
        owner[y : y + h, x : x + w][alpha >= _VISIBLE] = len(placed)
        placed.append((x, y, w, h))
        labels.append(label)
        used.append(source)
    # with a generous max_overlap a digit may be hidden altogether: then it is no object of the scene
    shown = [i for i in range(len(placed)) if (owner == i).any()]
    boxes = np.array([_tight_box(owner == i) for i in shown], dtype=np.int64)
    image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    return Scene(image, boxes, np.array(labels)[shown], np.array(used)[shown], description)


def _find_place(
    style: SceneStyle, digit: np.ndarray, placed: list[tuple[int, int, int, int]], rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], np.ndarray] | None:
    low, high = style.digit_size
    for _ in range(_PLACEMENT_TRIES):
        alpha = _opacity(digit, int(rng.integers(low, high + 1)))
        h, w = alpha.shape
        x = int(rng.integers(0, style.image_size - w + 1))
        y = int(rng.integers(0, style.image_size - h + 1))
        if all(_overlap((x, y, w, h), other) <= style.max_overlap for other in placed):
            return (x, y, w, h), alpha
    return None


def _opacity(digit: np.ndarray, long_side: int) -> np.ndarray:
    """Opacity (h, w) in [0, 1] of a digit enlarged to ``long_side`` pixels, cut to its visible part."""
    x, y, w, h = _tight_box(digit >= 5)
    ink = (digit[y : y + h, x : x + w] * (255 / 16)).astype(np.uint8)
    scale = long_side / max(w, h)
    enlarged = Image.fromarray(ink).resize((round(w * scale), round(h * scale)), Image.Resampling.BILINEAR)
    # ink above five sixths is made opaque: the originals' strokes are thin and would come out grey
    alpha = np.minimum(np.asarray(enlarged, dtype=np.float64) * (1.2 / 255), 1.0)
    x, y, w, h = _tight_box(alpha >= _VISIBLE)
    return alpha[y : y + h, x : x + w]


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box (x, y, w, h) around the true pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over the area of the smaller box."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])


def _ramp(rng: np.random.Generator, size: int) -> np.ndarray:
    """Linear ramp (size, size, 1) in [-1, 1] in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, size)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    return (ramp / np.abs(ramp).max())[..., None]


def _dark_background(rng: np.random.Generator, size: int, split: str) -> Background:
    colour = rng.uniform(10, 80, 3) + _ramp(rng, size) * rng.uniform(0, 20, 3)
    return np.clip(colour + rng.normal(0, rng.uniform(0, 6), (size, size, 3)), 0, 110), {"type": "dark"}


def _bright_colour(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    return rng.uniform(150, 255, 3)


def _hard_background(rng: np.random.Generator, size: int, split: str) -> Background:
    choice = int(rng.integers(3))
    if choice == 0:
        start, end = rng.uniform(0, 255, (2, 3))
        share = (_ramp(rng, size) + 1) / 2
        return start * share + end * (1 - share), {"type": "gradient"}
    if choice == 1:
        noise = rng.normal(0, rng.uniform(10, 50), (size, size, 3))
        return np.clip(rng.uniform(30, 225, 3) + noise, 0, 255), {"type": "noise"}
    name = _PHOTOS[int(rng.integers(len(_PHOTOS)))]
    photo = _load_photo(name)
    height, width = photo.shape[:2]
    left, right = (round(share * width) for share in _PHOTO_BANDS[split])
    side = int(rng.integers(_PHOTO_CROP_PX[0], min(_PHOTO_CROP_PX[1], right - left, height) + 1))
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(0, height - side + 1))
    crop = Image.fromarray(photo[y : y + side, x : x + side]).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(crop, dtype=np.float64), {"type": "photo", "file": name, "box": [x, y, side, side]}


def _contrasting_colour(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    # ITU-R BT.601 luma: a digit must differ in brightness, not in hue alone
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(float(luma @ (colour - behind))) >= 70:
            return colour


@cache
def _load_photo(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


KINDS: dict[str, SceneStyle] = {
    "digits": SceneStyle(64, (1, 4), (16, 32), 0.05, _dark_background, _bright_colour),
    "digits_hard": SceneStyle(128, (1, 6), (20, 56), 0.15, _hard_background, _contrasting_colour),
    "digits_few": SceneStyle(64, (1, 3), (16, 32), 0.05, _dark_background, _bright_colour, digits=3),
}


def _write(folder: Path, kind: str, seed: int, counts: Mapping[str, int]) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits().images
    sources = source_digits(seed)
    kind_number = list(KINDS).index(kind)
    checksums = {}
    for split_number, split in enumerate(SPLITS):
        image_folder(folder, split).mkdir(parents=True)
        annotation_file(folder, split).parent.mkdir(exist_ok=True)
        pixels = hashlib.sha256()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(counts[split]):
            rng = np.random.default_rng([_IMAGE_STREAM, kind_number, seed, split_number, index])
            scene = compose_scene(KINDS[kind], digits, sources[split], split, rng)
            file_name = f"{index + 1:06d}.png"
            Image.fromarray(scene.image).save(image_folder(folder, split) / file_name, compress_level=1)
            pixels.update(scene.image.tobytes())
            height, width = scene.image.shape[:2]
            size = {"height": height, "width": width}
            images.append({"id": index + 1, "file_name": file_name, **size, "background": scene.background})
            for box, label, source in zip(scene.boxes.tolist(), scene.labels, scene.sources, strict=True):
                ids = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": int(label) + 1}
                what = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "source_digit": int(source)}
                annotations.append({**ids, **what})
        content = {
            "info": {"description": f"{kind} {split}, seed {seed}", "version": str(GENERATOR_VERSION)},
            "licenses": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(class_names(kind))],
            "images": images,
            "annotations": annotations,
        }
        text = json.dumps(content, sort_keys=True).encode()
        annotation_file(folder, split).write_bytes(text)
        checksums[split] = {"annotations": hashlib.sha256(text).hexdigest(), "pixels": pixels.hexdigest()}
    manifest = {**_arguments(kind, seed, counts), "sha256": checksums}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def _arguments(kind: str, seed: int, counts: Mapping[str, int]) -> dict[str, Any]:
    return {"generator": kind, "version": GENERATOR_VERSION, "seed": seed, "counts": dict(counts)}


def _is_complete(folder: Path, kind: str, seed: int, counts: Mapping[str, int]) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if not _arguments(kind, seed, counts).items() <= manifest.items():
            return False
        for split in SPLITS:
            text = annotation_file(folder, split).read_bytes()
            if hashlib.sha256(text).hexdigest() != manifest["sha256"][split]["annotations"]:
                return False
            if len(list(image_folder(folder, split).glob("*.png"))) != counts[split]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # whatever is wrong with the manifest or the files it names, the folder is not what a finished run leaves
        return False
    return True


def _refuse_foreign_files(folder: Path) -> None:
    if not folder.exists():
        return
    ours = {*SPLITS, "annotations", _MANIFEST}
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours)
    if foreign:
        raise DatasetError(
            f"{folder} holds files that the generator did not write ({', '.join(foreign[:3])}); move them "
            "away or choose another root"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other generating processes; the lock ends with the process, leaving no file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
