"""Classification data sets: what they hold, how they are divided, and what is said of missing and broken files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from mokd_det.classification import ArrayDataset, DigitImages, FashionMNIST, ImageFolder, TorchvisionImages
from mokd_det.classification import fashion_mnist as fashion_module
from mokd_det.classification.cifar10_jpeg import Cifar10Jpeg
from mokd_det.classification.fashion_pairs import FashionMNIST32
from mokd_det.classification.idx_file import read_idx
from mokd_det.classification.subset import FewPerClass, split_by_class
from mokd_det.errors import ConfigError, DatasetError

# The digits


def test_the_digits_splits_are_disjoint_complete_and_balanced():
    parts = {split: DigitImages(split, size=8) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 898, "val": 300, "test": 599}
    for part in parts.values():
        assert part.class_names == tuple("0123456789") and part.num_classes == 10
        shares = np.bincount(part.labels) / len(part)
        assert shares.min() > 0.09 and shares.max() < 0.11
    # Originals are told apart by their pixels; scikit-learn's set has no two equal images.
    seen = [part.read(i).tobytes() for part in parts.values() for i in range(len(part))]
    assert len(seen) == len(set(seen)) == 1797


def test_digits_are_enlarged_rgb_images_and_always_the_same():
    one, two = DigitImages("val"), DigitImages("val")
    image = one.read(0)
    assert image.mode == "RGB" and image.size == (32, 32)
    assert np.asarray(image).max() > 200 and np.asarray(image).min() == 0
    assert one.fingerprint() == two.fingerprint() != DigitImages("test").fingerprint()
    assert DigitImages("val", size=16).read(0).size == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "has no split 'validation'; it has train, val, test"),
        ({"split": "val", "size": 4}, "size=4: must be 8 or more"),
    ],
)
def test_impossible_digits(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DigitImages(**arguments)


# Parts of data sets


def test_splits_keep_the_classes_shares():
    labels = np.repeat([0, 1, 2], [10, 20, 31])
    parts = split_by_class(labels, {"a": 0.5, "b": 0.5}, seed=3)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(61))
    assert np.bincount(labels[parts["a"]]).tolist()[:2] == [5, 10]
    again = split_by_class(labels, {"a": 0.5, "b": 0.5}, seed=3)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    assert not np.array_equal(split_by_class(labels, {"a": 0.5, "b": 0.5}, seed=4)["a"], parts["a"])
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_class(labels, {"a": 0.5})


def test_few_per_class():
    whole = DigitImages("val", size=8)
    few, fewer = FewPerClass(whole, 5, seed=1), FewPerClass(whole, 3, seed=1)
    assert np.bincount(few.labels).tolist() == [5] * 10
    pixels = [few.read(i).tobytes() for i in range(50)]
    assert {fewer.read(i).tobytes() for i in range(30)} < set(pixels)
    assert few.image_name(0).startswith("digits (val), image ")
    original = int(few.image_name(7).rsplit(" ", 1)[1])
    assert whole.read(original).tobytes() == pixels[7] and whole.labels[original] == few.labels[7]
    assert few.fingerprint() != FewPerClass(whole, 5, seed=2).fingerprint()
    with pytest.raises(DatasetError, match=r"images of class '.', fewer than per_class=40"):
        FewPerClass(whole, 40)
    with pytest.raises(ConfigError, match="per_class=0"):
        FewPerClass(whole, 0)


# What every data set checks


@pytest.mark.parametrize(
    ("names", "labels", "images", "message"),
    [
        ("ab", [], np.zeros((0, 4, 4), np.uint8), "toy has no images"),
        ("aa", [0], np.zeros((1, 4, 4), np.uint8), "toy has two classes called 'a'"),
        ("ab", [0, 2], np.zeros((2, 4, 4), np.uint8), "toy, image 1 has class 2, but there are 2 classes"),
        ("ab", [0, -1], np.zeros((2, 4, 4), np.uint8), "toy, image 1 has class -1"),
        ("ab", [0], np.zeros((1, 4, 4)), r"the images are float64 \(1, 4, 4\) for 1 labels"),
        ("ab", [0], np.zeros((2, 4, 4), np.uint8), r"uint8 \(2, 4, 4\) for 1 labels"),
        ("ab", [0], np.zeros((1, 4, 4, 4), np.uint8), r"not uint8 \(N, H, W\)"),
    ],
)
def test_contradictory_arrays(names, labels, images, message):
    with pytest.raises(DatasetError, match=message):
        ArrayDataset("toy", list(names), labels, images)


# Folders


def write_images(root: Path, names: dict[str, int], size: int = 6) -> None:
    for label, (name, count) in enumerate(names.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (size, size), (40 * label, 10 * i, 0)).save(root / name / f"{i}.png")


def test_a_folder_of_images(tmp_path):
    write_images(tmp_path, {"dog": 2, "cat": 3})
    (tmp_path / "cat" / "deeper").mkdir()
    Image.new("L", (4, 4), 200).save(tmp_path / "cat" / "deeper" / "grey.JPEG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    data = ImageFolder(tmp_path)
    assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0] * 4 + [1] * 2
    names = [Path(data.image_name(i)).relative_to(tmp_path).as_posix() for i in range(6)]
    assert names == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/deeper/grey.JPEG", "dog/0.png", "dog/1.png"]
    assert data.read(3).mode == "RGB" and data.read(3).getpixel((0, 0)) == (200, 200, 200)
    assert data.read(5).getpixel((0, 0)) == (0, 10, 0)
    before = data.fingerprint()
    assert ImageFolder(tmp_path).fingerprint() == before
    Image.new("RGB", (9, 9)).save(tmp_path / "dog" / "9.png")
    assert ImageFolder(tmp_path).fingerprint() != before


def test_given_class_names_decide_the_numbers(tmp_path):
    write_images(tmp_path, {"a": 1, "b": 1, "c": 1})
    data = ImageFolder(tmp_path, ["c", "a"])
    assert data.class_names == ("c", "a")
    assert [Path(data.image_name(i)).parent.name for i in range(2)] == ["c", "a"]
    with pytest.raises(DatasetError, match="has no folder 'd' for the class"):
        ImageFolder(tmp_path, ["c", "d"])


def test_wrong_layouts_are_told_the_right_one(tmp_path):
    layout = "the layout is one folder per class: .*/<class>/<image>.jpg"
    with pytest.raises(DatasetError, match=f"nowhere does not exist; {layout}"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=f"is empty; {layout}"):
        ImageFolder(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    with pytest.raises(DatasetError, match=f"has 1 images but no folders in it; {layout}"):
        ImageFolder(tmp_path)
    with pytest.raises(DatasetError, match=r"one.png cannot be read"):
        ImageFolder(tmp_path / "one.png")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DatasetError, match=r"the class folder .*cat has no images \(.bmp"):
        ImageFolder(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    write_images(tmp_path, {"a": 2}, size=64)
    broken = tmp_path / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = ImageFolder(tmp_path)
    data.read(0)
    with pytest.raises(DatasetError, match=f"image {broken} cannot be decoded"):
        data.read(1)
    broken.unlink()
    with pytest.raises(DatasetError, match=f"image {broken} does not exist"):
        data.read(1)


# Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(root: Path, train: int = 240, test: int = 20) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for kind, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (root / f"{kind}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (root / f"{kind}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return root


def test_fashion_mnist_splits(tmp_path, monkeypatch):
    root = write_fashion(tmp_path / "fashion-mnist")
    parts = {split: FashionMNIST(split, root) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 220, "val": 20, "test": 20}
    assert np.bincount(parts["val"].labels).tolist() == [2] * 10
    pixels = {split: {part.read(i).tobytes() for i in range(len(part))} for split, part in parts.items()}
    assert not pixels["train"] & pixels["val"]
    assert parts["test"].class_names[5] == "sandal" and parts["test"].read(0).size == (28, 28)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert FashionMNIST("val").fingerprint() == parts["val"].fingerprint()
    with pytest.raises(ConfigError, match="has no split 'all'"):
        FashionMNIST("all", root)


def test_smaller_fashion_images_are_means(tmp_path):
    root = write_fashion(tmp_path / "fashion-mnist")
    large, small = FashionMNIST32("test", root), FashionMNIST32("test", root, size=16)
    assert large.images.shape[1:] == (32, 32) and small.images.shape[1:] == (16, 16)
    block = large.images[3, 10:12, 20:22].astype(float)
    assert small.images[3, 5, 10] == round(block.mean())
    with pytest.raises(ConfigError, match="size=20 must be 32, 16 or 8"):
        FashionMNIST32("test", root, size=20)


def test_cifar10_jpeg_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match="fetch it with: python -m mokd_det fetch cifar10_jpeg"):
        Cifar10Jpeg("train")
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "cifar10_jpeg" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(
                    folder / f"{number}.jpg"
                )
    parts = {split: Cifar10Jpeg(split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 16, "val": 4, "test": 4}
    names = {split: {part.image_name(i) for i in range(len(part))} for split, part in parts.items()}
    assert not names["train"] & names["val"] and len(names["train"] | names["val"]) == 20
    for part in parts.values():
        assert all(part.class_names[part.labels[i]] in part.image_name(i) for i in range(len(part)))
    small = Cifar10Jpeg("test", size=16)
    block = np.asarray(parts["test"].read(0), float)[4:6, 8:10].mean((0, 1))
    assert np.abs(np.asarray(small.read(0))[2, 4] - block).max() <= 1
    assert small.read(0).size == (16, 16) and small.fingerprint() != parts["test"].fingerprint()
    with pytest.raises(ConfigError, match="has no split 'all'"):
        Cifar10Jpeg("all")
    with pytest.raises(ConfigError, match="size=64 must be 1 to 32"):
        Cifar10Jpeg("test", size=64)


def test_missing_fashion_mnist_gives_the_command(tmp_path, monkeypatch):
    command = "sudo apt-get install dataset-fashion-mnist"
    with pytest.raises(DatasetError, match=f"not in {tmp_path / 'x'}. .* {command}"):
        FashionMNIST("train", tmp_path / "x")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(fashion_module, "DEBIAN_FOLDER", tmp_path / "debian")
    with pytest.raises(DatasetError, match=f"fashion-mnist or {tmp_path / 'debian'}. .* {command}"):
        FashionMNIST("train")


def packed(content: bytes) -> bytes:
    """The same bytes at any time of the day."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3", None, "images-idx3-ubyte.gz does not exist"),
        ("images-idx3", b"no gzip", "images-idx3-ubyte.gz cannot be read: BadGzipFile"),
        ("images-idx3", packed(b"xy"), "is no IDX file: 2 bytes"),
        ("images-idx3", packed(bytes(40)), "starts with 0x00000000, not 0x00000803"),
        ("images-idx3", packed(idx(np.zeros((20, 27, 28), np.uint8))), r"images of \(27, 28\) pixels"),
        (
            "images-idx3",
            packed(idx(np.zeros((20, 28, 28), np.uint8))[:-5]),
            "is damaged: its header says",
        ),
        (
            "images-idx3",
            packed(idx(np.zeros((20, 28, 28), np.uint8)))[:50],
            "cannot be read: EOFError",
        ),
        ("images-idx3", packed(idx(np.zeros((19, 28, 28), np.uint8))), "has 19 images, .* 20 labels"),
        ("labels-idx1", packed(idx(np.full(20, 10, np.uint8))), "label 0 is 10, not 0 to 9"),
        ("labels-idx1", packed(idx(np.zeros((4, 5), np.uint8))), "bytes in 1 dimensions"),
    ],
    ids=[
        "missing",
        "no gzip",
        "two bytes",
        "no magic number",
        "other size",
        "too short",
        "cut",
        "a label too many",
        "a class too high",
        "two dimensions",
    ],
)
def test_damaged_fashion_mnist(tmp_path, name, content, message):
    file = write_fashion(tmp_path) / f"t10k-{name}-ubyte.gz"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        FashionMNIST("test", tmp_path)


def test_idx_files_may_be_unpacked(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "plain", 3), array)


# torchvision


def test_a_torchvision_data_set(tmp_path):
    # torchvision's own ImageFolder reads what ours reads.
    write_images(tmp_path, {"cat": 2, "dog": 3})
    data = TorchvisionImages("ImageFolder", tmp_path)
    assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1, 1]
    ours = ImageFolder(tmp_path)
    assert all(data.read(i).tobytes() == ours.read(i).tobytes() for i in range(5))
    assert data.image_name(1) == f"ImageFolder() in {tmp_path}, image 1"


def test_idx_files_read_as_torchvision_reads_them(tmp_path):
    root = write_fashion(tmp_path / "FashionMNIST" / "raw")
    for file in root.iterdir():
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    theirs = TorchvisionImages("FashionMNIST", tmp_path, {"train": False})
    ours = FashionMNIST("test", root)
    assert np.array_equal(theirs.labels, ours.labels)
    assert all(theirs.read(i).tobytes() == ours.read(i).tobytes() for i in range(20))


def test_missing_torchvision_files_give_the_command(tmp_path):
    with pytest.raises(DatasetError) as error:
        TorchvisionImages("CIFAR10", tmp_path, {"train": False})
    assert f"CIFAR10('{tmp_path}', train=False, download=True)" in str(error.value)
    with pytest.raises(DatasetError, match="documentation of FER2013 describes the files"):
        TorchvisionImages("FER2013", tmp_path)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("CIFR10", {}, "no data set 'CIFR10' with a root folder; did you mean 'CIFAR10'"),
        ("FakeData", {}, "no data set 'FakeData'"),
        ("CIFAR10", {"split": "train"}, "'split' cannot be given in arguments, only train"),
        ("CIFAR10", {"download": True}, "'download' cannot be given"),
    ],
)
def test_impossible_torchvision_data_sets(tmp_path, name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TorchvisionImages(name, tmp_path, arguments)


class _Set:
    """A data set as torchvision's are, in the form that each test needs."""

    items: list = []

    def __init__(self, root: str) -> None:
        pass

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def foreign(monkeypatch, items, **attributes):
    kind = type("Foreign", (_Set,), {"items": items, **attributes})
    monkeypatch.setattr(torchvision.datasets, "Foreign", kind, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", [*torchvision.datasets.__all__, "Foreign"])
    return TorchvisionImages("Foreign", "root")


def test_labels_come_from_the_items_where_there_is_no_list(monkeypatch):
    image = Image.new("L", (4, 4))
    data = foreign(monkeypatch, [(image, 2), (image, 0)])
    assert data.labels.tolist() == [2, 0] and data.class_names == ("0", "1", "2")
    assert data.read(0).mode == "RGB"


def test_a_list_of_labels_must_agree_with_the_items(monkeypatch):
    image = Image.new("RGB", (4, 4))
    data = foreign(monkeypatch, [(image, 0), (image, 1)], targets=[0, 0], classes=["a", "b"])
    data.read(0)
    with pytest.raises(DatasetError, match="image 1 has class 1, but the data set's list of labels says 0"):
        data.read(1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((Image.new("RGB", (4, 4)), "cat"), "no pair of an image and a class number"),
        (OSError("truncated"), "image 0 cannot be read: OSError: truncated"),
    ],
)
def test_items_of_another_kind(monkeypatch, item, message):
    with pytest.raises(DatasetError, match=message):
        foreign(monkeypatch, [item])


def test_labels_of_another_kind(monkeypatch):
    with pytest.raises(DatasetError, match="its labels are not one class number per image"):
        foreign(monkeypatch, [(None, None)], targets=["cat"])
