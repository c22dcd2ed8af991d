"""Which part of a model a parameter belongs to: where conflict is measured and bad gradients are reported.

Not the optimiser's parameter groups, which are in :mod:`mokd_det.engine.optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from mokd_det.contract.task import as_task
from mokd_det.errors import ConfigError

__all__ = ["REST", "WHOLE", "split_by_part"]

WHOLE = "all"
"""Name of all groups together."""

REST = "rest"
"""Name of the group of what no pattern matches."""


def split_by_part(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    patterns: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[int]]:
    """Divide parameters into parts by their names.

    Without patterns a model has the parts that its ``parameter_parts()`` names
    (:class:`~mokd_det.contract.TrainingTask`: a ViDT's are backbone, neck and head); any other one per first component
    in which the names differ, so Detectron2's R-CNNs have backbone, proposal_generator and roi_heads, and a classifier
    its network's parts.

    Args:
        model: gives the names.
        parameters: of the model; one that it does not name goes to "rest".
        patterns: group → ``fnmatch`` patterns, such as ``{"backbone": ["backbone.*"]}``; a name belongs to the first
            group that matches it, or to "rest".

    Returns:
        Group → positions in ``parameters``: every position once, no group empty.

    Raises:
        ConfigError: a group is called "all" or "rest", or a pattern matches nothing.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if patterns:
        _check(patterns, list(names.values()))
    else:
        patterns = as_task(model).parameter_parts()
    shared = 0 if patterns else _shared_components(list(names.values()))
    groups: dict[str, list[int]] = {}
    for position, parameter in enumerate(parameters):
        name = names.get(id(parameter))
        groups.setdefault(REST if name is None else _group_of(name, patterns, shared), []).append(position)
    order = [*(patterns or groups), REST]
    return {group: groups[group] for group in dict.fromkeys(order) if group in groups}


def _shared_components(names: Sequence[str]) -> int:
    """How many wrapping modules all parameters are in; a single layer is no wrapper."""
    paths = [name.split(".")[:-1] for name in names]
    count = 0
    while any(len(path) > count + 1 for path in paths) and all(
        len(path) > count and path[count] == paths[0][count] for path in paths
    ):
        count += 1
    return count


def _group_of(name: str, patterns: Mapping[str, Sequence[str]] | None, shared: int) -> str:
    if not patterns:
        return name.split(".")[shared]
    matching = (group for group, of_group in patterns.items() if any(fnmatchcase(name, p) for p in of_group))
    return next(matching, REST)


def _check(patterns: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    for group, of_group in patterns.items():
        key = f"train.conflict_groups.{group}"
        if group in (WHOLE, REST):
            raise ConfigError(f"{key}: '{group}' is the name of a built-in group; give it another one")
        if not of_group:
            raise ConfigError(f"{key} has no patterns; give some such as ['backbone.*']")
        for pattern in of_group:
            if not any(fnmatchcase(name, pattern) for name in names):
                parts = sorted({name.partition(".")[0] for name in names})
                raise ConfigError(
                    f"{key}: no parameter matches '{pattern}'; their names start with {', '.join(parts)}"
                )
