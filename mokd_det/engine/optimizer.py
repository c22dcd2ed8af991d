"""Parameter groups for the optimiser."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

from torch import nn

from mokd_det.errors import ConfigError

__all__ = ["get_vidt_param_groups", "vidt_param_group"]

GroupName = Literal["head", "backbone_decay", "backbone_no_decay"]

_UNDECAYED_TOKENS = ("det_pos_embed", "det_token")


def vidt_param_group(name: str, parameter: nn.Parameter) -> GroupName:
    """The group the official ViDT code puts a parameter into.

    Outside the backbone everything is "head", biases and norms included; in the backbone 1-d tensors, biases
    and the DET tokens with their positions are not decayed, the rest is (relative position tables too).
    """
    if "backbone" not in name:
        return "head"
    if parameter.ndim == 1 or name.endswith(".bias") or name.split(".")[-1] in _UNDECAYED_TOKENS:
        return "backbone_no_decay"
    return "backbone_decay"


def get_vidt_param_groups(
    model: nn.Module | None = None,
    weight_decay: float = 1e-4,
    lr: float | None = None,
    backbone_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters with ViDT's weight decay, each tensor once.

    A Distiller's student is grouped by :func:`vidt_param_group`; its method's parameters are decayed but for
    those that ``no_weight_decay_parameters()`` lists (orthonormal projections: decay would pull them off
    their manifold).

    Args:
        model: the bare model; filled in by the tool that builds the optimiser from the configuration.
        weight_decay: of the decayed groups.
        lr: learning rate of all groups but the backbone's; None: the optimiser's own.
        backbone_lr: learning rate of the backbone's groups; None: as ``lr``.

    Returns:
        Groups for a torch optimiser, with their ``name``; empty groups are left out.

    Raises:
        ConfigError: no model, or one without trainable parameters.
    """
    if model is None:
        raise ConfigError("optimizer.params.model is not set; it is filled in when the optimiser is built")
    student = getattr(model, "student", model)
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    seen: set[nn.Parameter] = set()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            members[vidt_param_group(name, parameter)].append(parameter)
            seen.add(parameter)
    undecayed = set(getattr(model, "no_weight_decay_parameters", tuple)())
    for parameter in model.parameters():
        if parameter.requires_grad and parameter not in seen:
            members["method_no_decay" if parameter in undecayed else "method"].append(parameter)
    if not members:
        raise ConfigError(f"{type(model).__name__} has no trainable parameter")

    groups = []
    for name, parameters in members.items():
        group: dict[str, Any] = {
            "name": name,
            "params": parameters,
            "weight_decay": 0.0 if name.endswith("no_decay") else weight_decay,
        }
        rate = backbone_lr if name.startswith("backbone") and backbone_lr is not None else lr
        if rate is not None:
            group["lr"] = rate
        groups.append(group)
    return groups
