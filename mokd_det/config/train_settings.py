"""The ``train`` section of a configuration: its keys, their defaults and what they must satisfy."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from torch.nn.parallel import DistributedDataParallel

from mokd_det.checkpoint.loading import KEEP_ROWS, ON_CLASS_MISMATCH
from mokd_det.config.near_keys import did_you_mean
from mokd_det.errors import ConfigError

__all__ = [
    "AmpSettings",
    "BestSettings",
    "CheckpointerSettings",
    "ClipGradSettings",
    "EmaSettings",
    "NonFiniteSettings",
    "TrainSettings",
    "ddp_arguments",
    "filled_train_section",
    "train_section_defaults",
]


@dataclass
class AmpSettings:
    """Mixed precision. float16 uses a GradScaler, bfloat16 needs none and also runs on CPUs."""

    enabled: bool = False
    dtype: str = "bfloat16"


@dataclass
class ClipGradSettings:
    """Clipping of the norm of all gradients together."""

    max_norm: float = 0.1
    norm_type: float = 2.0


@dataclass
class CheckpointerSettings:
    """A checkpoint every ``period`` iterations; the newest ``max_to_keep`` are kept (None: all)."""

    period: int = 5000
    max_to_keep: int | None = 3


@dataclass
class BestSettings:
    """Keep the best model by an evaluation result such as "bbox/AP", in ``<output_dir>/best/``."""

    metric: str = "bbox/AP"
    mode: str = "max"


@dataclass
class EmaSettings:
    """Moving average of the student's weights, see :class:`mokd_det.engine.ema.StudentEma`."""

    decay: float = 0.99996
    warmup: bool = False


@dataclass
class NonFiniteSettings:
    """NaN and infinity, see :class:`mokd_det.guard.policy.NonFinitePolicy`."""

    policy: str = "stop"
    max_skips: int = 10
    max_kept: int = 3
    check_gradients: bool = True


@dataclass
class TrainSettings:
    """``cfg.train``: the schema of the section. OmegaConf checks and converts types by the annotations.

    Attributes:
        max_iter: optimiser steps; the only key without a default.
        init_checkpoint: weights the model (a Distiller's student) starts from, or those that are evaluated;
            "": none.
        init_allow_missing: ``fnmatch`` patterns of model keys that the file may lack.
        init_allow_unexpected: ``fnmatch`` patterns of keys of the file that are ignored.
        init_keep_rows: of published COCO class heads: "coco80" or "all", see :func:`mokd_det.checkpoint.load_into`.
        init_on_class_mismatch: "error", or "reinit": keep the model's own class heads.
        seed: of initial weights, random masks and sampling.
        device: "auto" (CUDA where there is one), "cuda" or "cpu".
        clip_grad: gradient clipping; None: off.
        accumulate: batches per optimiser step.
        ddp: arguments of ``DistributedDataParallel``, and ``fp16_compression``.
        best: keep the best model; None: do not.
        ema: average the student's weights beside the training, and evaluate and export both; None: do not.
        non_finite: what happens at NaN and infinity in a loss, a gradient, a tap of the teacher or an image.
        eval_period: iterations between evaluations; 0: only after the last one.
        log_period: iterations between lines of the log and the writers.
        diagnostics_period: iterations between looks into the distillation method (signature of D, rank of the
            target, orthogonality error); 0: never.
        conflict_period: iterations between measurements of how the objectives' gradients relate
            (:class:`mokd_det.engine.gradient_conflict.GradientConflict`); 0: never.
        conflict_groups: name → ``fnmatch`` patterns of the student's parameter names: which parts of it are
            measured apart (:func:`mokd_det.contract.parameter_parts.split_by_part`); {}: its default groups.
    """

    max_iter: int = MISSING
    output_dir: str = "./output"
    init_checkpoint: str = ""
    init_allow_missing: list[str] = field(default_factory=list)
    init_allow_unexpected: list[str] = field(default_factory=list)
    init_keep_rows: str = "coco80"
    init_on_class_mismatch: str = "error"
    seed: int = 0
    device: str = "auto"
    amp: AmpSettings = field(default_factory=AmpSettings)
    clip_grad: ClipGradSettings | None = None
    accumulate: int = 1
    ddp: dict[str, Any] = field(
        default_factory=lambda: {
            "broadcast_buffers": False,
            "find_unused_parameters": False,
            "fp16_compression": False,
        }
    )
    checkpointer: CheckpointerSettings = field(default_factory=CheckpointerSettings)
    best: BestSettings | None = None
    ema: EmaSettings | None = None
    non_finite: NonFiniteSettings = field(default_factory=NonFiniteSettings)
    eval_period: int = 5000
    log_period: int = 20
    diagnostics_period: int = 500
    conflict_period: int = 0
    conflict_groups: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, section: Mapping[str, Any] | DictConfig) -> TrainSettings:
        """Check ``cfg.train``, or a plain dict of it, and fill in defaults.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range; names the full key.
        """
        if isinstance(section, DictConfig):
            section = OmegaConf.to_container(section, resolve=True)
        merged = _merged(section)
        for key, lowest in _AT_LEAST.items():
            value = OmegaConf.select(merged, key)
            remark = ", or null for all" if key == "checkpointer.max_to_keep" else ""
            _require(value is None or value >= lowest, key, value, f"{lowest} or more{remark}")
        for key, known in _CHOICES.items():
            value = OmegaConf.select(merged, key)
            words = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
            _require(value is None or value in known, key, value, words)
        settings: TrainSettings = OmegaConf.to_object(merged)
        _require(bool(settings.output_dir), "output_dir", settings.output_dir, "a directory")
        settings = dataclasses.replace(settings, output_dir=os.path.expanduser(settings.output_dir))
        if settings.clip_grad is not None:
            for key, value in dataclasses.asdict(settings.clip_grad).items():
                _require(value > 0, f"clip_grad.{key}", value, "above 0")
        if settings.ema is not None:
            decay = settings.ema.decay
            _require(0 <= decay < 1, "ema.decay", decay, "from 0 to below 1")
        for key in settings.ddp:
            if key not in ddp_arguments():
                raise _unknown(f"train.ddp.{key}", ddp_arguments())
        return settings


_AT_LEAST = {
    "max_iter": 1,
    "seed": 0,
    "accumulate": 1,
    "eval_period": 0,
    "log_period": 1,
    "diagnostics_period": 0,
    "conflict_period": 0,
    "checkpointer.period": 1,
    "checkpointer.max_to_keep": 1,
    "non_finite.max_skips": 0,
    "non_finite.max_kept": 0,
}
_CHOICES = {
    "init_keep_rows": KEEP_ROWS,
    "init_on_class_mismatch": ON_CLASS_MISMATCH,
    "device": ("auto", "cuda", "cpu"),
    "amp.dtype": ("float16", "bfloat16"),
    "best.mode": ("max", "min"),
    "non_finite.policy": ("stop", "skip"),
}
_OPTIONAL: dict[str, type] = {"clip_grad": ClipGradSettings, "best": BestSettings, "ema": EmaSettings}
_WORDS = {
    "ClipGradSettings | None": "a mapping or null",
    "BestSettings | None": "a mapping or null",
    "EmaSettings | None": "a mapping or null",
    "dict[str, Any]": "a mapping",
    "dict[str, list[str]]": "a mapping of names to lists of patterns",
    "list[str]": "a list of patterns such as ['class_embed.*']",
}
"""The types of the schema that messages do not call by their own name."""


def filled_train_section(section: DictConfig) -> dict[str, Any]:
    """The section with every default, its references (``${...}``) unresolved.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    return OmegaConf.to_container(_merged(section))


def train_section_defaults(name: str) -> dict[str, Any]:
    """The keys of an optional section (``clip_grad``, ``best``, ``ema``) when it is switched on; {} for any other."""
    return dataclasses.asdict(_OPTIONAL[name]()) if name in _OPTIONAL else {}


def ddp_arguments() -> set[str]:
    """The keys that ``train.ddp`` may have."""
    return {*inspect.signature(DistributedDataParallel).parameters, "fp16_compression"} - {"module"}


def _merged(section: Mapping[str, Any] | DictConfig) -> DictConfig:
    """The section laid over the schema."""
    for key in ("amp", "checkpointer", "non_finite"):
        # OmegaConf's own error would name no key.
        value = section.get(key, {})
        _require(isinstance(value, Mapping | DictConfig), key, value, "a mapping")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainSettings), section)
    except OmegaConfBaseException as error:
        fields = dataclasses.fields(error.object_type) if dataclasses.is_dataclass(error.object_type) else ()
        types = {item.name: str(item.type) for item in fields}
        if isinstance(error, ConfigKeyError):
            raise _unknown(f"train.{error.full_key}", types) from error
        # An entry of a mapping of patterns has no type of its own.
        wanted = types.get(str(error.key), "list[str]")
        _require(False, error.full_key, error.value, _WORDS.get(wanted, f"of type {wanted}"), error)
    if "max_iter" not in merged:
        raise ConfigError("train.max_iter is missing; give the number of optimiser steps")
    return merged


def _unknown(path: str, known: Iterable[str]) -> ConfigError:
    parent = path.rpartition(".")[0]
    return ConfigError(
        f"unknown config key '{path}'; {did_you_mean(path, [f'{parent}.{key}' for key in known])}"
    )


def _require(condition: bool, key: str, value: Any, wanted: str, cause: Exception | None = None) -> None:
    if not condition:
        raise ConfigError(f"train.{key} is {value!r}; it must be {wanted}") from cause
