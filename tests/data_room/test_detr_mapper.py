"""From a record to a model input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from mokd_det.data import DetrDatasetMapper, ShortSideResize
from mokd_det.errors import DatasetError


@pytest.fixture
def record(tmp_path):
    """A 20 × 10 image with two boxes and a crowd."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    annotations = [
        {"bbox": [2, 3, 4, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 4, "iscrowd": 0},
        {"bbox": [0, 0, 20, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 1},
        {"bbox": [15, 0, 20, 9.5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
    ]
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 31,
        "height": 10,
        "width": 20,
        "annotations": annotations,
    }


def test_training_sample(record):
    before = copy.deepcopy(record)
    sample = DetrDatasetMapper(is_train=True, augmentation=[ShortSideResize([32])])(record)
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, 32, 64)
    assert (sample["height"], sample["width"], sample["image_id"]) == (10, 20, 31)
    assert sample["file_name"] == record["file_name"]
    instances = sample["instances"]
    assert instances.image_size == (32, 64)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(
        instances.gt_boxes.tensor, torch.tensor([[6.4, 9.6, 19.2, 25.6], [48, 0, 64, 30.4]])
    )
    assert instances.gt_classes.tolist() == [4, 0] and instances.gt_classes.dtype == torch.int64
    assert "annotations" not in sample
    assert record == before


def test_no_augmentation_gives_the_files_pixels_as_rgb(record):
    sample = DetrDatasetMapper(is_train=True, augmentation=[])(record)
    np.testing.assert_array_equal(
        sample["image"].permute(1, 2, 0).numpy(), np.asarray(Image.open(record["file_name"]))
    )


def test_evaluation_sample_has_no_instances(record):
    sample = DetrDatasetMapper(is_train=False)(record)
    assert set(sample) == {"file_name", "image_id", "height", "width", "image"}
    assert sample["image"].shape == (3, *(656, 1328))


def test_default_training_augmentation_is_vidts(record):
    np.random.seed(0)  # noqa: NPY002
    mapper = DetrDatasetMapper(is_train=True)
    for _ in range(3):
        height, width = mapper(record)["image"].shape[1:]
        assert height % 16 == 0 and width % 16 == 0 and min(height, width) >= 384 - 16


def test_image_without_boxes_trains(record):
    for boxes in ([], [record["annotations"][1]]):
        instances = DetrDatasetMapper(is_train=True)({**record, "annotations": boxes})["instances"]
        assert len(instances) == 0
        assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.shape == (0,)


class _FixedCrop(T.Augmentation):
    def get_transform(self, image):
        return T.CropTransform(5, 4, 10, 6)


def test_crop_clips_boxes_and_drops_those_outside(record):
    instances = DetrDatasetMapper(is_train=True, augmentation=[_FixedCrop()])(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 1, 4]]
    assert instances.gt_classes.tolist() == [4]
    assert instances.image_size == (6, 10)


def test_flip_moves_pixels_and_boxes_together(record):
    sample = DetrDatasetMapper(is_train=True, augmentation=[T.RandomFlip(prob=1.0)])(record)
    plain = DetrDatasetMapper(is_train=True, augmentation=[])(record)
    torch.testing.assert_close(sample["image"], plain["image"].flip(-1))
    assert sample["instances"].gt_boxes.tensor[0].tolist() == [14, 3, 18, 8]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA"])
def test_other_colour_modes_become_rgb(record, tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    file = tmp_path / f"{mode}.{suffix}"
    image = Image.open(record["file_name"]).convert(mode)
    image.save(file)
    sample = DetrDatasetMapper(is_train=True, augmentation=[])({**record, "file_name": str(file)})
    assert sample["image"].shape == (3, 10, 20) and sample["image"].dtype == torch.uint8
    if mode == "L":
        assert torch.equal(sample["image"][0], sample["image"][2])
    if mode == "P":
        np.testing.assert_array_equal(
            sample["image"].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB"))
        )


def test_exif_orientation_is_applied(record, tmp_path):
    image = Image.fromarray(np.full((20, 10, 3), (255, 0, 0), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.jpg"
    image.save(file, exif=exif)
    sample = DetrDatasetMapper(is_train=True, augmentation=[])({**record, "file_name": str(file)})
    assert sample["image"].shape == (3, 10, 20)


def test_missing_image(record, tmp_path):
    (tmp_path / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"image .*a\.png \(image id 31\) does not exist"):
        DetrDatasetMapper(is_train=False)(record)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_image_that_cannot_be_decoded(record, tmp_path, damage):
    file = tmp_path / "a.png"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(DatasetError, match=r"image .*a\.png \(image id 31\) cannot be decoded: "):
        DetrDatasetMapper(is_train=True)(record)


def test_image_of_another_size(record):
    with pytest.raises(
        DatasetError, match=r"\(image id 31\) has height 10 and width 20, .*height 11 and width 20"
    ):
        DetrDatasetMapper(is_train=True)({**record, "height": 11})
