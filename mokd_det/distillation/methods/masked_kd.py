"""MaskedKD: the teacher sees only the patches that the student attends to (Son et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import ClassWiseMethod
from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import Specs, Taps, TapValue
from mokd_det.distillation.vectors import vector_pair
from mokd_det.errors import ConfigError, IncompatibleModelsError

__all__ = ["MaskedKD", "most_attended"]


class MaskedKD(ClassWiseMethod):
    """``kl``: KL(teacher ‖ student) at temperature 1, the teacher seeing ``keep`` patches per image.

    Kept are the patches with the largest attention of the student's CLS token in its last layer (mean over heads), with
    their position embeddings. So the teacher runs after the student, once per batch: the second forward of the
    amortised balancer reuses its output. The student is a timm ViT, the teacher one or a CaiT, with equal numbers of
    patches. Published: 98 of 196 patches, weight 0.5 beside 0.5 of the cross-entropy.

    The tap "attention" is the student's alone, in one of two forms: its last ``attn.qkv`` layer as tokens (B, N, 3 C),
    from which the one row of attention is computed here, or, where attention is not fused, its ``attn.attn_drop`` as
    maps (B, heads, N, N).

    Args:
        keep: patches that the teacher sees.

    Raises:
        ConfigError: no patch left.
    """

    required_taps = ("logits", "attention")
    tap_kinds = {"logits": "vectors"}
    student_only_taps = ("attention",)
    teacher_after_student = True

    def __init__(self, keep: int = 98) -> None:
        super().__init__()
        if keep < 1:
            raise ConfigError(f"MaskedKD: keep={keep} leaves the teacher no patch; use at least 1")
        self.keep = keep
        self.num_patches = 0
        # In a tuple: the student's own module must not become the method's.
        self._attention: tuple[Any] = (None,)

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Find both transformers: timm's, with equal numbers of patches, or an IncompatibleModelsError."""
        super().inspect(student, teacher)
        assert teacher is not None  # the Distiller refuses a method that needs one without
        vit_s, vit_t = _vit("student", student), _vit("teacher", teacher)
        _droppable("student", vit_s, cait=False), _droppable("teacher", vit_t)
        patches = [int(vit.patch_embed.num_patches) for vit in (vit_s, vit_t)]
        if patches[0] != patches[1]:
            raise IncompatibleModelsError(
                f"MaskedKD: the student has {patches[0]} patches and the teacher {patches[1]}; a patch "
                f"of one must be a patch of the other"
            )
        self.num_patches = patches[1]
        if self.keep > self.num_patches:
            raise ConfigError(f"MaskedKD: keep={self.keep} of {self.num_patches} patches")
        self._attention = (vit_s.blocks[-1].attn,)

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        self.require_equal_classes(student["logits"], teacher["logits"])

    def teacher_pass(self, teacher: nn.Module, student: Taps) -> AbstractContextManager[None]:
        """Drop tokens of the teacher for its run; all are kept in a pass without a student."""
        if "attention" not in student:
            return nullcontext()
        attention = class_attention(student["attention"], self._attention[0])
        kept = most_attended(attention[..., -self.num_patches :], self.keep)
        return _token_dropping(_vit("teacher", teacher), kept)

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        log_s, log_t = (logits.log_softmax(1) for logits in vector_pair("logits", student, teacher))
        # Rounding leaves the divergence of equal rows a little below 0; a negative loss has no logarithm.
        return {"kl": (log_t.exp() * (log_t - log_s)).sum(1).mean().clamp_min(0)}


def most_attended(attention: Tensor, keep: int) -> Tensor:
    """The patches with the largest attention (B, heads, patches), mean over heads: (B, keep) int64, ascending."""
    return attention.mean(1).topk(keep, dim=1).indices.sort(1).values


@torch.no_grad()
def class_attention(value: TapValue, module: Any) -> Tensor:
    """Attention of the first token to all, (B, heads, N), from the tap "attention".

    Args:
        value: (B, N, 3 C), queries, keys and values of all heads; or one map (B, heads, N, N), the attention itself.
        module: timm's attention, which knows heads, scale and norms.
    """
    if isinstance(value, list):
        return full_precision(value[-1].tensor[:, :, 0])
    batch, count, _ = value.shape
    query, key, _ = value.reshape(batch, count, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = module.q_norm(query[:, :, :1]), module.k_norm(key)
    scores = full_precision(query) @ full_precision(key).transpose(-1, -2)  # (B, heads, 1, N)
    return (scores * module.scale).softmax(-1)[:, :, 0]


@contextmanager
def _token_dropping(vit: Any, kept: Tensor) -> Iterator[None]:
    """Let the transformer go on with its prefix tokens and the patches ``kept`` (B, keep) only."""

    def drop(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        indices = kept[..., None].expand(-1, -1, tokens.shape[-1])
        return torch.cat((tokens[:, :prefix], tokens[:, prefix:].gather(1, indices)), 1)

    layer, prefix = _droppable("teacher", vit)
    handle = layer.register_forward_hook(drop)
    try:
        yield
    finally:
        handle.remove()


def _vit(who: str, model: nn.Module) -> Any:
    """The timm transformer that a model is, or has as its ``network``."""
    vit = getattr(model, "network", model)
    if not hasattr(vit, "blocks") or not hasattr(getattr(vit, "patch_embed", None), "num_patches"):
        raise _no_vit(who, vit)
    return vit


def _droppable(who: str, vit: Any, cait: bool = True) -> tuple[nn.Module, int]:
    """The module between position embedding and blocks, and how many tokens come before the patches there."""
    if hasattr(vit, "patch_drop") and hasattr(vit, "num_prefix_tokens"):
        return vit.patch_drop, int(vit.num_prefix_tokens)
    if cait and hasattr(vit, "blocks_token_only") and hasattr(vit, "pos_drop"):
        return vit.pos_drop, 0  # CaiT's class token joins after the blocks
    raise _no_vit(who, vit)


def _no_vit(who: str, vit: Any) -> IncompatibleModelsError:
    return IncompatibleModelsError(
        f"MaskedKD needs timm ViTs (its teacher may be a CaiT), whose patches can be dropped one by one, but the {who} "
        f"is a {type(vit).__name__}"
    )
