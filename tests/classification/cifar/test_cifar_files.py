"""CIFAR through torchvision: the right arrays, and every wrong file named before anything in it is unpickled."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from mokd_det.classification import Cifar10, Cifar100
from mokd_det.errors import ConfigError, DatasetError

CLASSES = {10: [f"c{i}" for i in range(10)], 100: [f"f{i}" for i in range(100)]}


def images(count: int, seed: int) -> np.ndarray:
    """(count, 32, 32, 3) random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def as_rows(pixels: np.ndarray) -> np.ndarray:
    """CIFAR's layout: 1024 red, 1024 green and 1024 blue numbers in a row."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small CIFAR-10 and CIFAR-100 files that torchvision takes for the published ones."""
    contents: dict[type[CIFAR10], dict[str, dict[str, Any]]] = {CIFAR10: {}, CIFAR100: {}}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(number + i) % 10 for i in range(4)]
        contents[CIFAR10][name] = {"data": as_rows(images(4, number)), "labels": labels}
    for number, name in enumerate(("train", "test")):
        data = as_rows(images(6, 10 + number))
        contents[CIFAR100][name] = {
            "data": data,
            "fine_labels": [99, 0, 5, 7, 7, 1],
            "coarse_labels": [0] * 6,
        }
    contents[CIFAR10]["batches.meta"] = {"label_names": CLASSES[10]}
    contents[CIFAR100]["meta"] = {"fine_label_names": CLASSES[100], "coarse_label_names": ["x"] * 20}
    for kind, files in contents.items():
        (tmp_path / kind.base_folder).mkdir()
        digests = {}
        for name, content in files.items():
            packed = pickle.dumps(content, 2)
            (tmp_path / kind.base_folder / name).write_bytes(packed)
            digests[name] = hashlib.md5(packed).hexdigest()
        for part in ("train_list", "test_list"):
            monkeypatch.setattr(kind, part, [[name, digests[name]] for name, _ in getattr(kind, part)])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": digests[kind.meta["filename"]]})
    return tmp_path


def test_the_train_batches_in_order(root: Path) -> None:
    dataset = Cifar10("train", root)
    assert len(dataset) == 20 and dataset.class_names == tuple(CLASSES[10])
    assert dataset.labels[:8].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert np.array_equal(dataset.images, np.concatenate([images(4, i) for i in range(5)]))
    assert np.array_equal(np.asarray(dataset.read(6)), images(4, 1)[2])
    assert dataset.read(0).mode == "RGB"


def test_the_test_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the folder of all data sets."""
    assert np.array_equal(Cifar10("test", root).images, images(4, 5))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    dataset = Cifar100("test")
    assert dataset.labels.tolist() == [99, 0, 5, 7, 7, 1] and dataset.num_classes == 100
    assert np.array_equal(dataset.images, images(6, 11))


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_code_is_not_run(root: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for name in ("train", "meta"):
        (root / "cifar-100-python" / name).write_bytes(pickle.dumps({"data": Bomb(trace), "fine_labels": []}))
        with pytest.raises(DatasetError, match=r"is not the published file, whose MD5 is \w{32}; unpack"):
            Cifar100("train", root)
    assert not trace.exists()


def test_what_to_do_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"CIFAR-100 is not at .*download cifar-100-python\.tar\.gz .* tar -xzf"
    ):
        Cifar100("train", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"download cifar-10-python\.tar\.gz .* -C '.*nowhere'"):
        Cifar10("test", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_broken_and_missing_files(root: Path, name: str) -> None:
    file = root / "cifar-10-batches-py" / name
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DatasetError, match=rf"'.*{name}' is not the published file"):
        Cifar10("train", root)
    file.unlink()
    with pytest.raises(DatasetError, match=rf"'.*{name}' is missing; unpack cifar-10-python.tar.gz again"):
        Cifar10("train", root)


def test_splits() -> None:
    with pytest.raises(ConfigError, match=r"CIFAR-10 has no split 'val'; it has train, test"):
        Cifar10("val")
