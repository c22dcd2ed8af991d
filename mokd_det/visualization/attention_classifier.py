"""Where the class token of a vision transformer looks: recorded beside its forward pass, by hooks that are gone
afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from mokd_det.errors import ConfigError

__all__ = ["ClassifierAttention", "attention_rollout", "record_classifier_attention"]


@dataclass(frozen=True)
class ClassifierAttention:
    """Self-attention of all blocks of a vision transformer, for a batch.

    Attributes:
        blocks: per block (B, heads, T, T): rows of the tokens, class token first; each adds up to 1.
        num_prefix: tokens before the patches: class token, distillation token, registers.
        grid: (H, W) of the patches.
        output: what the run returned.
    """

    blocks: tuple[Tensor, ...]
    num_prefix: int
    grid: tuple[int, int]
    output: Any

    def class_token(self, block: int = -1) -> Tensor:
        """The class token's attention to the patches in one block, (B, H, W), mean over its heads; what is missing to a
        sum of 1 goes to the tokens before the patches. The head reads the class from the final block's (MoKD, Fig.
        D.5).
        """
        return self._patches(self.blocks[block].mean(1)[:, 0])

    def rollout(self, blocks: int | None = None) -> Tensor:
        """:func:`attention_rollout` of the first ``blocks`` blocks (None: all), as (B, H, W)."""
        return self._patches(attention_rollout(self.blocks[:blocks])[:, 0])

    def _patches(self, row: Tensor) -> Tensor:
        return row[:, self.num_prefix :].unflatten(1, self.grid)


def attention_rollout(blocks: Sequence[Tensor]) -> Tensor:
    """How much each token of the input reaches each token of the output (Abnar & Zuidema, ACL 2020, section 3).

    The residual connection counts as half of every block: the product of (mean over heads + I) / 2, last block first,
    of blocks (B, heads, T, T) is (B, T, T), rows adding up to 1.
    """
    total = None
    for weights in blocks:
        mean = weights.mean(1)
        mixed = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype)) / 2
        total = mixed if total is None else mixed @ total
    if total is None:
        raise ValueError("a rollout needs at least one block")
    return total


@torch.no_grad()
def record_classifier_attention(network: nn.Module, run: Callable[[], Any]) -> ClassifierAttention:
    """Keep the attention of a vision transformer while it runs.

    The model computes what it always does (a fused attention never has the weights); they are computed beside it,
    from the inputs of its attention layers.

    Args:
        network: a ViT or DeiT of timm with a class token that its head reads, in eval mode.
        run: calls the network once, itself (``lambda: network(images)``) or through a model that contains it.

    Raises:
        ConfigError: another network.
    """
    _check(network)
    if network.training:
        raise ValueError("the network must be in eval mode")
    with _recording(network) as records:
        output = run()
    if len(records.sizes) != 1:
        raise ValueError(
            f"the network was called {len(records.sizes)} times; its attention is that of one call"
        )
    height, width = records.sizes[0]
    patch_h, patch_w = to_2tuple(network.patch_embed.patch_size)
    # rounded up: some of timm's networks pad the image to whole patches
    grid = (-(-height // patch_h), -(-width // patch_w))
    tokens = records.weights[0].shape[-1]
    if network.num_prefix_tokens + grid[0] * grid[1] != tokens:
        raise ConfigError(
            f"{type(network).__name__} has {tokens} tokens, which are not {network.num_prefix_tokens} and one for each "
            f"of the {grid[0]} x {grid[1]} patches; its attention has no place in the image"
        )
    return ClassifierAttention(tuple(records.weights), network.num_prefix_tokens, grid, output)


@dataclass
class _Records:
    weights: list[Tensor] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def _recording(network: nn.Module) -> Iterator[_Records]:
    records = _Records()

    def keep_size(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        records.sizes.append((args[0].shape[-2], args[0].shape[-1]))

    def keep_weights(module: Attention, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        records.weights.append(_weights(module, *args, **kwargs))

    with ExitStack() as hooks:
        # timm's networks may be entered by forward_features, but every image passes here
        hooks.enter_context(network.patch_embed.register_forward_pre_hook(keep_size))
        for block in network.blocks:
            hooks.enter_context(block.attn.register_forward_pre_hook(keep_weights, with_kwargs=True))
        yield records


def _weights(
    module: Attention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """The softmax inside timm's attention layer, (B, T, C) -> (B, heads, T, T), on the CPU."""
    if attn_mask is not None or is_causal:
        raise ConfigError("attention under a mask is not drawn")
    batch, tokens, _ = x.shape
    qkv = module.qkv(x).view(batch, tokens, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = module.q_norm(qkv[0]), module.k_norm(qkv[1])
    # Rows of half precision would not add up to 1.
    logits = (query * module.scale @ key.transpose(-2, -1)).to(torch.promote_types(x.dtype, torch.float32))
    return logits.softmax(-1).cpu()


def _check(network: nn.Module) -> None:
    """Refuse a network whose class token's attention is not the plain one, or does not lead to the class."""
    name = type(network).__name__
    if isinstance(network, torch.nn.parallel.DistributedDataParallel):
        raise ValueError("give the bare module, not its data-parallel wrapper")
    blocks = getattr(network, "blocks", None)
    plain = (
        isinstance(blocks, (nn.Sequential, nn.ModuleList))
        and len(blocks) > 0
        and all(type(getattr(block, "attn", None)) is Attention for block in blocks)
    )
    if not plain or getattr(network, "cls_token", None) is None:
        raise ConfigError(
            f"{name} has no class token with plain attention that could be drawn; a ViT or DeiT of timm is needed (or, "
            "for detection, a ViDT)"
        )
    if network.global_pool != "token":
        raise ConfigError(
            f"{name} has global_pool={network.global_pool!r}: its head does not read the class token, whose attention "
            "says nothing then; global_pool='token' is needed"
        )
