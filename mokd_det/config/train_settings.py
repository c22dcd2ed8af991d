"""The ``train`` section of a configuration: its keys, their defaults and what they must satisfy."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from mokd_det.checkpoint.loading import KEEP_ROWS, ON_CLASS_MISMATCH
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
    "train_defaults",
    "train_section_defaults",
]


@dataclass(frozen=True)
class AmpSettings:
    """Mixed precision. float16 uses a GradScaler, bfloat16 needs none and also runs on CPUs."""

    enabled: bool = False
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class ClipGradSettings:
    """Clipping of the norm of all gradients together."""

    max_norm: float = 0.1
    norm_type: float = 2.0


@dataclass(frozen=True)
class CheckpointerSettings:
    """A checkpoint every ``period`` iterations; the newest ``max_to_keep`` are kept (None: all)."""

    period: int = 5000
    max_to_keep: int | None = 3


@dataclass(frozen=True)
class BestSettings:
    """Keep the best model by an evaluation result such as "bbox/AP", in ``<output_dir>/best/``."""

    metric: str = "bbox/AP"
    mode: str = "max"


@dataclass(frozen=True)
class EmaSettings:
    """Moving average of the student's weights, see :class:`mokd_det.engine.ema.StudentEma`."""

    decay: float = 0.99996
    warmup: bool = False


@dataclass(frozen=True)
class NonFiniteSettings:
    """NaN and infinity, see :class:`mokd_det.engine.non_finite.NonFinitePolicy`."""

    policy: str = "stop"
    max_skips: int = 10
    max_kept: int = 3
    check_gradients: bool = True


@dataclass(frozen=True)
class TrainSettings:
    """``cfg.train``.

    Attributes:
        max_iter: optimiser steps; the only key without a default.
        output_dir: where everything the run produces goes.
        init_checkpoint: weights the model (a Distiller's student) starts from, or those that are evaluated;
            "": none.
        init_allow_missing: ``fnmatch`` patterns of model keys that the file may lack.
        init_allow_unexpected: ``fnmatch`` patterns of keys of the file that are ignored.
        init_keep_rows: of published COCO class heads: "coco80" or "all", see
            :func:`mokd_det.checkpoint.load_into`.
        init_on_class_mismatch: "error", or "reinit": keep the model's own class heads.
        seed: of initial weights, random masks and sampling.
        device: "auto" (CUDA where there is one), "cuda" or "cpu".
        amp: mixed precision.
        clip_grad: gradient clipping; None: off.
        accumulate: batches per optimiser step.
        ddp: arguments of ``DistributedDataParallel``, and ``fp16_compression``.
        checkpointer: when checkpoints are written and how many are kept.
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
            measured apart (:func:`mokd_det.engine.parameter_groups.group_parameters`); {}: its default groups.
    """

    max_iter: int
    output_dir: str = "./output"
    init_checkpoint: str = ""
    init_allow_missing: tuple[str, ...] = ()
    init_allow_unexpected: tuple[str, ...] = ()
    init_keep_rows: str = "coco80"
    init_on_class_mismatch: str = "error"
    seed: int = 0
    device: str = "auto"
    amp: AmpSettings = field(default_factory=AmpSettings)
    clip_grad: ClipGradSettings | None = None
    accumulate: int = 1
    ddp: Mapping[str, Any] = field(
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
    conflict_groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> TrainSettings:
        """Check the section and fill in defaults.

        Args:
            section: plain dict of ``cfg.train``.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range; names the full key.
        """
        _reject_unknown(section, {item.name for item in dataclasses.fields(cls)}, "train")
        if "max_iter" not in section:
            raise ConfigError("train.max_iter is missing; give the number of optimiser steps")
        values = dict(section)
        for name, section_type in _SECTIONS.items():
            if name in values:
                values[name] = _nested(section_type, values[name], f"train.{name}", name in _OPTIONAL)
        for name, pattern_list in values.items():
            if name.startswith("init_allow_"):
                values[name] = _patterns(pattern_list, f"train.{name}")
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        for name in ("max_iter", "seed", "accumulate", "eval_period", "log_period"):
            _require_type(getattr(self, name), int, f"train.{name}")
        for name in ("output_dir", "init_checkpoint", "device"):
            _require_type(getattr(self, name), str, f"train.{name}")
        _require(self.max_iter >= 1, "train.max_iter", self.max_iter, "1 or more")
        _require(bool(self.output_dir), "train.output_dir", self.output_dir, "a directory")
        choices = {"init_keep_rows": KEEP_ROWS, "init_on_class_mismatch": ON_CLASS_MISMATCH}
        for name, known in choices.items():
            value = getattr(self, name)
            _require(value in known, f"train.{name}", value, " or ".join(map(repr, known)))
        _require(self.seed >= 0, "train.seed", self.seed, "0 or more")
        _require(
            self.device in ("auto", "cuda", "cpu"), "train.device", self.device, "'auto', 'cuda' or 'cpu'"
        )
        _require(self.accumulate >= 1, "train.accumulate", self.accumulate, "1 or more")
        _require(self.eval_period >= 0, "train.eval_period", self.eval_period, "0 or more")
        _require(self.log_period >= 1, "train.log_period", self.log_period, "1 or more")
        for name in ("diagnostics_period", "conflict_period"):
            _require_type(getattr(self, name), int, f"train.{name}")
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        if not isinstance(self.conflict_groups, Mapping):
            raise ConfigError(f"train.conflict_groups is {self.conflict_groups!r}; it must be a mapping")
        for group, patterns in self.conflict_groups.items():
            _patterns(patterns, f"train.conflict_groups.{group}")

        _require_type(self.amp.enabled, bool, "train.amp.enabled")
        dtypes = ("float16", "bfloat16")
        _require(self.amp.dtype in dtypes, "train.amp.dtype", self.amp.dtype, "'float16' or 'bfloat16'")
        period, keep = self.checkpointer.period, self.checkpointer.max_to_keep
        _require_type(period, int, "train.checkpointer.period")
        _require(period >= 1, "train.checkpointer.period", period, "1 or more")
        if keep is not None:
            _require_type(keep, int, "train.checkpointer.max_to_keep")
            _require(keep >= 1, "train.checkpointer.max_to_keep", keep, "1 or more, or null for all")
        if self.clip_grad is not None:
            for name in ("max_norm", "norm_type"):
                value = getattr(self.clip_grad, name)
                _require_type(value, float, f"train.clip_grad.{name}")
                _require(value > 0, f"train.clip_grad.{name}", value, "above 0")
        if self.best is not None:
            _require_type(self.best.metric, str, "train.best.metric")
            _require(self.best.mode in ("max", "min"), "train.best.mode", self.best.mode, "'max' or 'min'")
        if self.ema is not None:
            _require_type(self.ema.decay, float, "train.ema.decay")
            _require(0 <= self.ema.decay < 1, "train.ema.decay", self.ema.decay, "from 0 to below 1")
            _require_type(self.ema.warmup, bool, "train.ema.warmup")
        policy = self.non_finite.policy
        _require(policy in ("stop", "skip"), "train.non_finite.policy", policy, "'stop' or 'skip'")
        for name in ("max_skips", "max_kept"):
            value = getattr(self.non_finite, name)
            _require_type(value, int, f"train.non_finite.{name}")
            _require(value >= 0, f"train.non_finite.{name}", value, "0 or more")
        _require_type(self.non_finite.check_gradients, bool, "train.non_finite.check_gradients")
        if not isinstance(self.ddp, Mapping):
            raise ConfigError(f"train.ddp is {self.ddp!r}; it must be a mapping")
        _reject_unknown(self.ddp, ddp_arguments(), "train.ddp")


_SECTIONS: dict[str, Any] = {
    "amp": AmpSettings,
    "clip_grad": ClipGradSettings,
    "checkpointer": CheckpointerSettings,
    "best": BestSettings,
    "ema": EmaSettings,
    "non_finite": NonFiniteSettings,
}
_OPTIONAL = ("clip_grad", "best", "ema")


def train_defaults() -> dict[str, Any]:
    """Every key of the section that has a default, as plain dicts and lists."""
    settings = dataclasses.asdict(TrainSettings(max_iter=1))
    del settings["max_iter"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def train_section_defaults(name: str) -> dict[str, Any]:
    """The keys of an optional section (``clip_grad``, ``best``, ``ema``) when it is switched on; {} for any other
    name."""
    return dataclasses.asdict(_SECTIONS[name]()) if name in _OPTIONAL else {}


def ddp_arguments() -> set[str]:
    """The keys that ``train.ddp`` may have."""
    return {*inspect.signature(DistributedDataParallel).parameters, "fp16_compression"} - {"module"}


def _nested(section_type: Any, value: Any, path: str, optional: bool) -> Any:
    if value is None and optional:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r}; it must be a mapping{' or null' if optional else ''}")
    _reject_unknown(value, {item.name for item in dataclasses.fields(section_type)}, path)
    return section_type(**value)


def _patterns(value: Any, path: str) -> tuple[str, ...]:
    is_list = value is None or isinstance(value, (list, tuple))
    if not is_list or not all(isinstance(pattern, str) for pattern in value or ()):
        raise ConfigError(f"{path} is {value!r}; it must be a list of patterns such as ['class_embed.*']")
    return tuple(value or ())


def _reject_unknown(section: Mapping[str, Any], known: set[str], path: str) -> None:
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1)
            hint = f"did you mean '{path}.{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown config key '{path}.{key}'; {hint}")


def _require_type(value: Any, wanted: type, path: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is float:
        fits = is_number
    elif wanted is int:
        fits = isinstance(value, int) and is_number
    else:
        fits = isinstance(value, wanted)
    if not fits:
        raise ConfigError(
            f"{path} is {value!r} ({type(value).__name__}); it must be of type {wanted.__name__}"
        )


def _require(condition: bool, path: str, value: Any, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"{path} is {value!r}; it must be {wanted}")
