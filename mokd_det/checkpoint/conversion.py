"""Checkpoints out: the plain student of a training, and weights in other layouts and file formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.checkpoint.identity import identify
from mokd_det.checkpoint.official_vidt import contiguous_rows, from_official, has_class_rows, to_official
from mokd_det.checkpoint.swin import microsoft_names
from mokd_det.errors import CheckpointError, first_line

__all__ = ["export_student", "official_weights", "student_weights", "write_file"]


def export_student(training_checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The student in a training checkpoint (of :func:`mokd_det.checkpoint.load_file`), without the method and the
    trainer's state: ``{"model": state dict}`` on the CPU."""
    return {"model": {key: value.detach().cpu() for key, value in training_checkpoint["model"].items()}}


def student_weights(
    content: Mapping[str, Any], source: str, *, keep_rows: str = "coco80"
) -> dict[str, Tensor]:
    """A detector's weights under this package's names.

    Args:
        content: of a checkpoint, as :func:`mokd_det.checkpoint.load_file` returns it.
        source: how error messages name the file.
        keep_rows: "coco80" picks the 80 categories of published class heads with 91 rows, "all" keeps the rows.

    Raises:
        CheckpointError: the file holds a classifier.
    """
    identity = identify(content)
    if identity.family == "Swin":
        raise CheckpointError(
            f"{source} holds {identity}, no detector; train.init_checkpoint takes it as it is, and "
            "--to official writes it in Microsoft's layout"
        )
    weights = export_student(content)["model"]
    if identity.layout != "official":
        return weights
    picked = [key for key in weights if has_class_rows(key) and keep_rows == "coco80"]
    return from_official(weights, source, {key: contiguous_rows(key) for key in picked})[0]


def official_weights(
    content: Mapping[str, Any], source: str, *, keep_rows: str = "coco80"
) -> dict[str, Tensor]:
    """Weights under the names of the model's authors: ViDT's for a detector, Microsoft's for a Swin classifier.

    Args:
        content, source: see :func:`student_weights`.
        keep_rows: "coco80" gives class heads of 80 rows the published 91, "all" keeps the rows.

    Raises:
        CheckpointError: the file holds no model that has a published form.
    """
    identity = identify(content)
    weights = export_student(content)["model"]
    if identity.family == "Swin":
        return microsoft_names(weights)
    if not identity.family:
        raise CheckpointError(f"{source} has no official layout: this file looks like {identity}")
    if identity.layout == "official":
        return weights
    return to_official(weights, source, category_rows=keep_rows == "coco80")


def write_file(
    weights: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    description: Mapping[str, str] | None = None,
) -> None:
    """Write weights atomically: as safetensors if the name ends so, with ``description`` in the header that readers of
    weights pass over, else as ``{"model": weights}`` by ``torch.save``.

    Raises:
        CheckpointError: the file cannot be written; an earlier one of that name is untouched.
    """
    path = Path(path)
    try:
        with atomic_write(path) as handle:
            if path.suffix == ".safetensors":
                # This format has no shared storage: a tensor that occurs twice is written twice.
                plain = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
                handle.write(safetensors.torch.save(plain, metadata={**(description or {}), "format": "pt"}))
            else:
                torch.save({"model": dict(weights)}, handle)
    # A full disk shows as OSError or, from inside torch's zip writer, as RuntimeError.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' could not be written ({first_line(error)})") from error
