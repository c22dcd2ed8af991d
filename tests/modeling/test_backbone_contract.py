"""A backbone that does not deliver what it declares is refused at the first forward, by both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mokd_det.errors import ConfigError
from mokd_det.modeling import DeformableTransformer, InputProjection, ViDT
from mokd_det.modeling.backbone import DetBackbone, DetFeatures, resize_mask


class Liar(DetBackbone):
    """Delivers zeros of given shapes, whatever it declares."""

    strides, channels = (8, 16), (4, 6)
    num_det_tokens, det_channels, pos_channels = 3, 8, 32

    def __init__(
        self, maps: list[tuple[int, int, int]], tokens: tuple[int, int], pos: tuple[int, int]
    ) -> None:
        super().__init__()
        self.maps, self.tokens, self.pos = maps, tokens, pos
        self.calls = 0

    def forward(self, images: torch.Tensor, padding_mask: torch.Tensor) -> DetFeatures:
        self.calls += 1
        maps = [images.new_zeros(len(images), *shape) for shape in self.maps]
        return DetFeatures(maps, images.new_zeros(len(images), *self.tokens), images.new_zeros(1, *self.pos))


def detector(backbone: nn.Module, num_levels: int = 2) -> ViDT:
    transformer = DeformableTransformer(
        embed_dim=32, num_heads=2, ffn_dim=8, num_layers=1, num_levels=num_levels
    )
    return ViDT(backbone=backbone, neck=InputProjection(), transformer=transformer, num_classes=2).eval()


def detect(model: ViDT, height: int = 40, width: int = 64) -> None:
    with torch.no_grad():
        model([{"image": torch.zeros(3, height, width)}] * 2)


RIGHT = [(4, 5, 8), (6, 3, 4)]


@pytest.mark.parametrize("maps", [RIGHT, [(4, 5, 8), (6, 2, 4)]], ids=["rounded up", "rounded down"])
def test_either_rounding_is_right(maps: list[tuple[int, int, int]]) -> None:
    detect(detector(Liar(maps, (3, 8), (3, 32))))


@pytest.mark.parametrize(
    "maps",
    [
        [(4, 5, 8), (5, 3, 4)],
        [(4, 5, 8), (6, 5, 8)],
        [(4, 6, 8), (6, 3, 4)],
        [(4, 5, 8)],
        [(6, 3, 4), (4, 5, 8)],
    ],
    ids=["channels", "stride", "cells beyond the image", "a level short", "order"],
)
def test_maps_that_contradict_the_declaration(maps: list[tuple[int, int, int]]) -> None:
    found = ", ".join(str((2, *shape)) for shape in maps)
    with pytest.raises(ConfigError) as error:
        detect(detector(Liar(maps, (3, 8), (3, 32))))
    assert str(error.value) == (
        "the backbone Liar declares the maps (B, 4, H/8, W/8), (B, 6, H/16, W/16), but for images of shape "
        f"(2, 3, 40, 64) it gave {found}"
    )


def test_tokens_that_contradict_the_declaration() -> None:
    with pytest.raises(
        ConfigError, match=r"declares det_tokens of shape \(2, 3, 8\) .* but gave \(2, 4, 8\)"
    ):
        detect(detector(Liar(RIGHT, (4, 8), (3, 32))))
    with pytest.raises(ConfigError, match=r"declares det_pos of shape \(1, 3, 32\) .* but gave \(1, 3, 8\)"):
        detect(detector(Liar(RIGHT, (3, 8), (3, 8))))


def test_only_the_first_forward_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    monkeypatch.setattr("mokd_det.modeling.vidt.check_output", lambda *arguments: checks.append(arguments))
    model = detector(Liar(RIGHT, (3, 8), (3, 32)))
    for _ in range(3):
        detect(model)
    assert (len(checks), model.backbone.calls) == (1, 3)


def test_what_is_wrong_before_any_forward() -> None:
    backbone = Liar(RIGHT, (3, 8), (3, 32))
    with pytest.raises(ConfigError, match=r"Liar delivers 2 levels .strides \(8, 16\).*num_levels is 4"):
        detector(backbone, num_levels=4)
    with pytest.raises(ConfigError, match="the backbone Linear is no DetBackbone"):
        detector(nn.Linear(1, 1))
    backbone.channels = (4, 6, 8)
    with pytest.raises(ConfigError, match=r"2 strides \(8, 16\) but 3 channel counts \(4, 6, 8\)"):
        detector(backbone)

    class Silent(DetBackbone):
        strides, channels, det_channels = (8,), (4,), 4

        def forward(self, images: torch.Tensor, padding_mask: torch.Tensor) -> DetFeatures:
            raise AssertionError("never called")

    with pytest.raises(ConfigError, match="Silent does not declare num_det_tokens, pos_channels"):
        detector(Silent(), num_levels=1)


def test_masks_are_resized_as_by_interpolation() -> None:
    """Bit by bit, in every size up to 300 and to each of the sizes that a detector asks for."""
    for length in [*range(1, 301), 800, 1066, 1333]:
        mask = torch.rand(2, 3, length, generator=torch.Generator().manual_seed(length)) < 0.5
        for cells in {max(length // 8, 1), *(-(-length // stride) for stride in (4, 8, 16, 32, 64)), length}:
            expected = torch.nn.functional.interpolate(mask[None].float(), size=(2, cells))[0].bool()
            assert torch.equal(resize_mask(mask, (2, cells)), expected), (length, cells)
