"""Small models whose attention the tests look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mokd_det.modeling import DeformableTransformer, InputProjection, ViDT
from mokd_det.modeling.backbone import DetBackbone, SwinRAM, TimmRAM

QUERIES = 6


def _vidt(backbone: DetBackbone | None = None, neck: Any = InputProjection, **options: Any) -> ViDT:
    torch.manual_seed(0)
    if backbone is None:
        backbone = SwinRAM(
            **{
                "embed_dim": 8,
                "depths": (1, 1, 1, 2),
                "num_heads": (2, 2, 2, 4),
                "window_size": 4,
                "num_det_tokens": QUERIES,
                "pos_channels": 32,
                **options,
            }
        )
    model = ViDT(
        backbone=backbone,
        neck=neck(),
        transformer=DeformableTransformer(embed_dim=32, num_heads=4, ffn_dim=32, num_layers=2, dropout=0.0),
        num_classes=5,
    )
    return model.eval()


@pytest.fixture
def vidt() -> Callable[..., ViDT]:
    """Builder of a random ViDT: of a given backbone, or of a SwinRAM with the given options."""
    return _vidt


@pytest.fixture
def timm_vidt() -> ViDT:
    """A ViDT whose tokens see the image in two stages of a timm host."""
    torch.manual_seed(1)
    host = TimmRAM(
        "resnet10t",
        num_det_tokens=QUERIES,
        det_channels=16,
        pos_channels=32,
        num_heads=4,
        cross_strides=(16, 32),
    )
    return _vidt(host)


@pytest.fixture
def unequal_batch() -> list[dict[str, Any]]:
    """Two images of unequal size, the second one enlarged three times for the model."""
    generator = torch.Generator().manual_seed(3)
    images = [
        torch.randint(0, 256, (3, h, w), generator=generator).float() for h, w in ((160, 96), (90, 231))
    ]
    return [
        {"image": images[0], "height": 160, "width": 96},
        {"image": images[1], "height": 30, "width": 77},
    ]
