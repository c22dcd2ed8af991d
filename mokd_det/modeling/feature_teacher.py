"""Vision transformers as teachers of features alone, and several teachers at once."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from mokd_det.errors import CheckpointError, ConfigError
from mokd_det.layers import FeatureMap, TapPoint, TapSpec
from mokd_det.modeling.backbone.base import resize_mask
from mokd_det.modeling.transformers_family import IMAGENET_MEAN, IMAGENET_STD
from mokd_det.modeling.transformers_source import Source, load_backbone, one_line, read_processor

__all__ = ["FeatureTeacher", "SeveralTeachers"]


@META_ARCH_REGISTRY.register()
class FeatureTeacher(nn.Module):
    """A timm or transformers ViT (DINOv2, DINOv3, any with a grid of patches) whose patches are maps for a student.

    It needs no labels and no boxes. Its tap ``patch`` is one map (B, C, H / stride, W / stride): images are resized so
    that a patch of the ViT covers ``stride`` pixels of the student's input.

    Args:
        source: a folder of ``save_pretrained`` (transformers), a folder of timm's (config.json with "architecture"), a
            transformers configuration with ``model_type`` (random weights), or a hub id.
        stride: of the student's map that it teaches.
        image_size: side or (height, width) that a student resizes every image to itself; None: images as in the batch.
        pixel_mean, pixel_std: of RGB in 0..1; None: as the folder says, else ImageNet's.
        allow_download: take a hub id and fetch what is missing.

    Raises:
        ConfigError: a source that has no grid of patches, or an ``image_size`` that is no multiple of the stride.
        CheckpointError: weights that are missing or do not fit.
    """

    def __init__(
        self,
        source: Source,
        stride: int = 32,
        *,
        image_size: int | Sequence[int] | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        allow_download: bool = False,
    ) -> None:
        super().__init__()
        self.network, stated = _load(source, allow_download)
        self.stride, self.patch_size = stride, stated["patch_size"]
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = None if size is None else tuple(size)
        if stride < 1 or any(side < 1 or side % stride for side in self.image_size or ()):
            raise ConfigError(f"image_size={image_size} must be in multiples of stride={stride}")
        self.taps = nn.ModuleDict({"patch": TapPoint(TapSpec("maps", (stated["channels"],), (stride,)))})
        mean, std = pixel_mean or stated["mean"], pixel_std or stated["std"]
        self.register_buffer("pixel_mean", 255 * torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[FeatureMap]:
        """The tap's value for Detectron2's batch; only ``image`` is read."""
        images = [item["image"].to(self.pixel_mean.device, non_blocking=True) for item in batched_inputs]
        pixels = [(image - self.pixel_mean) / self.pixel_std for image in images]
        if self.image_size is not None:
            cells = tuple(side // self.stride for side in self.image_size)
            batch = torch.cat([self._resized(image[None], cells) for image in pixels])
            stretched = any(tuple(image.shape[-2:]) != self.image_size for image in images)
            return self.taps["patch"]([FeatureMap(self._grid(batch, cells), None, self.stride, stretched)])
        height, width = (
            -(-max(side) // self.stride) * self.stride
            for side in zip(*(i.shape[-2:] for i in images), strict=True)
        )
        cells = (height // self.stride, width // self.stride)
        canvas = pixels[0].new_zeros(len(pixels), 3, height, width)
        padding = torch.ones(len(pixels), height, width, dtype=torch.bool)
        for row, missing, image in zip(canvas, padding, pixels, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
            missing[: image.shape[1], : image.shape[2]] = False
        mask = resize_mask(padding, cells).to(canvas.device, non_blocking=True) if padding.any() else None
        patches = self._grid(self._resized(canvas, cells), cells)
        return self.taps["patch"]([FeatureMap(patches, mask, self.stride)])

    def _resized(self, pixels: Tensor, cells: tuple[int, ...]) -> Tensor:
        size = tuple(count * self.patch_size for count in cells)
        if tuple(pixels.shape[-2:]) == size:
            return pixels
        return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)

    def _grid(self, pixels: Tensor, cells: tuple[int, ...]) -> Tensor:
        """Patches of the last layer as a map; classes, registers and the like come before them."""
        if hasattr(self.network, "forward_features"):
            tokens = self.network.forward_features(pixels)
        else:
            accepted = inspect.signature(self.network.forward).parameters
            options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
            tokens = self.network(pixel_values=pixels, **options).last_hidden_state
        patches = cells[0] * cells[1]
        if tokens.ndim != 3 or tokens.shape[1] < patches:
            raise ConfigError(
                f"{type(self.network).__name__} gives {tuple(tokens.shape)} for {cells[0]} × {cells[1]} patches: no "
                "grid of patches, so it cannot teach maps"
            )
        return tokens[:, -patches:].transpose(1, 2).unflatten(2, cells)


@META_ARCH_REGISTRY.register()
class SeveralTeachers(nn.Module):
    """Teachers that see the same batch; a tap of one is ``"<name>.taps.<tap>"`` (or the path of any of its modules).

    With one part of :class:`~mokd_det.distillation.methods.Combined` and one objective for each, K grows by one per
    teacher.

    Args:
        teachers: name → model, or a configuration of one.
    """

    def __init__(self, **teachers: nn.Module) -> None:
        super().__init__()
        if not teachers:
            raise ConfigError("SeveralTeachers has no teachers; give it name=model")
        for name, teacher in teachers.items():
            self.add_module(name, teacher)

    def forward(self, batched_inputs: Any) -> dict[str, Any]:
        """What each of them says: name → its output."""
        return {name: teacher(batched_inputs) for name, teacher in self.named_children()}


def _load(source: Source, allow_download: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and its patch size, channels and pixel statistics."""
    timm_config = {}
    if not isinstance(source, Mapping) and Path(str(source), "config.json").is_file():
        try:
            timm_config = json.loads(Path(str(source), "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"source='{source}': config.json is no JSON: {error}") from error
    if "architecture" in timm_config:
        return _load_timm(str(source), str(timm_config["architecture"]))
    network, config, folder, where = load_backbone(source, allow_download)
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or not hasattr(config, "hidden_size"):
        raise ConfigError(
            f"{where}: {config.model_type} has no square patches (patch_size), so it cannot teach maps"
        )
    processor = {} if folder is None else read_processor(folder)
    return network, {
        "patch_size": patch,
        "channels": int(config.hidden_size),
        "mean": processor.get("image_mean") or IMAGENET_MEAN,
        "std": processor.get("image_std") or IMAGENET_STD,
    }


def _load_timm(folder: str, architecture: str) -> tuple[nn.Module, dict[str, Any]]:
    import timm

    # timm reports by nearly any exception class what it cannot build or load.
    with one_line(f"source='{folder}': timm cannot load {architecture} for any image size", CheckpointError):
        model = timm.create_model(
            f"local-dir:{folder}", pretrained=True, num_classes=0, dynamic_img_size=True
        )
    patch = model.patch_embed.patch_size
    return model, {
        "patch_size": patch if isinstance(patch, int) else patch[0],
        "channels": model.num_features,
        "mean": model.pretrained_cfg["mean"],
        "std": model.pretrained_cfg["std"],
    }
