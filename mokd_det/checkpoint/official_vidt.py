"""The published ViDT layout: box heads stand in it twice, class heads have a row per category id of COCO (91), not one
per contiguous class (80)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import torch
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from torch import Tensor

from mokd_det.errors import CheckpointError

__all__ = [
    "CATEGORY_ROWS",
    "CONTIGUOUS_ROWS",
    "contiguous_rows",
    "has_class_rows",
    "from_official",
    "is_official_layout",
    "to_official",
]

CATEGORY_ROWS = 91
"""Rows of a published head: category ids 0 to 90, of which 0 and ten more are no category."""

CONTIGUOUS_ROWS = 80
"""COCO's categories in Detectron2's order."""

_UNUSED_BIAS = -100.0  # a probability of 0 in every floating-point type

_CLASS_ROWS = re.compile(r"(class_embed\.\d+|transformer\.token_embed)\.(weight|bias)")

# The decoder refines with the detector's box heads, so the published module holds them in both places.
_COPY = "transformer.decoder.bbox_embed."
_HEADS = "bbox_embed."

# ViDT+'s head for mask coefficients: an auxiliary loss of the published training that this package does not have.
_NOT_OURS = "vector_embed."

_UNPUBLISHED = re.compile(r"transformer\.reference_grid|backbone\.patch_embed\.proj\.\d+\..*")


def is_official_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are weights as the published ViDT saves them."""
    return any(key.startswith(_COPY) for key in weights)


def from_official(
    weights: Mapping[str, Tensor], source: str, rows: Mapping[str, int]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Published weights under the names of :class:`mokd_det.modeling.ViDT`, and the published names of those that are
    left out.

    Args:
        weights: as published.
        source: how error messages name the file.
        rows: wanted number of rows of each class head's tensor; where that is 80 and the file has 91, the 80
            categories are picked.

    Raises:
        CheckpointError: the two copies of a box head differ.
    """
    converted: dict[str, Tensor] = {}
    dropped: list[str] = []
    for key, value in weights.items():
        name = _HEADS + key.removeprefix(_COPY) if key.startswith(_COPY) else key
        if name != key and name in weights:
            if not torch.equal(weights[name], value):
                raise CheckpointError(f"{source} is damaged: '{name}' and its copy '{key}' differ")
            dropped.append(key)
        elif key.startswith(_NOT_OURS):
            dropped.append(key)
        elif has_class_rows(name) and rows.get(name) == contiguous_rows(name) and len(value) == CATEGORY_ROWS:
            converted[name] = _from_category_rows(name, value)
        else:
            converted[name] = value
    return converted, tuple(dropped)


def to_official(weights: Mapping[str, Tensor], source: str, *, category_rows: bool) -> dict[str, Tensor]:
    """Weights of a ViDT as the published code saves and loads them.

    With ``category_rows`` heads of 80 classes get the 91 rows of COCO's category ids; the added classes are never
    predicted. ``source`` is how error messages name the file.

    Raises:
        CheckpointError: the model has parts that the published one lacks.
    """
    converted: dict[str, Tensor] = {}
    for key, value in weights.items():
        if _UNPUBLISHED.fullmatch(key):
            raise CheckpointError(
                f"{source} has no official layout: its tensor '{key}' belongs to a part that the published ViDT lacks"
            )
        if category_rows and has_class_rows(key) and len(value) == contiguous_rows(key):
            value = _to_category_rows(key, value)
        converted[key] = value
        if key.startswith(_HEADS):
            converted[_COPY + key.removeprefix(_HEADS)] = value
    return converted


def has_class_rows(key: str) -> bool:
    """Whether dimension 0 of the ViDT tensor of this name are the classes."""
    return _CLASS_ROWS.fullmatch(key) is not None


def contiguous_rows(key: str) -> int:
    """Rows of a head over contiguous COCO classes: 80; the patch-token classifier has "some object" before them."""
    return CONTIGUOUS_ROWS + key.startswith("transformer.token_embed")


@lru_cache(maxsize=1)
def _category_ids() -> Tensor:
    """COCO's category id of each contiguous class, (80,) int64."""
    contiguous: dict[int, int] = _get_builtin_metadata("coco")["thing_dataset_id_to_contiguous_id"]
    return torch.tensor(sorted(contiguous, key=contiguous.__getitem__))


def _from_category_rows(key: str, rows: Tensor) -> Tensor:
    """The rows of the 80 categories, (91, ...) -> (80, ...), or (81, ...) with row 0 for the token classifier."""
    picked = rows[_category_ids()]
    return picked if contiguous_rows(key) == CONTIGUOUS_ROWS else torch.cat((rows[:1], picked))


def _to_category_rows(key: str, rows: Tensor) -> Tensor:
    """Inverse of :func:`_from_category_rows`; the ids that are no category are never predicted.

    The unused rows of a weight are 0, those of a bias -100.
    """
    full = rows.new_full((CATEGORY_ROWS, *rows.shape[1:]), _UNUSED_BIAS if key.endswith("bias") else 0.0)
    full[_category_ids()] = rows[-CONTIGUOUS_ROWS:]
    if contiguous_rows(key) != CONTIGUOUS_ROWS:
        full[0] = rows[0]
    return full
