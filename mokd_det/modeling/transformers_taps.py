"""The taps of Hugging Face detectors, with the same meaning in every family.

| tap | what it is |
| --- | --- |
| ``patch`` | the maps that the decoder attends to: after the encoder, or the projector where there is none |
| ``neck`` | the N queries when they first hold the image: the encoder's proposals, with their gradient, in two-stage \
families; after the first decoder layer (YOLOS: the first block) where queries start as learned constants |
| ``head`` | the N queries after every decoder layer, (L, B, N, C), as the prediction heads read them |
| ``logits`` | (B, N, K): the sigmoid is the probability of the class, also where the model has K + 1 by softmax |
| ``boxes`` | (B, N, 4): cx, cy, w, h relative to the unpadded image |
| ``head_logits``, ``head_boxes`` | RT-DETR and RT-DETRv2: what every decoder layer predicts, (L, B, N, …) |
| ``corners`` | D-FINE and DEIMv2: logits of the 4 sides' distributions over the bins, side by side, (B, N, 4 bins) |

Denoising queries and all groups but the first are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers import FeatureMap, TapSpec
from mokd_det.modeling.backbone.base import resize_mask
from mokd_det.modeling.query_decoder import take_rows
from mokd_det.modeling.transformers_family import Family

__all__ = ["READERS", "TapReader", "class_logits", "recorded"]


def class_logits(logits: Tensor, softmax: bool) -> Tensor:
    """Logits (…, K) whose sigmoid is each class's probability.

    Of K + 1 classes by ``softmax``, "no object" last: log p − log(1 − p) = z_k − log Σ_{j ≠ k} exp z_j.
    """
    if not softmax:
        return logits
    classes = logits.shape[-1]
    others = logits[..., None, :].expand(*logits.shape[:-1], classes - 1, classes)
    own = torch.eye(classes - 1, classes, dtype=torch.bool, device=logits.device)
    return logits[..., :-1] - others.masked_fill(own, float("-inf")).logsumexp(-1)


class TapReader:
    """Reads the taps of one model (transformers' ``…ForObjectDetection``) of a family."""

    modules: tuple[str, ...] = ()
    """Paths of the modules whose outputs it needs; "x.*" stands for the members of a list."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model, self.family = model, family
        self.config: Any = model.config
        self.channels, self.strides = self.maps()
        self.paths = [path for pattern in self.modules for path in _expand(model, pattern)]

    # --- what a family says ---

    def maps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels and strides of ``patch``."""
        raise NotImplementedError

    @property
    def queries(self) -> int:
        """N."""
        return int(self.config.num_queries)

    @property
    def width(self) -> int:
        """C of the queries."""
        return int(self.config.d_model)

    @property
    def levels(self) -> int:
        """L."""
        return int(self.config.decoder_layers)

    def patch(self, output: Any, seen: Mapping[str, Any]) -> list[Tensor]:
        """The maps (B, C, H, W)."""
        raise NotImplementedError

    def neck(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        """(B, N, C)."""
        return self.head(output, seen)[0]

    def head(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        """(L, B, N, C)."""
        raise NotImplementedError

    def own_queries(self, output: Any) -> slice:
        """Which queries of the output are the detector's, without denoising and further groups."""
        return slice(None)

    # --- what all share ---

    def specs(self) -> dict[str, TapSpec]:
        """Descriptions of all taps."""
        classes, queries, width = int(self.config.num_labels), self.queries, self.width
        return {
            "patch": TapSpec("maps", self.channels, self.strides),
            "neck": TapSpec("tokens", (width,), num_tokens=queries),
            "head": TapSpec("tokens", (width,), num_tokens=queries, num_levels=self.levels),
            "logits": TapSpec("tokens", (classes,), num_tokens=queries),
            "boxes": TapSpec("tokens", (4,), num_tokens=queries),
        }

    def of_levels(self, values: Tensor, output: Any) -> Tensor:
        """(B, L, N', C) with all queries → (L, B, N, C) with the detector's own."""
        return values.transpose(0, 1)[:, :, self.own_queries(output)]

    def predictions(self, output: Any) -> tuple[Tensor, Tensor]:
        """The detector's own logits, as the model gives them, and boxes."""
        own = self.own_queries(output)
        return output.logits[:, own], output.pred_boxes[:, own]

    def read(
        self, name: str, output: Any, seen: Mapping[str, Any], padding: Tensor | None, stretched: bool
    ) -> Tensor | list[FeatureMap]:
        """The value of a tap after a forward.

        Args:
            name: of the tap.
            output: of the model.
            seen: path → output of the modules of :attr:`paths`.
            padding: (B, H, W) bool, True on padding of the model's input; None: there is none.
            stretched: whether the images were resized by the detector itself.
        """
        if name == "patch":
            maps = self.patch(output, seen)
            masks = [None if padding is None else resize_mask(padding, tuple(m.shape[-2:])) for m in maps]
            return [
                FeatureMap(level, mask, stride, stretched)
                for level, mask, stride in zip(maps, masks, self.strides, strict=True)
            ]
        if name == "head_logits":
            return class_logits(self.of_levels(output.intermediate_logits, output), self.family.softmax)
        if name == "head_boxes":
            return self.of_levels(output.intermediate_reference_points, output)
        if name == "corners":
            return self.of_levels(output.intermediate_predicted_corners, output)[-1]
        if name == "logits":
            return class_logits(self.predictions(output)[0], self.family.softmax)
        if name == "boxes":
            return self.predictions(output)[1]
        return self.neck(output, seen) if name == "neck" else self.head(output, seen)


class _Hybrid(TapReader):
    """RT-DETR, RT-DETRv2, D-FINE, DEIMv2: hybrid encoder, selected proposals, denoising."""

    modules = ("model.encoder", "model.enc_output")

    def specs(self) -> dict[str, TapSpec]:
        specs = super().specs()
        if self.config.model_type in ("rt_detr", "rt_detr_v2"):
            for name, last in (("head_logits", specs["logits"]), ("head_boxes", specs["boxes"])):
                specs[name] = replace(last, num_levels=self.levels)
        else:  # the others predict by their last layer alone, outside of training
            bins = int(self.config.max_num_bins) + 1
            specs["corners"] = TapSpec("tokens", (4 * bins,), num_tokens=self.queries)
        return specs

    def maps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        strides = tuple(self.config.feat_strides)
        return (self.config.encoder_hidden_dim,) * len(strides), strides

    def patch(self, output: Any, seen: Mapping[str, Any]) -> list[Tensor]:
        encoded = seen["model.encoder"]
        return list(encoded["feature_maps" if "feature_maps" in encoded else "last_hidden_state"])

    def neck(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        # The decoder gets these detached; here their gradient is kept, as the encoder's own losses have it.
        return _proposals(seen["model.enc_output"], output.enc_outputs_class.max(-1).values, self.queries)

    def head(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        states = output.intermediate_hidden_states
        states = states if self.family.level_first else states.transpose(0, 1)
        return states[:, :, self.own_queries(output)]

    def own_queries(self, output: Any) -> slice:
        denoising = getattr(output, "denoising_meta_values", None)
        return slice(None) if denoising is None else slice(int(denoising["dn_num_split"][0]), None)


class _Grouped(TapReader):
    """LW-DETR and RF-DETR: a projector instead of an encoder, ``group_detr`` sets of queries in training."""

    modules = ("model", "model.backbone.projector")

    def maps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        patch = self.config.backbone_config.patch_size
        scales = getattr(self.config, "projector_scale_factors", None) or [1.0]
        return (self.config.d_model,) * len(scales), tuple(int(patch / scale) for scale in scales)

    def patch(self, output: Any, seen: Mapping[str, Any]) -> list[Tensor]:
        maps = seen["model.backbone.projector"]
        return [maps] if isinstance(maps, Tensor) else list(maps)

    def neck(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        return seen["model"].enc_outputs_class[:, self.own_queries(output)]

    def head(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        return output.intermediate_hidden_states[:, :, self.own_queries(output)]

    def own_queries(self, output: Any) -> slice:
        return slice(self.queries)


class _Deformable(TapReader):
    """Deformable DETR, one-stage and two-stage."""

    modules = ("model.encoder", "model.enc_output_norm")

    @property
    def queries(self) -> int:
        return int(self.config.two_stage_num_proposals if self.config.two_stage else self.config.num_queries)

    def maps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        strides = _backbone_strides(self.model)
        while len(strides) < self.config.num_feature_levels:
            strides.append(strides[-1] * 2)
        return (self.config.d_model,) * len(strides), tuple(strides)

    def patch(self, output: Any, seen: Mapping[str, Any]) -> list[Tensor]:
        sizes = [tuple(size) for size in seen["model.encoder.spatial_shapes_list"]]
        tokens = seen["model.encoder"].last_hidden_state.split([height * width for height, width in sizes], 1)
        return [_as_map(level, size) for level, size in zip(tokens, sizes, strict=True)]

    def neck(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        if not self.config.two_stage:
            return super().neck(output, seen)
        return _proposals(seen["model.enc_output_norm"], output.enc_outputs_class[..., 0], self.queries)

    def head(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        return output.intermediate_hidden_states.transpose(0, 1)


class _Detr(TapReader):
    """DETR, Table Transformer, Conditional and DAB-DETR: one map, queries that start as learned constants."""

    modules = ("model.encoder", "model.input_projection", "model.decoder", "model.decoder.layers.*")

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def queries(self) -> int:
        return int(self.config.num_queries) * max(1, getattr(self.config, "num_patterns", 0) or 0)

    def maps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.width,), (_backbone_strides(self.model)[-1],)

    def patch(self, output: Any, seen: Mapping[str, Any]) -> list[Tensor]:
        size = tuple(seen["model.input_projection"].shape[-2:])
        return [_as_map(seen["model.encoder"].last_hidden_state, size)]

    def head(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        layers = [_first(seen[path]) for path in self.paths if ".layers." in path]
        norm = self.model.get_submodule("model.decoder.layernorm")
        return torch.stack([*map(norm, layers[:-1]), seen["model.decoder"].last_hidden_state])


class _Yolos(TapReader):
    """YOLOS: a ViT whose last tokens are the queries."""

    modules = ("vit.embeddings.patch_embeddings.projection", "vit.encoder.layer.*")

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def queries(self) -> int:
        return int(self.config.num_detection_tokens)

    @property
    def levels(self) -> int:
        return int(self.config.num_hidden_layers)

    def maps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.width,), (int(self.config.patch_size),)

    def patch(self, output: Any, seen: Mapping[str, Any]) -> list[Tensor]:
        size = tuple(seen["vit.embeddings.patch_embeddings.projection"].shape[-2:])
        return [_as_map(output.last_hidden_state[:, 1 : -self.queries], size)]

    def head(self, output: Any, seen: Mapping[str, Any]) -> Tensor:
        norm = self.model.get_submodule("vit.layernorm")
        layers = [_first(seen[path])[:, -self.queries :] for path in self.paths if ".layer." in path]
        return torch.stack([*map(norm, layers[:-1]), output.last_hidden_state[:, -self.queries :]])


READERS: dict[str, type[TapReader]] = {
    "hybrid": _Hybrid,
    "grouped": _Grouped,
    "deformable": _Deformable,
    "detr": _Detr,
    "yolos": _Yolos,
}


@contextmanager
def recorded(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Outputs of modules during one forward: path → output, and "<path>.spatial_shapes_list" where it was given one."""
    seen: dict[str, Any] = {}

    def hook(path: str) -> Any:
        def keep(module: nn.Module, inputs: Any, given: Mapping[str, Any], output: Any) -> None:
            seen[path] = output
            if "spatial_shapes_list" in given:
                seen[f"{path}.spatial_shapes_list"] = given["spatial_shapes_list"]

        return keep

    handles = [
        model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _expand(model: nn.Module, pattern: str) -> list[str]:
    known = {name for name, _ in model.named_modules()}
    if not pattern.endswith(".*"):
        return [pattern] if pattern in known else []
    return [f"{pattern[:-2]}.{name}" for name, _ in model.get_submodule(pattern[:-2]).named_children()]


@torch.no_grad()
def _backbone_strides(model: nn.Module) -> list[int]:
    """Of the backbone's maps, measured on an empty image, as no configuration of a backbone tells all of them."""
    backbone = model.get_submodule("model.backbone")
    was_training, side = backbone.training, 128
    backbone.eval()
    try:
        first = next(backbone.parameters())
        pixels = first.new_zeros(1, 3, side, side)
        found = backbone(pixels, pixels.new_ones(1, side, side))
    finally:
        backbone.train(was_training)
    maps = [item[0] for item in (found[0] if isinstance(found, tuple) else found)]
    strides = [side // level.shape[-1] for level in maps]
    if any(side != stride * level.shape[-1] for stride, level in zip(strides, maps, strict=True)):
        raise IncompatibleModelsError(
            f"{type(model).__name__}: maps of {[tuple(m.shape) for m in maps]} for {side} pixels have no integer stride"
        )
    return strides


def _proposals(features: Tensor, scores: Tensor, count: int) -> Tensor:
    """The features (B, S, C) of the best ``count`` of the scores (B, S), as the model itself selects them."""
    return take_rows(features, scores.topk(count, dim=1).indices)


def _as_map(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, size)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
