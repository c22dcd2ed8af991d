"""The paper's tables from finished runs: 1 to 4 and C.1, each cell from the runs of the config that stands for it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mokd_det.errors import ConfigError
from mokd_det.model_zoo import get_config_file
from mokd_det.report.run_record import RunRecord

__all__ = ["NOT_MADE", "PaperRuns", "PaperTable", "Setting", "paper_tables", "setting_of", "table_markdown"]

AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
DETECTION_METHODS = {"token_matching": "token matching", "vkd": "VkD", "mokd": "MoKD"}
PAIRS = (
    "resnet56_resnet20",
    "wrn_40_2_wrn_40_1",
    "resnet32x4_resnet8x4",
    "ResNet50_MobileNetV2",
    "resnet32x4_ShuffleV1",
    "resnet32x4_ShuffleV2",
)
CIFAR_METHODS = {
    "fitnet": "FitNet",
    "rkd": "RKD",
    "pkt": "PKT",
    "ofd": "OFD",
    "crd": "CRD",
    "review_kd": "ReviewKD",
    "review_kd_pp": "ReviewKD++",
    "mokd": "MoKD",
}
IMAGENET_METHODS = {
    "": "alone",
    "hard_": "KD (DeiT, hard)",
    "baselines/manifold_": "Manifold",
    "baselines/uskd_": "USKD",
    "baselines/masked_kd_": "MaskedKD",
    "baselines/srd_": "SRD",
    "vkd_": "VkD",
    "mokd_": "MoKD",
}

NOT_MADE = (
    "Table 2, CivT and DearKD: not implemented (docs/methods.md); rows of 1000 epochs: train.max_iter=1251000, apart.",
    "Table 1 and 2, teachers' rows of ImageNet: published weights under train --eval-only.",
    "python -m mokd_det dynamics draws figures 3 and C.4, tide figure 5, attention the attention maps.",
)
"""What no run directory can give here, and where it comes from."""


@dataclass(frozen=True)
class Setting:
    """What makes a run the run of a config: networks, method and balancer, as JSON; "" where there is none."""

    student: str
    teacher: str
    method: str
    balancer: str


@dataclass(frozen=True)
class Cell:
    """One figure: the metric of the runs of a config, or "#Params" or "FPS" of its student."""

    config: str
    metric: str


@dataclass
class PaperTable:
    """A table; a row is its label and a cell per column (None: nothing belongs there)."""

    title: str
    columns: Sequence[str]
    rows: list[tuple[str, Sequence[Cell | None]]] = field(default_factory=list)

    def configs(self) -> list[str]:
        """Every config that a cell needs, once."""
        return list(dict.fromkeys(cell.config for _, cells in self.rows for cell in cells if cell))


class PaperRuns:
    """Finished runs by the config that they are runs of; unfinished ones (no student_final.pth) and those without a
    configuration are left out and named. Without ``frames_per_second``, which measures a student's model, that column
    stays empty."""

    def __init__(
        self, runs: Sequence[RunRecord], frames_per_second: Callable[[DictConfig], float] | None = None
    ) -> None:
        self.unfinished: list[RunRecord] = []
        self._fps = frames_per_second
        self._of: dict[Setting, list[RunRecord]] = {}
        for run in runs:
            if run.weights is None or not run.config:
                self.unfinished.append(run)
            else:
                self._of.setdefault(setting_of(OmegaConf.create(dict(run.config))), []).append(run)
        self._sizes: dict[str, float] = {}
        self.used: set[str] = set()

    def of(self, config: str) -> list[RunRecord]:
        """The runs of a config: its seeds."""
        found = self._of.get(_shipped_setting(config), [])
        self.used.update(str(run.directory) for run in found)
        return found

    def unknown(self) -> list[RunRecord]:
        """Finished runs that no cell has asked for."""
        return [run for runs in self._of.values() for run in runs if str(run.directory) not in self.used]

    def values(self, cell: Cell) -> list[float]:
        """The cell's figure of every run; empty where it cannot be made."""
        runs = self.of(cell.config)
        if not runs:
            return []
        if cell.metric in ("#Params", "FPS"):
            key = f"{cell.metric} {_shipped_setting(cell.config).student}"
            if key not in self._sizes:
                section = _student(OmegaConf.create(dict(runs[0].config)))
                if cell.metric == "FPS":
                    if self._fps is None:
                        return []
                    self._sizes[key] = self._fps(section)
                else:
                    self._sizes[key] = float(_parameters(section))
            return [self._sizes[key]]
        found = [final_value(run, cell.metric) for run in runs]
        return [value for value in found if value is not None]


def final_value(run: RunRecord, metric: str) -> float | None:
    """The last value of a metric ("AP", "top1"): of the evaluation after the training, else of the last one in it."""
    found = (
        run.test_results.get(name, run.last(name)) for name in (f"bbox/{metric}", f"classification/{metric}")
    )
    return next((value for value in found if value is not None), None)


def setting_of(cfg: DictConfig) -> Setting:
    """What a configuration trains.

    Raises:
        ConfigError: it has no model or refers to something that is not in it.
    """
    try:
        model, balancer = _plain(cfg, "model"), _plain(cfg, "balancer")
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise ConfigError(f"a run's config.yaml has no usable model and balancer: {error}") from None
    student = _network(model.get("student", model))
    if "student" not in model or str(model["method"]["_target_"]).endswith("NoDistillation"):
        return Setting(student, "", "", "")
    teacher = _network(model["teacher"]) if model.get("teacher") else ""
    method = json.dumps(model["method"], sort_keys=True)
    return Setting(student, teacher, method, json.dumps(balancer, sort_keys=True))


def _student(cfg: DictConfig) -> DictConfig:
    model = cfg.model
    return model.student if "student" in model else model


def _network(model: Mapping[str, Any]) -> str:
    """A model by its backbone or network, without what changes neither function nor weights."""
    part = next((model[key] for key in ("backbone", "network") if key in model), model)
    ignored = ("activation_checkpointing", "download", "num_classes", "weights")
    return json.dumps({key: value for key, value in part.items() if key not in ignored}, sort_keys=True)


def _plain(cfg: DictConfig, section: str) -> dict[str, Any]:
    """A section as plain values, classes by their dotted names."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return _with_defaults({str(key): named(inner) for key, inner in value.items()})
        if isinstance(value, (list, tuple)):
            return [named(inner) for inner in value]
        return _convert_target_to_string(value) if callable(value) else value

    found: dict[str, Any] = named(OmegaConf.to_container(cfg[section], resolve=True))
    return found


def _with_defaults(call: dict[str, Any]) -> dict[str, Any]:
    """A call with the defaults of what it calls: given or not, an argument of this value is the same."""
    if "_target_" not in call:
        return call
    try:
        parameters = inspect.signature(locate(call["_target_"])).parameters
    except (ImportError, ValueError, TypeError):
        return call
    plain = (bool, int, float, str, type(None))
    return {**{name: p.default for name, p in parameters.items() if isinstance(p.default, plain)}, **call}


@cache
def _loaded(file: str) -> DictConfig:
    return LazyConfig.load(get_config_file(file))


@cache
def _shipped_setting(name: str) -> Setting:
    """Of a config by "folder/file choice.key=value …", without ".py"."""
    file, *choices = name.split()
    cfg = _loaded(f"{file}.py")
    if not choices:
        return setting_of(cfg)
    before = cfg.choice.copy()  # a copy of the whole would take longer than all the rest
    try:
        for choice in choices:
            OmegaConf.update(cfg, *choice.split("=", 1))
        return setting_of(cfg)
    finally:
        cfg.choice = before


def _parameters(section: DictConfig) -> int:
    """Number of parameters of a model, built without memory."""
    with torch.device("meta"):
        model = instantiate(section)
    return sum(parameter.numel() for parameter in model.parameters())


def paper_tables() -> Iterator[PaperTable]:
    """The paper's tables, cell by cell."""
    table = PaperTable("Table 1: COCO, teacher ViDT-base", [*AP_COLUMNS, "#Params", "FPS"])
    names = {"COCO/vidt_base": "teacher ViDT-base"}
    for size in ("small", "tiny", "nano"):
        names[f"COCO/vidt_{size}"] = f"ViDT-{size} alone"
        for key, label in DETECTION_METHODS.items():
            names[f"COCO/{key}_vidt_{size}"] = f"ViDT-{size}, {label}"
    table.rows = [(label, [Cell(name, column) for column in table.columns]) for name, label in names.items()]
    yield table
    table = PaperTable("Table 2: ImageNet-1k, 300 epochs", ["top1", "#Params"])
    for size in ("tiny", "small"):
        for prefix, label in IMAGENET_METHODS.items():
            name = f"ImageNet/{prefix}deit_{size}"
            table.rows.append((f"DeiT-{size}, {label}", [Cell(name, column) for column in table.columns]))
    yield table
    table = PaperTable("Table 3: components, ViDT-nano from ViDT-base", AP_COLUMNS[:3])
    for name, label in {
        "row1_token_matching": "token matching",
        "row2_subspace": "+ subspace learning",
        "row3_multi_task": "+ multi-task optimisation",
        "row4_high_dimensional": "+ high-dimensional alignment",
    }.items():
        table.rows.append((label, [Cell(f"COCO/table3/{name}", column) for column in table.columns]))
    yield table
    columns = [f"{size} from {teacher}" for size in ("nano", "tiny") for teacher in ("small", "base")]
    table = PaperTable("Table 4: AP by teacher", columns)
    alone: list[Cell | None] = []
    for size in ("nano", "tiny"):
        alone += [None, Cell(f"COCO/vidt_{size}", "AP")]
    table.rows.append(("alone", alone))
    students = [f"{size}{suffix}" for size in ("nano", "tiny") for suffix in ("_from_small", "")]
    for key, label in DETECTION_METHODS.items():
        table.rows.append((label, [Cell(f"COCO/{key}_vidt_{name}", "AP") for name in students]))
    yield table
    table = PaperTable("Table C.1: CIFAR-100, top-1 (last epoch)", [pair.replace("_", " ") for pair in PAIRS])
    pairs = LazyConfig.load(get_config_file("common/cifar_pairs.py")).pairs
    for role in ("teacher", "student"):
        cells = [Cell(f"CIFAR100/alone choice.network={pairs[pair][role]}", "top1") for pair in PAIRS]
        table.rows.append((f"{role} alone", cells))
    for method, label in CIFAR_METHODS.items():
        cells = [Cell(f"CIFAR100/distill choice.pair={p} choice.method={method}", "top1") for p in PAIRS]
        table.rows.append((label, cells))
    yield table


def table_markdown(table: PaperTable, runs: PaperRuns) -> str:
    """A table with what its runs say, the mean and, of several seeds, their standard deviation and number."""
    lines = [f"## {table.title}", "", f"| | {' | '.join(table.columns)} |"]
    lines.append("| --- " * (len(table.columns) + 1) + "|")
    for label, cells in table.rows:
        shown = ["" if cell is None else _shown(cell, runs.values(cell)) for cell in cells]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    missing = [config for config in table.configs() if not runs.of(config)]
    if missing:
        lines += ["", "Not made, no finished run of: " + ", ".join(f"`{name}`" for name in missing) + "."]
    return "\n".join(lines) + "\n"


def _shown(cell: Cell, values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = float(np.mean(values))
    if cell.metric == "#Params":
        return f"{mean / 1e6:.1f} M"
    spread = f" ± {np.std(values, ddof=1):.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{mean:.1f}{spread}"
