"""The examples of docs/extending.md are run as they are printed."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from mokd_det.data.sampling import sample_rng
from mokd_det.errors import ConfigError
from mokd_det.modeling.backbone import DET_BACKBONES
from tests.documentation.pages import ROOT, python_blocks

NAME = "docs/extending.md"
PAGE = ROOT / NAME
TAPS = ("patch", "neck", "head")


@pytest.fixture(scope="module")
def ran() -> dict[str, Any]:
    """What the page's code leaves behind, all of its blocks run in one namespace."""
    blocks = python_blocks(NAME)
    assert len(blocks) == 8
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", ["own_backbone", "timm_backbone", "own_method", "own_balancer", "own_data"])
def test_each_part_trained_a_step(ran: dict[str, Any], name: str) -> None:
    latest = ran[name]
    assert latest["total_loss"] > 0 and all(math.isfinite(value) for value in latest.values())
    assert {"loss_ce", "loss_bbox", "loss_giou"} <= set(latest)


def test_own_backbone_is_registered_and_trains_every_parameter(ran: dict[str, Any]) -> None:
    assert DET_BACKBONES.get("small_conv") is ran["SmallConv"]
    model = ran["detector"](ran["SmallConv"]()).train()
    sum(model(next(ran["random_batches"]())).values()).backward()
    assert not {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


def test_own_backbone_does_not_see_padding(ran: dict[str, Any]) -> None:
    backbone = ran["SmallConv"]().eval()
    mask = torch.zeros(1, 64, 128, dtype=torch.bool)
    mask[..., 64:] = True
    images = torch.randn(1, 3, 64, 128)
    # beyond the receptive field of the unpadded cells
    spoilt = images.clone()
    spoilt[..., 112:] = 9.0
    with torch.no_grad():
        first, second = backbone(images, mask), backbone(spoilt, mask)
    assert not torch.equal(first.patch_features[2], second.patch_features[2])
    assert torch.equal(first.det_tokens, second.det_tokens)


def test_the_error_of_a_wrong_declaration_is_the_printed_one(ran: dict[str, Any]) -> None:
    class Wrong(ran["SmallConv"]):
        def __init__(self) -> None:
            super().__init__()
            self.channels = (32, 64, 128, 256)

    Wrong.__name__ = "SmallConv"
    model = ran["detector"](Wrong())
    with pytest.raises(ConfigError) as error:
        model.train()(next(ran["random_batches"]()))
    printed = re.search(
        r"`(the backbone SmallConv declares .*?)`", PAGE.read_text().replace("\n  ", " "), re.DOTALL
    )
    assert printed is not None
    for part in printed[1].split("…"):
        assert part.strip(" ,") in str(error.value)
    assert "(1, 128, 1, 1)" in str(error.value)


def test_own_method_gives_a_term_per_tap(ran: dict[str, Any]) -> None:
    assert {f"loss_distill_{tap}" for tap in TAPS} <= set(ran["own_method"])
    # four map levels, each between 0 and 2
    assert all(0 < ran["own_method"][f"loss_distill_{tap}"] < 8 for tap in TAPS)
    assert len(ran["distiller"].private_parameters()) == 2 * (4 + 2)


def test_own_balancer_weights_the_objectives(ran: dict[str, Any]) -> None:
    expected = torch.randn(2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(0)
    found = [ran["own_balancer"][f"pi/{name}"] for name in ("distill", "task")]
    assert found == pytest.approx(expected.tolist())


def test_own_augmentation_serves_the_mapper(ran: dict[str, Any]) -> None:
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    shades = []
    for position in (0, 1, 0):
        sample = T.AugInput(image, boxes=np.array([[1.0, 1.0, 5.0, 7.0]]))
        with sample_rng(0, position):
            ran["mapper"].augmentation(sample)
        assert sample.image.dtype == np.uint8 and sample.boxes.shape == (1, 4)
        shades.append(int(sample.image[0, 0, 0]))
    assert shades[0] == shades[2] != shades[1], "the sample decides, nothing else"


def test_own_mapper_gives_the_same_samples_again(ran: dict[str, Any]) -> None:
    first, again = (next(iter(ran["loader"])) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one["image_id"] == other["image_id"] and torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
