"""The CIFAR augmentation: torchvision's arithmetic, every crop and both mirrorings, seeded by the loader."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as reference
from PIL import Image

from mokd_det.classification import SmallImageTransform, SyntheticShapes, build_classification_train_loader
from mokd_det.errors import ConfigError, DatasetError

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
NEUTRAL = dict(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def image(side: int = 32) -> Image.Image:
    # no pixel equals another one, and none is black
    values = np.arange(1, 3 * side * side + 1).reshape(side, side, 3)
    return Image.fromarray((values % 255 + 1).astype(np.uint8))


def test_evaluation_is_torchvisions() -> None:
    expected = reference.Compose(
        [reference.ToImage(), reference.ToDtype(torch.float32, scale=True), reference.Normalize(MEAN, STD)]
    )(image())
    assert torch.allclose(SmallImageTransform(False, MEAN, STD)(image()), expected, atol=1e-6)


def test_every_crop_and_both_mirrorings() -> None:
    small = Image.fromarray(np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3))
    padded = np.pad(np.asarray(small), ((1, 1), (1, 1), (0, 0)))
    windows = {
        (y, x, mirrored): padded[y : y + 3, x : x + 3][:, :: -1 if mirrored else 1].tobytes()
        for y in range(3)
        for x in range(3)
        for mirrored in (False, True)
    }
    assert len(set(windows.values())) == 18
    transform = SmallImageTransform(True, **NEUTRAL, size=3, padding=1)
    torch.manual_seed(0)
    drawn = Counter(
        transform(small).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().tobytes()
        for _ in range(1800)
    )
    assert set(drawn) == set(windows.values())
    # 100 expected, standard deviation 9.7
    assert min(drawn.values()) > 60 and max(drawn.values()) < 140


def test_without_flip_and_without_padding() -> None:
    torch.manual_seed(0)
    still = SmallImageTransform(True, **NEUTRAL, padding=0, flip=False)
    plain = SmallImageTransform(False, **NEUTRAL)(image())
    assert all(torch.equal(still(image()), plain) for _ in range(20))


def test_the_loader_seeds_it() -> None:
    def batches(seed: int) -> list[torch.Tensor]:
        loader = build_classification_train_loader(
            SyntheticShapes("train", 1), SmallImageTransform(True, MEAN, STD), 25, seed=seed
        )
        stream = iter(loader)
        return [next(stream).images for _ in range(2)]

    first = batches(0)
    torch.manual_seed(123)
    assert all(map(torch.equal, first, batches(0)))
    assert not torch.equal(first[0], batches(1)[0])


def test_mistakes() -> None:
    with pytest.raises(DatasetError, match=r"30 × 30 pixels; this transform takes 32 × 32"):
        SmallImageTransform(False, MEAN, STD)(image(30))
    for wrong in (dict(mean=(0.5,)), dict(std=(1.0, 0.0, 1.0)), dict(padding=-1)):
        with pytest.raises(ConfigError, match=r"must be three numbers each"):
            SmallImageTransform(True, **{"mean": MEAN, "std": STD, **wrong})
