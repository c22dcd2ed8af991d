"""Checkpoint files of any origin, read without executing anything that is in them."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor
from yacs.config import CfgNode

from mokd_det.checkpoint.origins import origin_of
from mokd_det.command_hint import command
from mokd_det.errors import CheckpointError, first_line

__all__ = ["load_file", "require_file"]

logger = logging.getLogger(__name__)

_WEIGHT_KEYS = ("model", "state_dict")
# Where averaging wrappers keep the weights inside of what they store.
_INNER_KEYS = ("module", "model", "state_dict")
_LIGHTNING = "pytorch-lightning_version"

# How the unpickler of torch.load names what it will not build.
_FOREIGN_OBJECT = re.compile(r"GLOBAL (\S+)|SETITEMS? for .* but got <class '([^']+)'>")


def load_file(
    path: str | os.PathLike[str], *, what: str = "checkpoint", trusted: bool = False
) -> dict[str, Any]:
    """Read a checkpoint; tensors come to the CPU.

    Beside tensors and plain values a file may hold what published ones do: ``argparse.Namespace`` (ViDT, DeiT) and
    yacs' ``CfgNode`` (Swin), both mere containers. Any other Python object could run code, and is refused.

    Args:
        path: a ``torch.save`` file of any version, a ``.safetensors`` file, or an address that Detectron2's
            ``PathManager`` can fetch; ``FILE#KEY`` takes the weights that the file has under this key, e.g. averaged
            ones under "ema".
        what: what error messages call the file, e.g. "teacher checkpoint".
        trusted: let the file run code, because its origin is beyond doubt. Nothing in this package asks for it but
            ``tools/convert_checkpoint.py --trust-pickle``, when told to.

    Returns:
        The file's dict, with the weights under "model" wherever they were: also there, under "state_dict", or
        the whole file. Of several sets of weights it is said which is taken. What wrappers put into their names is
        gone: data-parallel ones' "module.", torch.compile's "_orig_mod.", Lightning's name of the module.

    Raises:
        CheckpointError: the file is missing, cut short, empty, no checkpoint or unsafe.
    """
    name, key = _split_key(os.fspath(path))
    source = f"{what} '{name}'"
    local = require_file(name, what)
    if os.path.getsize(local) == 0:
        raise CheckpointError(f"{source} is empty")
    if local.endswith(".safetensors"):
        content: Any = _read_safetensors(local, source)
    else:
        content = _read_pickle(local, source, trusted)
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a dict with the key 'model'")
    return _with_model(content, source, name, key)


def require_file(path: str | os.PathLike[str], what: str = "checkpoint") -> str:
    """The local path of a file (``FILE`` or ``FILE#KEY``) that must exist; an address is fetched.

    Raises:
        CheckpointError: it does not exist, with where it comes from if that is known, or cannot be fetched.
    """
    name, _ = _split_key(os.fspath(path))
    try:
        local = str(PathManager.get_local_path(name)) if "://" in name else name
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{what} '{name}' cannot be fetched: {first_line(error)}") from error
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
            f"{source} cannot be read: broken or no safetensors file ({first_line(error)})"
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
            f"{command('tools/convert_checkpoint.py')} FILE COPY --trust-pickle"
        ) from error
    # Damaged bytes end in whatever the instruction they happen to form runs into (struct.error, KeyError, …).
    except Exception as error:
        raise CheckpointError(
            f"{source} cannot be read: broken or not a checkpoint ({first_line(error)})"
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


def _split_key(path: str) -> tuple[str, str]:
    """``FILE#KEY`` as its parts; a file may have "#" in its name, and "~" stands for the home folder."""
    path = os.path.expanduser(path)
    file, mark, key = path.rpartition("#")
    return (file, key) if mark and not os.path.exists(path) else (path, "")


def _with_model(content: dict[Any, Any], source: str, name: str, asked: str) -> dict[str, Any]:
    """The content of the file ``name`` with checked weights under "model": those under the key ``asked``, or "" the
    usual one."""
    sets = {key: found for key, value in content.items() if (found := _weights_of(value)) is not None}
    if asked:
        if asked not in sets:
            has = ", ".join(repr(key) for key in sets) or "none"
            raise CheckpointError(f"{source} has no weights under '{asked}'; keys with weights: {has}")
        chosen: Any = asked
    else:
        chosen = next((key for key in _WEIGHT_KEYS if isinstance(content.get(key), dict)), None)
        if chosen is None and not any(isinstance(value, Tensor) for value in content.values()) and sets:
            chosen = next(iter(sets))
    if chosen is None:
        weights, rest = content, {}
    else:
        weights = sets.get(chosen, content[chosen])
        rest = {key: value for key, value in content.items() if key not in (chosen, *_WEIGHT_KEYS)}
    _check_weights(weights, source)
    others = [
        key for key, found in sets.items() if key != chosen and 2 * len(found.keys() & weights) > len(weights)
    ]
    if chosen is not None and (others or chosen not in (*_WEIGHT_KEYS, asked)):
        offers = ", ".join(f"'{name}#{key}'" for key in others)
        logger.log(
            # Of our own trainings the student is meant; of others nobody knows.
            logging.INFO if "trainer" in content or asked else logging.WARNING,
            "%s: the weights under '%s' are taken%s",
            source,
            chosen,
            f"; it has others, which {offers} take{'s' * (len(others) == 1)}" if others else "",
        )
    return {"model": _without_wrappers(weights, _LIGHTNING in content, source), **rest}


def _weights_of(value: Any) -> dict[str, Tensor] | None:
    """The state dict that an entry of a file is, or holds as a wrapper for averaging does; None if it is none."""
    for candidate in (value, *(value.get(key) for key in _INNER_KEYS if isinstance(value, Mapping))):
        # A dict without entries is no state dict.
        if isinstance(candidate, dict) and {
            (type(k), isinstance(v, Tensor)) for k, v in candidate.items()
        } == {(str, True)}:
            return candidate
    return None


def _check_weights(weights: Mapping[Any, Any], source: str) -> None:
    if not weights:
        raise CheckpointError(f"{source} holds no model weights: it has no dict of tensors under 'model'")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{source} holds no model weights: entry '{name}' is no tensor but of type "
                f"{type(value).__name__}"
            )


def _without_wrappers(weights: dict[str, Tensor], lightning: bool, source: str) -> dict[str, Tensor]:
    """The weights under the names that the bare module has."""
    names = {name: re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", "")) for name in weights}
    if lightning:
        # The module stands in an attribute of a LightningModule, beside metrics and losses.
        attributes = [name.partition(".")[0] for name in names.values()]
        attribute = max(dict.fromkeys(attributes), key=attributes.count)
        prefix = f"{attribute}."
        inner = {old: new.removeprefix(prefix) for old, new in names.items() if new.startswith(prefix)}
        if len(inner) > len(names) / 2:
            logger.info(
                "%s: Lightning's '%s' is taken, %d of %d tensors", source, attribute, len(inner), len(names)
            )
            names = inner
    if all(old == new for old, new in names.items()) and len(names) == len(weights):
        return weights
    renamed = OrderedDict((new, weights[old]) for old, new in names.items())
    metadata = getattr(weights, "_metadata", None)
    if metadata is not None:
        # torch keeps the versions of modules in an attribute that no type declares; their names end without a dot.
        prefixes = {old[: len(old) - len(new)] for old, new in names.items() if old.endswith(new)}
        renamed._metadata = OrderedDict(  # type: ignore[attr-defined]
            (next((k[len(p) :] for p in prefixes if p and k.startswith(p)), k), v)
            for k, v in metadata.items()
        )
    return renamed
