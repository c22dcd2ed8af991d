"""A detector's decoder, run again on the features of one forward with queries of somebody else's choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["HasQueryDecoder", "Queries", "QueryDecoder", "take_rows"]


@dataclass(frozen=True)
class Queries:
    """What enters a decoder of reference points.

    Attributes:
        content: (B, N, d).
        reference: points (B, N, 2) or boxes (B, N, 4), cx, cy, w, h, relative to the image.
        position: (B, N, d); None: the decoder makes it of the reference.
    """

    content: Tensor
    reference: Tensor
    position: Tensor | None = None


class QueryDecoder(ABC):
    """Records what a decoder reads in one forward, and runs it again.

        with model.query_decoder() as decoder:
            model(batch)
        logits, boxes = decoder(decoder.queries)  # what the model itself predicted, but for dropout

    Args:
        module: the decoder, whose first call in the ``with`` block is recorded.
        channels: d.
        takes_position: whether queries need a position.
    """

    def __init__(self, module: nn.Module, channels: int, takes_position: bool) -> None:
        self.channels, self.takes_position = channels, takes_position
        self._module = module
        self._handle: Any = None
        self._recorded: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __enter__(self) -> QueryDecoder:
        self._recorded = None
        self._handle = self._module.register_forward_pre_hook(self._record, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._recorded is None:
            self._recorded = inputs, named

    @property
    def recorded(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments of the decoder in that forward."""
        if self._recorded is None:
            raise RuntimeError(f"the decoder {type(self._module).__name__} did not run in this forward")
        return self._recorded

    @property
    @abstractmethod
    def queries(self) -> Queries:
        """The model's own of that forward."""

    @abstractmethod
    def __call__(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """Decode the features of that forward.

        Returns:
            Logits (L, B, N, K) and boxes (L, B, N, 4), cx, cy, w, h relative to the image, of every level.
        """

    def queries_at(self, points: Tensor) -> Queries:
        """Queries with reference points (B, M, 2), x and y relative to the image: the nearest own ones, moved there."""
        own = self.queries
        centres = own.reference[..., :2].detach()
        nearest = torch.cdist(points.to(centres), centres).argmin(-1)  # (B, M)
        reference = points.to(own.reference)
        if own.reference.shape[-1] == 4:
            reference = torch.cat((reference, take_rows(own.reference, nearest)[..., 2:]), -1)
        position = None if own.position is None else take_rows(own.position, nearest)
        return Queries(take_rows(own.content, nearest), reference, position)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """The rows (…, B, N, C) at the positions (B, M): (…, B, M, C)."""
    index = index[..., None].expand(*rows.shape[:-2], index.shape[-1], rows.shape[-1])
    return rows.gather(-2, index)


@runtime_checkable
class HasQueryDecoder(Protocol):
    """A detector whose decoder can be run with any queries."""

    def query_decoder(self) -> QueryDecoder | None:
        """A new recorder of its decoder; None if this one has none that takes queries."""
