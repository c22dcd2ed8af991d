"""Which DET tokens of several detectors look for the same object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mokd_det.visualization.attention_detector import DetectorAttention
from mokd_det.visualization.predictions import box_overlaps

__all__ = ["ObjectTokens", "confident_tokens", "group_tokens"]

_SAME_PLACE = 0.5


@dataclass(frozen=True)
class ObjectTokens:
    """An object that at least one detector is confident of.

    Attributes:
        box: (4,) xyxy, of the first detector that found it.
        tokens: per detector the index of its DET token, or None.
    """

    box: np.ndarray
    tokens: tuple[int | None, ...]


def confident_tokens(attention: DetectorAttention, threshold: float) -> list[int]:
    """DET tokens whose best class has at least this probability, best first."""
    order = np.argsort(-attention.scores, kind="stable")
    return [int(token) for token in order if attention.scores[token] >= threshold]


def group_tokens(detectors: Sequence[DetectorAttention], threshold: float) -> list[ObjectTokens]:
    """One entry for every object that a confident DET token of any detector predicts.

    The first detector's tokens are the first objects, best first. A token of another detector belongs to the object
    that its box covers best with IoU ≥ 0.5, one of its own class before all others, if no better token of the same
    detector has it already; else it is an object of its own.
    """
    objects: list[tuple[np.ndarray, int, list[int | None]]] = []
    for number, attention in enumerate(detectors):
        before = len(objects)
        for token in confident_tokens(attention, threshold):
            box, label = attention.boxes[token], int(attention.classes[token])
            free = [
                (label == other_label, overlap, entry)
                for other_box, other_label, entry in objects[:before]
                if entry[number] is None
                and (overlap := float(box_overlaps(box[None], other_box[None])[0, 0])) >= _SAME_PLACE
            ]
            if free:
                max(free, key=lambda candidate: candidate[:2])[2][number] = token
            else:
                entry: list[int | None] = [None] * len(detectors)
                entry[number] = token
                objects.append((box, label, entry))
    return [ObjectTokens(box, tuple(entry)) for box, _, entry in objects]
