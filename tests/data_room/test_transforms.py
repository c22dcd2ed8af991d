"""ViDT's augmentation: measured sizes of the official code, and the laws of the random parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st

from mokd_det.data import (
    RandomChoice,
    RandomSizeCrop,
    ShortSideResize,
    detr_test_augmentation,
    detr_train_augmentation,
    resized_shape,
)
from mokd_det.errors import ConfigError

GOLDENS = json.loads((Path(__file__).parents[1] / "data" / "resize_goldens.json").read_text())


@pytest.mark.parametrize("size_wh, shape_hw, box", GOLDENS["eval_resize_wh_to_hw"])
def test_eval_resize_equals_the_official_code(size_wh, shape_hw, box):
    width, height = size_wh
    aug_input = T.AugInput(np.zeros((height, width, 3), np.uint8), boxes=np.array([[0.0, 0, width, height]]))
    T.AugmentationList(detr_test_augmentation())(aug_input)
    assert list(aug_input.image.shape[:2]) == shape_hw
    np.testing.assert_allclose(aug_input.boxes[0], box, atol=1e-4)


@pytest.mark.parametrize("size_wh, short_side, max_long_side, shape_hw", GOLDENS["train_resize_wh_to_hw"])
def test_train_resize_equals_the_official_code(size_wh, short_side, max_long_side, shape_hw):
    width, height = size_wh
    assert list(resized_shape(height, width, short_side, max_long_side)) == shape_hw


def test_long_side_rule_rounds_the_short_side():
    """1333 · 200 / 1000 = 266.6; the long side follows the rounded short one beyond its limit."""
    assert resized_shape(200, 1000, 800, 1333, divisor=1) == (267, 1335)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 1000),
    st.integers(16, 2000),
    st.sampled_from([1, 16, 32]),
)
def test_resized_shape_laws(height, width, short_side, max_long_side, divisor):
    shape = resized_shape(height, width, short_side, max_long_side, divisor)
    assert all(side % divisor == 0 and side >= divisor for side in shape)
    assert shape == resized_shape(width, height, short_side, max_long_side, divisor)[::-1]
    if height <= width:
        assert shape[0] <= shape[1]
    # rounding the short side to a whole pixel moves the long one by at most half an aspect ratio
    ratio = max(height, width) / min(height, width)
    assert max(shape) <= max(max_long_side + max(0.5, 1 - max_long_side / ratio) * ratio + 1, divisor)


def test_resize_draws_all_short_sides_and_scales_boxes_per_axis():
    np.random.seed(0)  # noqa: NPY002
    resize = ShortSideResize([32, 48, 64])
    seen = set()
    for _ in range(60):
        aug_input = T.AugInput(np.zeros((50, 100, 3), np.uint8), boxes=np.array([[10.0, 10, 20, 30]]))
        resize(aug_input)
        height, width = aug_input.image.shape[:2]
        seen.add((height, width))
        np.testing.assert_allclose(
            aug_input.boxes[0], [10 * width / 100, 10 * height / 50, 20 * width / 100, 30 * height / 50]
        )
    assert seen == {(32, 64), (48, 96), (64, 128)}


def test_resize_uses_pils_bilinear_filter():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    aug_input = T.AugInput(image)
    ShortSideResize([32])(aug_input)
    expected = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(aug_input.image, expected)


def test_crop_sizes_places_and_boxes():
    np.random.seed(1)  # noqa: NPY002
    crop = RandomSizeCrop(20, 30)
    image = np.arange(50 * 25, dtype=np.uint16).astype(np.uint8).reshape(50, 25)
    heights, widths, places = set(), set(), set()
    for _ in range(300):
        transform = crop.get_transform(image)
        assert 0 <= transform.x0 <= 25 - transform.w and 0 <= transform.y0 <= 50 - transform.h
        heights.add(transform.h)
        widths.add(transform.w)
        places.update(
            name
            for name, reached in {
                "left": transform.x0 == 0,
                "right": transform.x0 == 25 - transform.w > 0,
                "top": transform.y0 == 0,
                "bottom": transform.y0 == 50 - transform.h,
            }.items()
            if reached
        )
        box = transform.apply_box(np.array([[4.0, 5, 6, 7]]))[0]
        np.testing.assert_allclose(box, np.array([4, 5, 6, 7]) - np.tile([transform.x0, transform.y0], 2))
    assert heights == set(range(20, 31))
    assert widths == set(range(20, 26))
    assert places == {"left", "right", "top", "bottom"}


def test_crop_keeps_a_side_that_is_too_short_whole():
    transform = RandomSizeCrop(20, 30).get_transform(np.zeros((12, 25), np.uint8))
    assert (transform.h, transform.y0) == (12, 0)


@pytest.mark.parametrize("prob, expected", [(0.0, {(8, 8)}), (1.0, {(16, 16)})])
def test_random_choice_at_the_ends(prob, expected):
    choice = RandomChoice([T.Resize((16, 16))], [T.Resize((8, 8))], first_prob=prob)
    seen = set()
    for _ in range(20):
        aug_input = T.AugInput(np.zeros((4, 4, 3), np.uint8))
        choice(aug_input)
        seen.add(aug_input.image.shape[:2])
    assert seen == expected


def test_random_choice_frequency():
    np.random.seed(2)  # noqa: NPY002
    choice = RandomChoice([T.Resize((16, 16))], [T.Resize((8, 8))], first_prob=0.25)
    firsts = 0
    for _ in range(400):
        aug_input = T.AugInput(np.zeros((4, 4, 3), np.uint8))
        choice(aug_input)
        firsts += aug_input.image.shape[0] == 16
    # 100 expected, standard deviation 8.7
    assert 65 < firsts < 135


def _shapes(augmentation, image, repeats):
    shapes = set()
    for _ in range(repeats):
        aug_input = T.AugInput(image)
        T.AugmentationList(augmentation)(aug_input)
        shapes.add(aug_input.image.shape[:2])
    return shapes


def test_train_augmentation_without_crop_keeps_the_aspect_ratio():
    np.random.seed(3)  # noqa: NPY002
    augmentation = detr_train_augmentation(short_sides=(32, 64), max_long_side=100, crop_prob=0)
    assert _shapes(augmentation, np.zeros((30, 60, 3), np.uint8), 30) == {(32, 64), (48, 96)}


def test_train_augmentation_with_crop_resizes_crops_and_resizes():
    np.random.seed(4)  # noqa: NPY002
    augmentation = detr_train_augmentation(
        short_sides=(32,),
        max_long_side=None,
        crop_prob=1,
        crop_short_sides=(40,),
        crop_min_size=16,
        crop_max_size=32,
        divisor=1,
    )
    # the crop's sides are 16 to 32 whatever the image, so its aspect ratio lies in 1/2 … 2
    shapes = _shapes(augmentation, np.zeros((10, 60, 3), np.uint8), 60)
    assert len(shapes) > 15
    assert all(min(shape) == 32 and max(shape) <= 64 for shape in shapes)


def test_default_train_augmentation_has_the_official_sizes():
    np.random.seed(5)  # noqa: NPY002
    shapes = _shapes(detr_train_augmentation(crop_prob=0), np.zeros((480, 640, 3), np.uint8), 150)
    assert {min(shape) for shape in shapes} <= set(range(480, 801, 16))
    assert len({min(shape) for shape in shapes}) >= 15


def test_flip_can_be_left_out_and_is_a_mirror():
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    for prob, expected in ((0, image), (1, image[:, ::-1])):
        aug_input = T.AugInput(image, boxes=np.array([[1.0, 2, 5, 6]]))
        T.AugmentationList(detr_train_augmentation(flip_prob=prob, short_sides=(16,), crop_prob=0))(aug_input)
        np.testing.assert_array_equal(aug_input.image, expected)
        assert aug_input.boxes[0].tolist() == ([11, 2, 15, 6] if prob else [1, 2, 5, 6])


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ShortSideResize([]), "short_sides=.*at least one"),
        (lambda: ShortSideResize([0, 4]), "short_sides=.*positive"),
        (lambda: ShortSideResize([4], divisor=0), "divisor=0"),
        (lambda: ShortSideResize([4], max_long_side=0), "max_long_side=0"),
        (lambda: RandomSizeCrop(9, 8), "crop sizes 9 to 8"),
        (lambda: RandomChoice([], [], first_prob=1.5), "first_prob=1.5"),
        (lambda: detr_train_augmentation(flip_prob=-1), "flip_prob=-1"),
        (lambda: detr_train_augmentation(crop_prob=2), "crop_prob=2"),
    ],
)
def test_impossible_settings(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
