"""How many parameters a model has, by part, and the #Params column of MoKD's Table 1 (Hayder et al. 2025)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

__all__ = ["TABLE_1", "ParameterCount", "PublishedSize", "count_parameters", "size_remark"]


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of a model's parameters; a tensor that occurs twice counts once.

    Attributes:
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


@dataclass(frozen=True)
class PublishedSize:
    """A row of Table 1: a model, what is printed of it, parameters per unit of the last printed digit, and the printed
    number in that unit."""

    model: str
    text: str
    unit: int
    value: int


TABLE_1 = (
    PublishedSize("ViDT-nano", "16M", 1_000_000, 16),
    PublishedSize("ViDT-tiny", "38M", 1_000_000, 38),
    PublishedSize("ViDT-small", "61M", 1_000_000, 61),
    PublishedSize("ViDT-base", "0.1B", 100_000_000, 1),
)
"""ViDT's sizes; distillation changes none of them."""


def size_remark(parameters: int, published: PublishedSize) -> str:
    """Whether the count of our model with the published 91 rows per class head agrees with the printed figure."""
    exact = parameters / published.unit
    if round(exact) == published.value:
        return "equal when rounded"
    rounded = f"{exact:.2f} rounds to {round(exact)}"
    if -(-parameters // published.unit) == published.value:
        return f"{rounded}; the printed figure is the next whole one above"
    return f"differs: {rounded}"
