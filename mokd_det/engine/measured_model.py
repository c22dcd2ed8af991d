"""A configuration's model with an input to measure it on; no weights, no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from mokd_det.classification.classifier import ImageClassifier
from mokd_det.config import load_config
from mokd_det.engine.inference_model import student_section
from mokd_det.errors import ConfigError

__all__ = ["build_for_memory", "build_measured", "example_inputs", "measured_section"]

SMALL = 64
"""Side in pixels of the image of a first pass."""


def measured_section(cfg: DictConfig, teacher: bool = False) -> DictConfig:
    """The student's section of a configuration, or its teacher's; a ConfigError where there is none."""
    if not teacher:
        return student_section(cfg)
    if "teacher" not in cfg.model:
        raise ConfigError("the configuration has no teacher: its model is no distillation's")
    return cfg.model.teacher


def build_measured(cfg: DictConfig, *, teacher: bool = False) -> nn.Module:
    """The model in eval mode with random weights: what it costs does not depend on them."""
    return instantiate(measured_section(cfg, teacher)).eval()


def example_inputs(
    cfg: DictConfig, model: nn.Module, batch_size: int, size: tuple[int, int], device: torch.device
) -> tuple[Any, ...]:
    """Positional arguments of the model's forward: random pixels.

    A classifier gets a tensor of images, any other model a list of dicts as Detectron2's do, with images in main memory
    as a loader gives them. A configuration whose model wants something else says so by a function of ``batch_size``,
    ``height``, ``width`` and ``device`` that returns the arguments: ``example_input = L(function)()``. ``size`` is
    (height, width) in pixels.
    """
    height, width = size
    own = cfg.get("example_input")
    if own is not None:
        call = own.copy()
        call.update(batch_size=batch_size, height=height, width=width, device=str(device))
        return tuple(instantiate(call))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch_size, 3, height, width), generator=generator, dtype=torch.uint8)
    if isinstance(model, ImageClassifier):
        return ((pixels / 127.5 - 1).to(device),)
    return ([{"image": image, "height": height, "width": width} for image in pixels],)


def build_for_memory(
    config_file: str, overrides: Sequence[str], teacher: bool, batch_size: int, size: tuple[int, int]
) -> tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    """A :data:`mokd_det.evaluation.peak_memory.Build` when the arguments are bound."""
    cfg = load_config(config_file, overrides, training=False)
    model = build_measured(cfg, teacher=teacher)
    device = torch.device("cpu")
    # A classifier takes one size only.
    small = size if isinstance(model, ImageClassifier) else (min(SMALL, size[0]), min(SMALL, size[1]))
    return (
        model,
        example_inputs(cfg, model, 1, small, device),
        example_inputs(cfg, model, batch_size, size, device),
    )
