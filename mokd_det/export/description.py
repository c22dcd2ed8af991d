"""What an exported file says of itself."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

import mokd_det
from mokd_det.export.graph import INPUTS, OUTPUTS

__all__ = ["describe", "plain_config"]


def describe(
    model: nn.Module,
    config: DictConfig,
    *,
    class_names: Sequence[str] | None = None,
    resize: str = "",
    graph: bool = True,
    **more: str,
) -> dict[str, str]:
    """``producer``, ``model``, ``parameters``, ``class_names``, ``resize``, ``model_config``, ``more``, and of a file
    with a graph ``inputs`` and ``outputs``; what is not plain text is JSON.

    Args:
        model, config: the student and its section of the configuration.
        class_names: by class index; None: not known, and then not said.
        resize: what is done to an image file before the model gets it.
    """
    description = {
        "producer": f"mokd_det {mokd_det.__version__}",
        "model": type(model).__name__,
        "parameters": str(sum(parameter.numel() for parameter in model.parameters())),
        "resize": resize,
        "model_config": _as_json(plain_config(config)),
        **more,
    }
    if graph:
        for name, specs in (("inputs", INPUTS), ("outputs", OUTPUTS)):
            description[name] = _as_json({key: dataclasses.asdict(spec) for key, spec in specs.items()})
    if class_names is not None:
        description["class_names"] = _as_json(list(class_names))
    return {name: text for name, text in description.items() if text}


def plain_config(config: DictConfig) -> dict[str, Any]:
    """A section of a configuration in plain values: references resolved, classes and functions by name.

    ``instantiate(OmegaConf.create(plain_config(section)))`` builds what the section describes.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if inspect.isclass(value) or inspect.isroutine(value):
            return f"{value.__module__}.{value.__qualname__}"
        return value

    return plain(OmegaConf.to_container(config, resolve=True))


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
