"""How the runs were set up, and in what they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mokd_det.report.run_record import RunGroup, flatten
from mokd_det.report.section import Section, absent_section

__all__ = ["configuration_section"]

_NOTHING = object()

_FACTS: Mapping[str, str] = {
    "method": "model.method._target_",
    "balancer": "balancer._target_",
    "teacher's weights": "model.teacher_checkpoint",
    "training data": "dataloader.train.dataset",
    "images per step": "dataloader.train.total_batch_size",
    "iterations": "train.max_iter",
    "optimiser": "optimizer._target_",
    "learning rate": "optimizer.lr",
    "seed": "train.seed",
}


def configuration_section(groups: Sequence[RunGroup]) -> Section:
    """What differs between the runs, then each configuration in full."""
    configured = [group for group in groups if group.first.config]
    if not configured:
        return absent_section("configuration", "Configuration", "The runs left no config.yaml.")
    flat = [flatten(group.first.config) for group in configured]
    keys = dict.fromkeys(key for one in flat for key in one)
    different = [
        [key, *(_setting(one.get(key, _NOTHING)) for one in flat)]
        for key in keys
        if any(one.get(key, _NOTHING) != flat[0].get(key, _NOTHING) for one in flat)
    ]
    data = {"groups": configured, "facts": _key_facts(configured), "different": different}
    return Section("configuration", "Configuration", "Configuration", "configuration", data)


def _key_facts(groups: Sequence[RunGroup]) -> list[list[str]]:
    rows = []
    for name, path in _FACTS.items():
        values = []
        for group in groups:
            found = list(dict.fromkeys(_setting(run.setting(path)) for run in group.runs))
            short = [value.rpartition(".")[2] if path.endswith("_target_") else value for value in found]
            values.append(", ".join(short))
        if any(value not in ("–", "") for value in values):
            rows.append([name, *values])
    return rows


def _setting(value: Any) -> str:
    if value is _NOTHING or value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, default=str)
