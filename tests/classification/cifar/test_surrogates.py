"""The data sets that stand in for CIFAR-100: balanced, reproducible, with nothing shared between splits."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from mokd_det.classification import FashionMNIST32, FashionPairs, SyntheticShapes, fashion_pairs
from mokd_det.errors import ConfigError, DatasetError

SPLITS = ("train", "val", "test")
SMALL = {"train": 11, "val": 1, "test": 1}


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST's files."""
    head = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes(), 1))


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST in small. An item is of one grey: its number within its class, from 0 (train) or 200 (test)."""
    folder = tmp_path_factory.mktemp("fashion")
    for kind, per_class, first in (("train", 120, 0), ("t10k", 10, 200)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        greys = np.repeat(np.arange(first, first + per_class, dtype=np.uint8), 10)
        write_idx(folder / f"{kind}-labels-idx1-ubyte.gz", labels)
        write_idx(folder / f"{kind}-images-idx3-ubyte.gz", np.tile(greys[:, None, None], (1, 28, 28)))
    return folder


@pytest.fixture
def root(small_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fashion_pairs, "PER_CLASS", SMALL)
    return small_files


def sides(dataset: FashionPairs) -> dict[str, list[tuple[int, int]]]:
    """The items (class, grey) on the left and on the right."""
    classes = np.divmod(dataset.labels, 10)
    found = {}
    for name, of, half in (
        ("left", classes[0], dataset.images[:, :, :16]),
        ("right", classes[1], dataset.images[:, :, 16:]),
    ):
        assert bool((half == half[:, :1, :1]).all())
        found[name] = list(zip(of.tolist(), half[:, 0, 0].tolist(), strict=True))
    return found


def test_pairs_are_balanced_and_share_no_item(root: Path) -> None:
    seen: set[tuple[int, int]] = set()
    for split in SPLITS:
        dataset = FashionPairs(split, root=root)
        assert dataset.images.shape == (100 * SMALL[split], 32, 32) and dataset.read(0).mode == "RGB"
        assert np.bincount(dataset.labels).tolist() == [SMALL[split]] * 100
        placed = sides(dataset)
        for items in placed.values():
            # each once, and the class is that of the label
            assert len(set(items)) == len(items)
            assert all((grey >= 200) is (split == "test") for _, grey in items)
        own = set(placed["left"]) | set(placed["right"])
        assert not own & seen
        seen |= own


def test_pairs_are_reproducible_and_a_smaller_set_is_part_of_a_larger(root: Path) -> None:
    large, again, small = (FashionPairs("train", n, root) for n in (5, 5, 2))
    assert large.fingerprint() == again.fingerprint() != small.fingerprint()
    assert np.array_equal(large.images.reshape(100, 5, 32, 32)[:, :2], small.images.reshape(100, 2, 32, 32))


def test_names_of_pairs(root: Path) -> None:
    dataset = FashionPairs("test", root=root)
    assert dataset.class_names[8 * 10 + 3] == "bag and dress" and len(set(dataset.class_names)) == 100


def test_mistakes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"fashion pairs has no split 'all'; it has train, val, test"):
        FashionPairs("all", root=root)
    with pytest.raises(ConfigError, match=r"per_class=12 must be 1 to 11"):
        FashionPairs("train", 12, root)
    monkeypatch.setattr(fashion_pairs, "PER_CLASS", {**SMALL, "val": 2})
    with pytest.raises(DatasetError, match=r"\(val\) has only 10 items of a class; the pairs need 20"):
        FashionPairs("val", root=root)
    with pytest.raises(DatasetError, match=r"Fashion-MNIST is not in .*nowhere.*apt-get install"):
        FashionPairs("train", root=root / "nowhere")


def test_padded(root: Path) -> None:
    dataset = FashionMNIST32("test", root)
    assert dataset.images.shape == (100, 32, 32) and dataset.num_classes == 10
    assert bool((dataset.images[:, 2:-2, 2:-2] >= 200).all())
    assert not dataset.images[:, :2].any() and not dataset.images[:, :, -2:].any()
    assert int((dataset.images == 0).sum()) == 100 * (32**2 - 28**2)


def test_shapes() -> None:
    dataset = SyntheticShapes("train", per_class=3)
    assert dataset.images.shape == (300, 32, 32, 3) and dataset.num_classes == 100
    assert np.bincount(dataset.labels).tolist() == [3] * 100
    assert dataset.class_names[0] == "red rows" and dataset.class_names[34] == "green rings"
    prints = {SyntheticShapes(split, 3, seed).fingerprint() for split in SPLITS for seed in (0, 1)}
    assert len(prints) == 6 and dataset.fingerprint() in prints


def test_shapes_are_told_apart_by_colour_and_form() -> None:
    """Nearest class mean, without noise, finds far more than one in a hundred."""
    train, test = (SyntheticShapes(split, 20, noise=0.0) for split in ("train", "test"))
    hues = [dataset.images.astype(float).mean((1, 2)) for dataset in (train, test)]
    hues = [values / values.sum(1, keepdims=True) for values in hues]
    means = np.stack([hues[0][train.labels // 10 == hue].mean(0) for hue in range(10)])
    nearest = np.abs(hues[1][:, None] - means).sum(2).argmin(1)
    assert (nearest == test.labels // 10).mean() > 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("all",), r"synthetic shapes has no split 'all'"),
        (("train", 0), r"per_class=0 must be 1 or more"),
        (("train", 1, -1), r"seed=-1"),
        (("train", 1, 0, -1.0), r"noise=-1.0 0 or more"),
    ],
)
def test_shapes_mistakes(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticShapes(*arguments)
