"""The #Params column of MoKD's Table 1 (Hayder et al. 2025), to compare our models with."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TABLE_1", "PublishedSize", "size_remark"]


@dataclass(frozen=True)
class PublishedSize:
    """A row of the table.

    Attributes:
        model: as this package calls it.
        text: what is printed.
        unit: parameters per unit of the last printed digit.
        value: printed number in that unit.
    """

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
    """Whether a count agrees with the printed figure, in words.

    Args:
        parameters: of our model with the published 91 rows per class head.
        published: the row of its variant.
    """
    exact = parameters / published.unit
    if round(exact) == published.value:
        return "equal when rounded"
    rounded = f"{exact:.2f} rounds to {round(exact)}"
    if -(-parameters // published.unit) == published.value:
        return f"{rounded}; the printed figure is the next whole one above"
    return f"differs: {rounded}"
