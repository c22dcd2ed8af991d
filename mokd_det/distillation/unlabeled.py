"""Distillation on images that nobody has annotated, beside the labelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mokd_det.contract import PreparedBatch
from mokd_det.distillation.distiller import DistillationBatch, Distiller

__all__ = ["UnlabeledDistiller"]

_LABELED, _UNLABELED = "loss_distill_", "loss_unlabeled_"


@dataclass(frozen=True)
class _TwoParts(PreparedBatch):
    """A whole batch, and its labelled and its unlabelled part as the Distiller prepares them."""

    labeled: DistillationBatch | None = None
    unlabeled: DistillationBatch | None = None

    @property
    def side_events(self) -> tuple[torch.cuda.Event, torch.cuda.Event] | None:
        return None if self.labeled is None else self.labeled.side_events


class UnlabeledDistiller(Distiller):
    """A :class:`Distiller` of batches in which some inputs are marked as "unlabeled".

    The labelled inputs give its losses as ever. The unlabelled ones go through student and teacher by themselves, and
    the same method compares them: ``loss_unlabeled_<term>``, meant to be an objective of its own
    (``unlabeled=["loss_unlabeled_*"]``), so that the balancer weighs it against the other two (K = 3). Of the student's
    own losses nothing is taken from them: they have no truth. BatchNorms of a student see both parts.

    A batch without unlabelled inputs is the Distiller's.
    """

    @torch.no_grad()
    def prepare_batch(self, batched_inputs: Any) -> DistillationBatch | _TwoParts:
        marked = [isinstance(sample, Mapping) and bool(sample.get("unlabeled")) for sample in batched_inputs]
        if not any(marked):
            return super().prepare_batch(batched_inputs)
        labeled, unlabeled = (
            super(UnlabeledDistiller, self).prepare_batch(
                [
                    sample
                    for sample, is_marked in zip(batched_inputs, marked, strict=True)
                    if is_marked is wanted
                ]
            )
            for wanted in (False, True)
        )
        taps = labeled.teacher_taps | {f"unlabeled/{name}": t for name, t in unlabeled.teacher_taps.items()}
        return _TwoParts(batched_inputs, taps, labeled, unlabeled)

    def forward(self, batch: Any) -> Any:
        if not self.training:
            return super().forward(batch.inputs if isinstance(batch, _TwoParts) else batch)
        prepared = batch if isinstance(batch, PreparedBatch) else self.prepare_batch(batch)
        if not isinstance(prepared, _TwoParts):
            return super().forward(prepared)
        losses = super().forward(prepared.labeled)
        taps = self._student_taps
        others = super().forward(prepared.unlabeled)
        self._student_taps = [*taps, *self._student_taps]
        return losses | {
            _UNLABELED + name.removeprefix(_LABELED): value
            for name, value in others.items()
            if name.startswith(_LABELED)
        }

    @property
    def signed_losses(self) -> tuple[str, ...]:
        signed = super().signed_losses
        return (*signed, *(_UNLABELED + name.removeprefix(_LABELED) for name in signed))
