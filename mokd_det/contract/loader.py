"""What the training asks of the loader of its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from mokd_det.contract.unnoticed import refuse_unnoticed

__all__ = ["PlainLoader", "TrainingLoader", "as_training_loader"]

Batch = TypeVar("Batch")


class TrainingLoader(Generic[Batch]):
    """An endless iterable of batches; everything but the iteration has a default.

    Attributes:
        data_name: of the training data, for messages.
        class_names: of the classes in the data, which the model and the evaluation must have; None: not known.
    """

    data_name: str = "the training data"

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")

    @property
    def class_names(self) -> Sequence[str] | None:
        return None

    @property
    def augments_endlessly(self) -> bool:
        """Images never come back as they were, so nothing that is computed from them can be kept."""
        return False

    def start_from(self, batch_index: int) -> None:
        """Let the following ``iter()`` begin at this batch, counted from the start of training; by default it begins
        anew, so a resumed training sees the first batches again."""

    def fingerprint(self) -> str | None:
        """A digest of which image is at which index; None: not known."""
        return None


class PlainLoader(TrainingLoader[Any]):
    """Any iterable under the contract."""

    def __init__(self, batches: Iterable[Any]) -> None:
        refuse_unnoticed(batches, TrainingLoader, PlainLoader)
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def as_training_loader(loader: Iterable[Any]) -> TrainingLoader[Any]:
    """The loader itself if it is a :class:`TrainingLoader`, else a :class:`PlainLoader` of it (which may refuse it)."""
    return loader if isinstance(loader, TrainingLoader) else PlainLoader(loader)
