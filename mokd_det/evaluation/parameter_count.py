"""How many parameters a model has, by part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

__all__ = ["ParameterCount", "count_parameters"]


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of a model; a tensor that occurs twice counts once.

    Attributes:
        total: of its parameters.
        trainable: of those that are trained. The rest, in a ViDT, are tensors of the published checkpoints that never
            reach the output.
        by_part: of each direct child, and of the model's own parameters under "".
        megabytes: of parameters and buffers in memory, 10⁶ bytes.
    """

    total: int
    trainable: int
    by_part: dict[str, int]
    megabytes: float


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model."""
    by_part: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        by_part[part if rest else ""] += parameter.numel()
    tensors = [*model.parameters(), *model.buffers()]
    return ParameterCount(
        total=sum(by_part.values()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        by_part=dict(by_part),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    )
