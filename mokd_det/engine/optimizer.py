"""Parameter groups for the optimiser, and its fastest kernel."""

from __future__ import annotations

import inspect
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from detectron2.utils.logger import log_first_n
from torch import nn

from mokd_det.contract import TrainingTask, as_task
from mokd_det.errors import ConfigError, first_line

__all__ = ["get_timm_param_groups", "get_vidt_param_groups", "vidt_param_group", "with_fast_kernel"]

GroupName = Literal["head", "backbone_decay", "backbone_no_decay"]

_UNDECAYED_TOKENS = ("det_pos_embed", "det_token")


def vidt_param_group(
    name: str, parameter: nn.Parameter, backbone: Sequence[str] = ("*backbone*",)
) -> GroupName:
    """The group the official ViDT code puts a parameter into.

    Outside the backbone everything is "head", biases and norms included; in the backbone 1-d tensors, biases
    and the DET tokens with their positions are not decayed, the rest is (relative position tables too). ``backbone``
    are ``fnmatch`` patterns of its names.
    """
    if not any(fnmatchcase(name, pattern) for pattern in backbone):
        return "head"
    if parameter.ndim == 1 or name.endswith(".bias") or name.split(".")[-1] in _UNDECAYED_TOKENS:
        return "backbone_no_decay"
    return "backbone_decay"


def get_vidt_param_groups(
    model: nn.Module | None = None,
    weight_decay: float = 1e-4,
    lr: float | None = None,
    backbone_lr: float | None = None,
    method_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters with ViDT's weight decay, each tensor once.

    A Distiller's student is grouped by :func:`vidt_param_group`; its method's parameters are decayed but for
    those that ``no_weight_decay_parameters()`` lists (orthonormal projections: decay would pull them off
    their manifold).

    Args:
        model: the bare model; filled in by the tool that builds the optimiser from the configuration.
        weight_decay: of the decayed groups.
        lr: learning rate of all groups but the backbone's; None: the optimiser's own.
        backbone_lr: learning rate of the backbone's groups (what the model's ``parameter_parts()`` calls so, else what
            has "backbone" in its name); None: as ``lr``.
        method_lr: learning rate of the method's own parameters (projections); None: as ``lr``.

    Returns:
        Groups for a torch optimiser, with their ``name``; empty groups are left out.

    Raises:
        ConfigError: no model, or one without trainable parameters.
    """
    task = _task(model)
    backbone = as_task(task.eval_model).parameter_parts().get("backbone", ("*backbone*",))
    members = {name: vidt_param_group(name, parameter, backbone) for name, parameter in _trainable(task)}
    return _groups(task, members, weight_decay, lr, backbone_lr, method_lr)


def get_timm_param_groups(
    model: nn.Module | None = None,
    weight_decay: float = 0.05,
    lr: float | None = None,
    decay_vectors: bool = False,
    method_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups of a classifier's trainable parameters with timm's weight decay, each tensor once.

    Not decayed: vectors (biases, norms) and what the student's ``no_weight_decay()`` names (position embeddings and
    class tokens of transformers). A Distiller's method is grouped as in :func:`get_vidt_param_groups`.

    Args:
        model: the bare model; filled in by the tool that builds the optimiser from the configuration.
        weight_decay: of the decayed groups.
        lr: learning rate; None: the optimiser's own.
        decay_vectors: decay every parameter of the student, as recipes with SGD for CIFAR do.
        method_lr: learning rate of the method's own parameters (projections); None: as ``lr``.

    Returns:
        Groups for a torch optimiser, with their ``name``; empty groups are left out.

    Raises:
        ConfigError: no model, or one without trainable parameters.
    """
    task = _task(model)
    listed = as_task(task.eval_model).no_weight_decay()
    members: dict[str, str] = {}
    for name, parameter in _trainable(task):
        undecayed = not decay_vectors and (parameter.ndim <= 1 or name.endswith(".bias") or name in listed)
        members[name] = "no_decay" if undecayed else "decay"
    return _groups(task, members, weight_decay, lr, method_lr=method_lr)


def with_fast_kernel(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same Adam or AdamW with one kernel for all tensors instead of a dozen for each.

    The fused kernel where torch has one for the parameters' device and type, otherwise ``foreach`` (said once in the
    log). It stays this run's when a checkpoint of another device or version is loaded. Any other optimiser, and one
    whose ``fused`` or ``foreach`` is set, comes back as it is. It must be freshly built, without state.
    """
    kind = type(optimizer)
    if kind not in (torch.optim.Adam, torch.optim.AdamW):
        return optimizer
    chosen = ("fused", "foreach", "capturable", "differentiable")
    if any(group[name] not in (None, False) for group in optimizer.param_groups for name in chosen) or any(
        group[name] is False for group in optimizer.param_groups for name in ("fused", "foreach")
    ):
        return optimizer
    accepted = inspect.signature(kind).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in accepted}

    def rebuilt(kernel: str) -> torch.optim.Optimizer:
        groups = [{**group, kernel: True} for group in optimizer.param_groups]
        made = kind(groups, **{**options, kernel: True})
        made.register_load_state_dict_pre_hook(_keep_kernel)
        if kernel == "fused":
            made.register_step_pre_hook(_match_gradients)
            made.register_load_state_dict_post_hook(_match_states)
        return made

    try:
        return rebuilt("fused")
    except RuntimeError as error:
        reason = first_line(error)
        log_first_n(
            logging.INFO,
            f"{kind.__name__} has no fused kernel here ({reason}); it uses foreach",
            name=__name__,
        )
        return rebuilt("foreach")


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to be loaded, with the kernel that the optimiser has instead of the one it was saved with."""
    own = {name: optimizer.defaults[name] for name in ("fused", "foreach")}
    return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}


# The fused kernel pairs the numbers of parameter, gradient and moments by their place in memory; on a CPU it does not
# look at the strides. Gradients that a balancer sets, and moments from a file, may have others than their parameter.


@torch.no_grad()
def _match_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give every gradient the strides of its parameter."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)


@torch.no_grad()
def _match_states(optimizer: torch.optim.Optimizer) -> None:
    """Give every moment the strides of its parameter."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def _task(model: nn.Module | None) -> TrainingTask:
    if model is None:
        raise ConfigError("optimizer.params.model is not set; it is filled in when the optimiser is built")
    return as_task(model)


def _trainable(task: TrainingTask) -> list[tuple[str, nn.Parameter]]:
    """The student's."""
    return [(name, p) for name, p in task.eval_model.named_parameters() if p.requires_grad]


def _groups(
    task: TrainingTask,
    group_of: Mapping[str, str],
    weight_decay: float,
    lr: float | None,
    backbone_lr: float | None = None,
    method_lr: float | None = None,
) -> list[dict[str, Any]]:
    """The optimiser's groups from the student's, by parameter name, and the method's own."""
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    seen: set[nn.Parameter] = set()
    for name, parameter in _trainable(task):
        members[group_of[name]].append(parameter)
        seen.add(parameter)
    undecayed = set(task.no_weight_decay_parameters())
    for parameter in task.parameters():
        if parameter.requires_grad and parameter not in seen:
            members["method_no_decay" if parameter in undecayed else "method"].append(parameter)
    if not members:
        raise ConfigError(f"{type(task.eval_model).__name__} has no trainable parameter")

    groups = []
    for name, parameters in members.items():
        group: dict[str, Any] = {
            "name": name,
            "params": parameters,
            "weight_decay": 0.0 if name.endswith("no_decay") else weight_decay,
        }
        own = {"backbone": backbone_lr, "method": method_lr}.get(name.split("_")[0])
        rate = lr if own is None else own
        if rate is not None:
            group["lr"] = rate
        groups.append(group)
    return groups
