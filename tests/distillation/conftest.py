"""A small detector with taps, and the stored numbers of the published losses."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.layers.tap_point import FeatureMap, TapPoint, TapSpec

GOLDENS = Path(__file__).parent.parent / "data" / "distillation_goldens.json"


class FakeDetector(nn.Module):
    """Detectron2's interface and ViDT's taps on top of three convolutions."""

    def __init__(
        self,
        channels: int = 8,
        queries: int = 5,
        levels: int = 3,
        strides: tuple[int, ...] = (8, 16),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.strides = strides
        self.stem = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.BatchNorm2d(channels)
        self.levels = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in strides)
        self.queries = nn.Parameter(torch.randn(queries, channels))
        self.decoder = nn.ModuleList(nn.Linear(channels, channels) for _ in range(levels - 1))
        self.dropout = nn.Dropout(dropout)
        self.box = nn.Linear(channels, 4)
        self.taps = nn.ModuleDict(
            {
                "patch": TapPoint(TapSpec("maps", (channels,) * len(strides), strides)),
                "neck": TapPoint(TapSpec("tokens", (channels,), num_tokens=queries)),
                "head": TapPoint(TapSpec("tokens", (channels,), num_tokens=queries, num_levels=levels)),
            }
        )
        self.calls = 0

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        self.calls += 1
        images = [item["image"].to(self.queries) / 255 for item in batched_inputs]
        height, width = (max(image.shape[d] for image in images) for d in (1, 2))
        batch = torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])
        mask = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
        for row, image in zip(mask, images, strict=True):
            row[: image.shape[1], : image.shape[2]] = False
        features = self.norm(self.stem(batch))
        maps = []
        for conv, stride in zip(self.levels, self.strides, strict=True):
            tensor = conv(F.avg_pool2d(features, stride // 4))
            padding = F.interpolate(mask[None].float(), size=tensor.shape[-2:])[0].bool()
            maps.append(FeatureMap(tensor, padding, stride))
        maps = self.taps["patch"](maps)
        neck = self.dropout(self.queries + maps[-1].tensor.mean((2, 3))[:, None])  # (B, Q, C)
        neck = self.taps["neck"](neck)
        stack = [neck]
        for layer in self.decoder:
            stack.append(layer(stack[-1]).tanh())
        head = self.taps["head"](torch.stack(stack))  # (L, B, Q, C)
        boxes = self.box(head[-1]).sigmoid()
        if not self.training:
            return [{"boxes": b} for b in boxes]
        return {"loss_bbox": boxes.square().mean(), "loss_ce": (1 - boxes).abs().mean()}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fake_detector() -> type[FakeDetector]:
    return FakeDetector


@pytest.fixture
def batch() -> list[dict[str, Any]]:
    """Two images of different sizes, so that the second is padded to 48 × 64."""
    generator = torch.Generator().manual_seed(3)
    sizes = ((48, 64), (32, 40))
    return [{"image": torch.randint(0, 256, (3, *s), generator=generator, dtype=torch.uint8)} for s in sizes]


@pytest.fixture(scope="session")
def goldens() -> dict[str, Any]:
    return json.loads(GOLDENS.read_text())


@pytest.fixture(scope="session")
def wave() -> Callable[..., Tensor]:
    """offset + scale·sin(0.7 (i + 1)^1.5 + phase), i the flat index: the stored numbers' generator."""

    def make(shape: tuple[int, ...], phase: float = 0.0, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        index = torch.arange(1, int(np.prod(shape)) + 1, dtype=torch.float64)
        return (offset + scale * torch.sin(0.7 * index**1.5 + phase)).reshape(tuple(shape))

    return make


@pytest.fixture(scope="session")
def noise() -> Callable[..., Tensor]:
    """Standard normal numbers that depend on a name and a shape only; those of the stored token losses."""

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        return torch.from_numpy(generator.standard_normal(shape).astype(np.float32)).double()

    return make


@pytest.fixture(scope="session")
def golden_taps(goldens: dict[str, Any], wave: Callable[..., Tensor]) -> Callable[[str], dict[str, Any]]:
    """Tap values of the stored VkD and token-matching losses, for "student" or "teacher"."""

    def make(who: str) -> dict[str, Any]:
        stored = goldens["losses"][who]
        strides = (8, 16, 32, 64)
        return {
            "patch": [
                FeatureMap(wave(**level), None, s) for level, s in zip(stored["patch"], strides, strict=True)
            ],
            "neck": wave(**stored["body"]),
            "head": wave(**stored["neck"]),
        }

    return make


@pytest.fixture(scope="session")
def golden_specs() -> dict[str, TapSpec]:
    return {
        "patch": TapSpec("maps", (8,) * 4, (8, 16, 32, 64)),
        "neck": TapSpec("tokens", (8,), num_tokens=5),
        "head": TapSpec("tokens", (8,), num_tokens=5, num_levels=3),
    }
