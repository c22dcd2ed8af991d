"""Checkpoint files of any origin, read without executing anything that is in them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from yacs.config import CfgNode

from mokd_det.checkpoint.origins import origin_of
from mokd_det.errors import CheckpointError

__all__ = ["load_file", "require_file"]

_WEIGHT_KEYS = ("model", "state_dict")

# How the unpickler of torch.load names what it will not build.
_FOREIGN_OBJECT = re.compile(r"GLOBAL (\S+)|SETITEMS? for .* but got <class '([^']+)'>")


def load_file(
    path: str | os.PathLike[str], *, what: str = "checkpoint", trusted: bool = False
) -> dict[str, Any]:
    """Read a checkpoint; tensors come to the CPU.

    Beside tensors and plain values a file may hold what published ones do: ``argparse.Namespace`` (ViDT,
    DeiT) and yacs' ``CfgNode`` (Swin), both mere containers. Any other Python object could run code, and is
    refused.

    Args:
        path: a ``torch.save`` file of any version, a ``.safetensors`` file, or an address that Detectron2's
            ``PathManager`` can fetch.
        what: what error messages call the file, e.g. "teacher checkpoint".
        trusted: let the file run code, because its origin is beyond doubt. Nothing in this package asks for it but
            ``tools/convert_checkpoint.py --trust-pickle``, when told to.

    Returns:
        The file's dict, with the weights under "model" wherever they were: also there, under "state_dict", or
        the whole file. A data-parallel wrapper's "module." is gone from their names.

    Raises:
        CheckpointError: the file is missing, cut short, empty, no checkpoint or unsafe.
    """
    source = f"{what} '{os.fspath(path)}'"
    local = require_file(path, what)
    if os.path.getsize(local) == 0:
        raise CheckpointError(f"{source} is empty")
    content = (
        _read_safetensors(local, source)
        if local.endswith(".safetensors")
        else _read_pickle(local, source, trusted)
    )
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a dict with the key 'model'")
    return _with_model(content, source)


def require_file(path: str | os.PathLike[str], what: str = "checkpoint") -> str:
    """The local path of a file that must exist; an address is fetched.

    Raises:
        CheckpointError: it does not exist, with where it comes from if that is known, or cannot be fetched.
    """
    name = os.fspath(path)
    try:
        local = str(PathManager.get_local_path(name)) if "://" in name else name
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{what} '{name}' cannot be fetched: {_first_line(error)}") from error
    if not os.path.isfile(local):
        origin = origin_of(name)
        problem = "is a directory" if os.path.isdir(local) else f"does not exist{origin and '; '}{origin}"
        raise CheckpointError(f"{what} '{name}' {problem}")
    return local


def _read_safetensors(local: str, source: str) -> dict[str, Tensor]:
    try:
        return load_safetensors(local)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} cannot be read: broken or no safetensors file ({_first_line(error)})"
        ) from error


def _read_pickle(local: str, source: str, trusted: bool) -> Any:
    try:
        if trusted:
            return torch.load(local, map_location="cpu", weights_only=False)
        with _containers_allowed():
            return torch.load(local, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _FOREIGN_OBJECT.search(str(error))
        if found is None:
            raise CheckpointError(
                f"{source} cannot be read: broken or not a checkpoint (no pickle of tensors)"
            ) from error
        raise CheckpointError(
            f"{source} holds a Python object ({found[1] or found[2]}), which could run code when loaded, so "
            "it is refused. If you trust its origin, load the copy that this makes: "
            "python tools/convert_checkpoint.py FILE COPY --trust-pickle"
        ) from error
    # Damaged bytes end in whatever the instruction they happen to form runs into (struct.error, KeyError, …).
    except Exception as error:
        raise CheckpointError(
            f"{source} cannot be read: broken or not a checkpoint ({_first_line(error)})"
        ) from error


def _containers() -> list[Any]:
    # Newer unpicklers fill no subclass of dict, but let its name stand for a plain one.
    by_name = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)
    # A CfgNode keeps its deprecated keys in a set, which the unpickler of torch 2.4 does not know by itself.
    return [argparse.Namespace, set, (OrderedDict, "yacs.config.CfgNode") if by_name else CfgNode]


@contextmanager
def _containers_allowed() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_containers())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _with_model(content: dict[Any, Any], source: str) -> dict[str, Any]:
    """The content with checked weights under "model"."""
    key = next((key for key in _WEIGHT_KEYS if isinstance(content.get(key), dict)), None)
    if key is None:
        content = {"model": content}
    elif key != "model":
        content = {
            "model": content[key],
            **{name: item for name, item in content.items() if name not in _WEIGHT_KEYS},
        }
    weights = content["model"]
    if not weights:
        raise CheckpointError(f"{source} holds no model weights: it has no dict of tensors under 'model'")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{source} holds no model weights: entry '{name}' is no tensor but of type "
                f"{type(value).__name__}"
            )
    consume_prefix_in_state_dict_if_present(weights, "module.")
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
