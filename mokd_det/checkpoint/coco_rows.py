"""Class heads indexed by COCO's category ids (91 rows, published) and by contiguous classes (80 rows)."""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from torch import Tensor

__all__ = [
    "CATEGORY_ROWS",
    "CONTIGUOUS_ROWS",
    "contiguous_rows",
    "from_category_rows",
    "has_class_rows",
    "to_category_rows",
]

CATEGORY_ROWS = 91
"""Rows of a published head: category ids 0 to 90, of which 0 and ten more are no category."""

CONTIGUOUS_ROWS = 80
"""COCO's categories in Detectron2's order."""

_UNUSED_BIAS = -100.0  # a probability of 0 in every floating-point type

_CLASS_ROWS = re.compile(r"(class_embed\.\d+|transformer\.token_embed)\.(weight|bias)")


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


def from_category_rows(key: str, rows: Tensor) -> Tensor:
    """The rows of the 80 categories, (91, ...) -> (80, ...), or (81, ...) with row 0 for the token classifier."""
    picked = rows[_category_ids()]
    return picked if contiguous_rows(key) == CONTIGUOUS_ROWS else torch.cat((rows[:1], picked))


def to_category_rows(key: str, rows: Tensor) -> Tensor:
    """Inverse of :func:`from_category_rows`; the ids that are no category are never predicted.

    The unused rows of a weight are 0, those of a bias -100.
    """
    full = rows.new_full((CATEGORY_ROWS, *rows.shape[1:]), _UNUSED_BIAS if key.endswith("bias") else 0.0)
    full[_category_ids()] = rows[-CONTIGUOUS_ROWS:]
    if contiguous_rows(key) != CONTIGUOUS_ROWS:
        full[0] = rows[0]
    return full
