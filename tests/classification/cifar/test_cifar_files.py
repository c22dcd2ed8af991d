"""CIFAR's pickles: read without executing what is in them, and every mistake named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mokd_det.classification import Cifar10, Cifar100
from mokd_det.errors import ConfigError, DatasetError

CLASSES = {10: [f"c{i}" for i in range(10)], 100: [f"f{i}" for i in range(100)]}


def images(count: int, seed: int) -> np.ndarray:
    """(count, 32, 32, 3) random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def as_rows(pixels: np.ndarray) -> np.ndarray:
    """CIFAR's layout: 1024 red, 1024 green and 1024 blue numbers in a row."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))


def dump(path: Path, content: Any, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with small CIFAR-10 and CIFAR-100 files."""
    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    for folder in (ten, hundred):
        folder.mkdir()
    dump(ten / "batches.meta", {"label_names": CLASSES[10], "num_cases_per_batch": 4})
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(number + i) % 10 for i in range(4)]
        dump(ten / name, {"data": as_rows(images(4, number)), "labels": labels, "filenames": ["a.png"] * 4})
    dump(hundred / "meta", {"fine_label_names": CLASSES[100], "coarse_label_names": ["x"] * 20})
    for number, name in enumerate(("train", "test")):
        content = {
            "data": as_rows(images(6, 10 + number)),
            "fine_labels": [99, 0, 5, 7, 7, 1],
            "coarse_labels": [0] * 6,
        }
        dump(hundred / name, content)
    return tmp_path


def test_the_train_batches_in_order(root: Path) -> None:
    dataset = Cifar10("train", root)
    assert len(dataset) == 20 and dataset.class_names == tuple(CLASSES[10])
    assert dataset.labels[:8].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert np.array_equal(dataset.images, np.concatenate([images(4, i) for i in range(5)]))
    assert np.array_equal(np.asarray(dataset.read(6)), images(4, 1)[2])
    assert dataset.read(0).mode == "RGB"


def test_the_test_files(root: Path) -> None:
    assert np.array_equal(Cifar10("test", root).images, images(4, 5))
    dataset = Cifar100("test", root)
    assert dataset.labels.tolist() == [99, 0, 5, 7, 7, 1] and dataset.num_classes == 100
    assert np.array_equal(dataset.images, images(6, 11))


def test_below_the_datasets_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert len(Cifar100("train")) == 6


# As Python 2 wrote the files: protocol 2 with byte strings and numpy's old module names.
PYTHON2 = (
    b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01M\x00\x0c"
    b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
    + bytes(range(256)) * 12
    + b"tbU\x0bfine_labels](K\x03eu."
)


def test_a_file_of_python_2(root: Path) -> None:
    (root / "cifar-100-python" / "train").write_bytes(PYTHON2)
    dataset = Cifar100("train", root)
    assert dataset.labels.tolist() == [3]
    assert np.array_equal(dataset.images[0].transpose(2, 0, 1).reshape(-1), np.tile(np.arange(256), 12))


@pytest.mark.parametrize("protocol", [3, 5])
def test_newer_pickles(root: Path, protocol: int) -> None:
    content = {"data": as_rows(images(1, 0)), "fine_labels": [3]}
    dump(root / "cifar-100-python" / "train", content, protocol)
    assert np.array_equal(Cifar100("train", root).images, images(1, 0))


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.made_of = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.made_of


def test_code_is_not_run(root: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for call, arguments in (
        (Path.touch, (trace,)),
        (eval, (f"open({str(trace)!r}, 'w')",)),
        (getattr, ("text", "upper")),
    ):
        dump(root / "cifar-100-python" / "train", {"data": Bomb(call, *arguments), "fine_labels": []})
        with pytest.raises(DatasetError, match=r"'.*train' is refused: .*which could run code when loaded"):
            Cifar100("train", root)
    assert not trace.exists()


def test_what_to_do_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"CIFAR-100 is not at .*download cifar-100-python\.tar\.gz .* tar -xzf"
    ):
        Cifar100("train", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"download cifar-10-python\.tar\.gz .* -C '.*nowhere'"):
        Cifar10("test", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train", {"data": as_rows(images(2, 0)), "fine_labels": [1]}, r"uint8 \(2, 3072\) for 1 labels"),
        ("train", {"data": np.zeros((1, 3072)), "fine_labels": [1]}, r"data float64 \(1, 3072\)"),
        ("train", {"data": np.zeros((1, 30), np.uint8), "fine_labels": [1]}, r"should be uint8 \(N, 3072\)"),
        (
            "train",
            {"data": as_rows(images(1, 0)), "labels": [1]},
            r"has no list 'fine_labels'; it holds 'data'",
        ),
        (
            "train",
            {"data": as_rows(images(1, 0)), "fine_labels": ["cat"]},
            r"fine_labels must be whole numbers",
        ),
        ("train", {"data": as_rows(images(1, 0)), "fine_labels": [100]}, r"has class 100, but there are 100"),
        ("train", [1, 2], r"holds a list, not a dict"),
        ("meta", {"fine_label_names": ["cat"]}, r"names 1 classes; CIFAR-100 has 100"),
        ("meta", {}, r"has no list 'fine_label_names'"),
    ],
)
def test_other_content(root: Path, name: str, content: Any, message: str) -> None:
    dump(root / "cifar-100-python" / name, content)
    with pytest.raises(DatasetError, match=message):
        Cifar100("train", root)


def test_broken_and_missing_files(root: Path) -> None:
    file = root / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"'.*data_batch_3' cannot be read: broken"):
        Cifar10("train", root)
    file.unlink()
    with pytest.raises(DatasetError, match=r"'.*data_batch_3' is missing; unpack the archive again"):
        Cifar10("train", root)


def test_splits() -> None:
    with pytest.raises(ConfigError, match=r"CIFAR-10 has no split 'val'; it has train, test"):
        Cifar10("val")
