"""An image classifier in Detectron2's form: any timm network, with taps where it can give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from mokd_det.classification.batch import ClassificationBatch
from mokd_det.classification.timm_taps import has_separate_features, is_plain_transformer, timm_tap_specs
from mokd_det.contract import TrainingTask
from mokd_det.errors import ConfigError, DatasetError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapPoint, TapSpec

__all__ = ["ImageClassifier"]

_PREFIX = "network."
_LOSS_PREFIX = "loss."


def _strip_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """The network's tensors under the network's own names."""
    inner = prefix + _PREFIX
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key[len(inner) :]] = state.pop(key)


def _add_prefix(state: dict[str, Any], prefix: str, *_: Any) -> None:
    inner = prefix + _PREFIX
    kept = (inner, prefix + _LOSS_PREFIX)
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(kept)]:
        state[inner + key[len(prefix) :]] = state.pop(key)


@META_ARCH_REGISTRY.register()
class ImageClassifier(TrainingTask):
    """A network with its loss, and taps for distillation.

    Training: :class:`~mokd_det.classification.ClassificationBatch` → ``{"loss_cls": scalar}``; evaluation: the same, or
    a tensor of images → logits (B, K). ``state_dict()`` has the network's own names, so the weights of a trained
    student load into ``timm.create_model`` and published weights load here.

    Taps, each where the network can give it, each free of cost unless a method reads it:

    - "logits", vectors: of the class head in training, in evaluation what the network predicts.
    - "dist_logits", vectors: of the distillation head (networks with a distillation token).
    - "pooled", vectors: mean of the patch tokens after the final norm, or of the last map (VkD's features).
    - "maps", maps: the stages of a pyramid, one per stride; of a plain transformer the patch tokens after the final
      norm, as a map.
    - "tokens", tokens (L, B, N, C): the patch tokens after each of a plain transformer's L blocks.

    A network that brings a ``taps`` ModuleDict of :class:`~mokd_det.layers.TapPoint` (as a ViDT does) offers those by
    their names. Every module of the network can be tapped by its path besides, ``network.blocks.5``.

    A network with two heads (timm's distilled DeiT and LeViT) trains the class head on the labels and the other one on
    what a method compares "dist_logits" with; predictions are the mean of both, as DeiT's are.

    Args:
        network: (B, 3, H, W) → logits (B, K): a timm model, or any other module.
        num_classes: K.
        loss: (logits float32, targets) → scalar; None: cross-entropy with class indices or, for mixed and smoothed
            labels, with distributions.
        separate_heads: of a network with two heads; False trains their mean on the labels, which is how such a network
            is trained alone.

    Raises:
        ConfigError: the network has other classes.
    """

    num_classes: int

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        separate_heads: bool = True,
    ) -> None:
        super().__init__()
        found = getattr(network, "num_classes", num_classes)
        if found != num_classes:
            raise ConfigError(
                f"the network {type(network).__name__} has num_classes={found}, its classifier is told {num_classes}; "
                f"they must agree"
            )
        self.network = network
        self.num_classes = num_classes
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self._two_heads = hasattr(network, "head_dist") and hasattr(network, "set_distilled_training")
        self._separate_heads = separate_heads and self._two_heads
        offered = getattr(network, "taps", None)
        points = dict(offered) if isinstance(offered, nn.ModuleDict) else {}
        self._own_taps = frozenset(points)
        # A network that marks its taps itself does so in its forward.
        self._by_parts = not points and has_separate_features(network)
        self._token_like = self._by_parts and is_plain_transformer(network)
        specs = {"logits": TapSpec("vectors", (num_classes,))}
        if self._by_parts:
            specs.update(timm_tap_specs(network))
        if self._separate_heads:
            specs["dist_logits"] = TapSpec("vectors", (num_classes,))
            network.set_distilled_training(True)
            # A bound method is copied with its object, so a copy of the classifier taps its own head.
            network.head_dist.register_forward_hook(self._tap_distillation_head)
        points.update((name, TapPoint(spec)) for name, spec in specs.items() if name not in points)
        self.taps = nn.ModuleDict(points)
        self._register_state_dict_hook(_strip_prefix)
        self._register_load_state_dict_pre_hook(_add_prefix)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def missing_tap_hint(self, name: str) -> str:
        """Why a tap that others offer is not here; "" if there is no more to say than that."""
        network = type(self.network).__name__
        if name == "dist_logits" and self._two_heads:
            return "separate_heads=False joins the distillation head with the class head"
        if name == "dist_logits":
            return (
                f"the network ({network}) has no distillation token: take a distilled one "
                f"(deit_tiny_distilled_patch16_224), or compare 'logits'"
            )
        if name in ("pooled", "maps", "tokens"):
            return f"the network ({network}) does not give it; tap a module of it by its path"
        return ""

    def no_weight_decay(self) -> set[str]:
        """Names in :meth:`named_parameters` of what the network wants no weight decay for, besides vectors."""
        listed: set[str] = getattr(self.network, "no_weight_decay", set)()
        return {_PREFIX + name for name in listed}

    def prepare_batch(self, batch: ClassificationBatch) -> ClassificationBatch:
        """The batch on the model's device, checked."""
        self._check(batch)
        return batch.to(self.device)

    def forward(self, batch: ClassificationBatch | Tensor) -> dict[str, Tensor] | Tensor:
        """Losses in training, logits in evaluation.

        Raises:
            DatasetError: targets of other classes, or of another number than the images.
            ConfigError: images of a size that the network is not built for.
            IncompatibleModelsError: nothing trains the distillation head.
        """
        if isinstance(batch, Tensor):
            images = batch.to(self.device)
        else:
            # A teacher may know other classes than the targets are of.
            batch = self.prepare_batch(batch) if self.training else batch.to(self.device)
            images = batch.images
        self._check_size(images)
        outputs = self._outputs(images)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if "logits" not in self._own_taps:
            logits = self.taps["logits"](logits)
        if not self.training:
            return logits
        if isinstance(batch, Tensor):
            raise TypeError("training needs a ClassificationBatch; a tensor of images has no targets")
        if self._separate_heads and not self._is_read("dist_logits"):
            raise IncompatibleModelsError(
                f"nothing trains the distillation head of {type(self.network).__name__}: let a method read the tap "
                f"'dist_logits', or train the mean of both heads with separate_heads=False"
            )
        return {"loss_cls": self.loss(logits.float(), batch.targets)}

    def _outputs(self, images: Tensor) -> Any:
        if not self._by_parts:
            return self.network(images)
        network: Any = self.network
        if self._token_like and self._is_read("tokens"):
            features, levels = network.forward_intermediates(images, output_fmt="NLC")
            self.taps["tokens"](torch.stack(levels))
        elif not self._token_like and self._is_read("maps"):
            features, levels = network.forward_intermediates(images, output_fmt="NCHW")
            self.taps["maps"](self._pyramid(levels))
        else:
            features = network.forward_features(images)
        if self._token_like and self._is_read("maps"):
            self.taps["maps"](self._as_map(features, images))
        if self._is_read("pooled"):
            self.taps["pooled"](self._pool(features))
        return network.forward_head(features)

    def _is_read(self, name: str) -> bool:
        """Whether a hook waits for one of the taps that are made here."""
        return name in self.taps and name not in self._own_taps and bool(self.taps[name]._forward_hooks)

    def _tap_distillation_head(self, head: nn.Module, inputs: Any, output: Tensor) -> None:
        self.taps["dist_logits"](output)

    def _pyramid(self, levels: list[Tensor]) -> list[FeatureMap]:
        # Several stages may share a stride; the deepest one stands for it.
        last = {
            info["reduction"]: level for info, level in zip(self.network.feature_info, levels, strict=True)
        }
        return [FeatureMap(last[stride], None, stride) for stride in self.taps["maps"].spec.strides]

    def _patch_tokens(self, features: Tensor) -> Tensor:
        return features[:, getattr(self.network, "num_prefix_tokens", 0) :]

    def _as_map(self, features: Tensor, images: Tensor) -> list[FeatureMap]:
        (stride,) = self.taps["maps"].spec.strides
        tokens = self._patch_tokens(features)
        height, width = (side // stride for side in images.shape[-2:])
        tensor = tokens.transpose(1, 2).reshape(images.shape[0], -1, height, width)
        return [FeatureMap(tensor, None, stride)]

    def _pool(self, features: Tensor) -> Tensor:
        if features.ndim == 3:
            return self._patch_tokens(features).mean(1)
        is_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return features.mean((1, 2) if is_last else (2, 3))

    def _check(self, batch: ClassificationBatch) -> None:
        images, targets = batch.images, batch.targets
        if targets.shape[0] != images.shape[0]:
            raise DatasetError(f"a batch has {images.shape[0]} images and {targets.shape[0]} targets")
        if targets.ndim == 2 and targets.shape[1] != self.num_classes:
            raise DatasetError(
                f"the targets are distributions over {targets.shape[1]} classes, the classifier has "
                f"{self.num_classes}; num_classes must be that of the data set (and of its mixup)"
            )
        # On the device the comparison would wait for it; the loader's batches come from the host.
        if targets.ndim == 1 and targets.device.type == "cpu" and targets.numel():
            position = int(targets.argmax())
            if not 0 <= int(targets.min()) <= int(targets[position]) < self.num_classes:
                wrong = position if targets[position] >= self.num_classes else int(targets.argmin())
                raise DatasetError(
                    f"image '{batch.names[wrong]}' is of class {int(targets[wrong])}, the classifier has "
                    f"num_classes={self.num_classes} (0 to {self.num_classes - 1})"
                )

    def _check_size(self, images: Tensor) -> None:
        embedding = getattr(self.network, "patch_embed", None)
        size = getattr(embedding, "img_size", None)
        found = tuple(images.shape[-2:])
        if size is not None and getattr(embedding, "strict_img_size", False) and tuple(size) != found:
            raise ConfigError(
                f"images of {found[0]} x {found[1]} pixels, but {type(self.network).__name__} is built for "
                f"{size[0]} x {size[1]}; build it with img_size={found[0]}, or resize the images"
            )
