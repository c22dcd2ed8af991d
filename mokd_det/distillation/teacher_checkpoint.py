"""Weights of a frozen teacher, from a file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from mokd_det.errors import CheckpointError

__all__ = ["load_teacher_weights"]

# What torch.load raises for text, for a file that was cut, and for pickles that hold more than tensors.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError)


def _read(path: str) -> dict[str, Tensor]:
    try:
        local = PathManager.get_local_path(path)
    except OSError as error:
        raise CheckpointError(f"teacher checkpoint {path!r} cannot be fetched: {error}") from error
    if not os.path.isfile(local):
        raise CheckpointError(f"teacher checkpoint {path!r} does not exist; give a file {{'model': weights}}")
    try:
        content = torch.load(local, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"teacher checkpoint {path!r} is not a readable file of plain tensors (files that contain "
            f"Python objects are refused): {reason}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        found = f"a {type(content).__name__}"
        if isinstance(content, dict):
            found = f"the keys {sorted(map(str, content))[:5]}"
        raise CheckpointError(f"teacher checkpoint {path!r} has no weights under 'model'; it holds {found}")
    return content["model"]


def load_teacher_weights(teacher: nn.Module, path: str, ignore_teacher_keys: Sequence[str] = ()) -> None:
    """Load ``{"model": state_dict}`` into ``teacher``, every tensor of it.

    Args:
        path: a file, or an address that Detectron2's path manager knows.
        ignore_teacher_keys: patterns (``*`` and ``?``) of tensors in the file that the teacher may lack.

    Raises:
        CheckpointError: the file is missing, unreadable or unsafe, or it belongs to another model: the
            message names the first tensor that differs, and both shapes.
    """
    weights = _read(path)
    expected = teacher.state_dict()
    name = type(teacher).__name__
    for key, tensor in expected.items():
        wanted = tuple(tensor.shape)
        if key not in weights:
            raise CheckpointError(
                f"teacher checkpoint {path!r} is of another model: it has no tensor {key!r}, of shape "
                f"{wanted} in the teacher ({name})"
            )
        if not isinstance(weights[key], Tensor):
            raise CheckpointError(
                f"teacher checkpoint {path!r} is damaged: {key!r} is a {type(weights[key]).__name__}, not a "
                f"tensor"
            )
        found = tuple(weights[key].shape)
        if found != wanted:
            raise CheckpointError(
                f"teacher checkpoint {path!r} is of another variant: tensor {key!r} has shape {found} in the "
                f"file and {wanted} in the teacher ({name})"
            )
    for key in weights:
        if key not in expected and not any(fnmatchcase(key, pattern) for pattern in ignore_teacher_keys):
            raise CheckpointError(
                f"teacher checkpoint {path!r} is of another model: its tensor {key!r} of shape "
                f"{tuple(getattr(weights[key], 'shape', ()))} is unknown to the teacher ({name}); "
                f"if it is not needed, list it in ignore_teacher_keys"
            )
    teacher.load_state_dict({key: weights[key] for key in expected})
