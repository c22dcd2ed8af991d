"""timm's models by name, with weights from a local file or fetched by timm."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from mokd_det.errors import CheckpointError, ConfigError

__all__ = ["create_timm_model"]

_logger = logging.getLogger(__name__)


def create_timm_model(
    name: str,
    *,
    weights: str = "",
    download: bool = False,
    new_classifier: bool = False,
    what: str = "",
    **arguments: Any,
) -> nn.Module:
    """``timm.create_model`` that never trains on random weights by mistake.

    Args:
        name: of the model, with timm's tag of its weights or without: "deit_tiny_patch16_224", "regnety_160.deit_in1k".
        weights: local file with the model's weights, as timm or the model's authors publish them
            (``.safetensors`` or ``.pth``). "": random.
        download: let timm fetch its weights from the network, or take them from its cache.
        new_classifier: accept weights of other classes: the classifier keeps its random start, which a model that
            is to be trained may.
        what: what error messages call the model when it cannot be built; "": its name.
        arguments: of ``timm.create_model``.

    Raises:
        ConfigError: a name or an argument that timm does not have, or ``weights`` together with ``download``.
        CheckpointError: the weights are missing, unreadable, not the model's, or cannot be fetched.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}; {hint}")
    if weights and download:
        raise ConfigError(f"weights={weights!r} and download=True contradict each other; drop one")
    if weights and not Path(weights).is_file():
        raise CheckpointError(f"weights of {name} '{weights}' do not exist")
    random_state = torch.get_rng_state()
    # timm reports what it cannot build by nearly any exception class.
    try:
        model = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:
        raise ConfigError(f"timm cannot build {what or name} with {arguments}: {_reason(error)}") from error
    if not weights and not download:
        return model
    torch.set_rng_state(random_state)
    source = f"weights '{weights}'" if weights else f"timm's weights of {name}"
    try:
        overlay = {"pretrained_cfg_overlay": _from_file(weights, model)} if weights else {}
        loaded = timm.create_model(name, pretrained=True, **overlay, **arguments)
    except Exception as error:
        if weights:
            raise CheckpointError(f"{source} do not fit {name}: {_reason(error)}") from error
        raise CheckpointError(
            f"{source} cannot be fetched ({_reason(error)}); without a network give a local file, "
            f"weights=FILE with download=False"
        ) from error
    for settings in (loaded.pretrained_cfg, loaded.default_cfg):
        settings.pop("state_dict", None)
    _check_loaded(loaded, model, name, source, new_classifier)
    _logger.info("Loaded %s into %s", source, name)
    return loaded


def _from_file(weights: str, model: nn.Module) -> dict[str, Any]:
    """What makes timm load a file."""
    # Read apart, because not every timm that reads a file by itself refuses one that holds code.
    state = load_state_dict(weights, weights_only=True)
    overlay: dict[str, Any] = {"state_dict": state}
    # timm goes by what its own weights have, and would drop the classifier of a file of other classes.
    for classifier in _classifiers(model):
        if f"{classifier}.weight" in state:
            overlay["num_classes"] = state[f"{classifier}.weight"].shape[0]
    return overlay


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers whose rows are classes."""
    named = model.default_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _check_loaded(loaded: nn.Module, random: nn.Module, name: str, source: str, new_classifier: bool) -> None:
    """Refuse weights that leave a random matrix as it was: timm drops the classifier by loading without complaint."""
    initial = dict(random.named_parameters())
    classifiers = _classifiers(loaded)
    matrices = [(key, value) for key, value in loaded.named_parameters() if value.ndim > 1]
    same = [(key, value) for key, value in matrices if torch.equal(value, initial[key])]
    # a constant is no random start: the file may well have the same
    kept = [key for key, value in same if bool((value != value.flatten()[0]).any())]
    of_classifier = [key for key in kept if key.rpartition(".")[0] in classifiers]
    if new_classifier:
        kept = [key for key in kept if key not in of_classifier]
    elif kept and kept == of_classifier:
        raise CheckpointError(
            f"{source} do not fit {name}: their classes are not the model's "
            f"{getattr(loaded, 'num_classes', 'own')}, so its classifier '{kept[0]}' would stay random; give the "
            f"num_classes of the weights, or new_classifier=True for a model that is to be trained"
        )
    if kept:
        raise CheckpointError(
            f"{source} do not fit {name}: {len(kept)} of its {len(matrices)} weight matrices are not in the "
            f"file, e.g. '{kept[0]}'"
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([f"{type(error).__name__}:", *lines[:2]])
