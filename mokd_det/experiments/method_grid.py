"""The grid of a comparison: methods from a methods file, as overrides of any config of a distillation."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from mokd_det.config import as_override, load_config
from mokd_det.config.config_file import run_program
from mokd_det.config.near_keys import did_you_mean
from mokd_det.errors import ConfigError
from mokd_det.experiments.instruction_sets import Half, half_of
from mokd_det.experiments.training_runs import RECORD, TrainingRun, config_digest, content_digest
from mokd_det.model_zoo import find_config_file
from mokd_det.tools.parsers.compare_methods import PLACE

__all__ = [
    "GridRun",
    "MethodEntry",
    "Teacher",
    "draw_overrides",
    "plan",
    "plan_teachers",
    "read_methods",
    "settings_digest",
]

TEACHER_SEEDS = 1000
"""A teacher's seed is so much above its replicate's number: teacher and student share no random numbers."""

# In a methods file: the directory of another method's run, of the same replicate or (":other") of the next one.
_REFERENCE = re.compile(r"\{run:([^{}:]+)(:other)?\}")

DISTILL = "distill"
"""The objective of the distillation losses."""


@dataclass(frozen=True)
class MethodEntry:
    """What a method changes in a configuration.

    Attributes:
        name: as on the command line.
        label: for people.
        node: the config of the ``Method`` class.
        balancer: the config of the balancer.
        needs_teacher: whether a teacher takes part.
        settings: other values of the config that are this method's own, by dotted key: objectives with inner
            weights, a learning rate that was found for it.
    """

    name: str
    label: str
    node: dict[str, Any]
    balancer: dict[str, Any]
    needs_teacher: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    def overrides(self, config: DictConfig) -> list[str]:
        """``key.path=value`` texts for a configuration."""
        objectives = {**config.objectives, **self.settings.get("objectives", {})}
        names = [str(name) for name, patterns in objectives.items() if patterns is not None]
        texts = [as_override("model.method", self.node)]
        if not self.needs_teacher:
            names = [name for name in names if name != DISTILL]
            # The unused teacher stays: building it draws the same random numbers as in the other methods' runs.
            texts += [f"objectives.{DISTILL}=null", "model.teacher_checkpoint=''"]
        balancer = dict(self.balancer)
        weights = balancer.get("weights")
        if isinstance(weights, Mapping):
            balancer["weights"] = {name: weights.get(name, weights.get("task")) for name in names}
        texts.append(as_override("balancer", balancer))
        return [*texts, *(as_override(key, value) for key, value in self.settings.items())]

    def with_places(self, places: Mapping[str, str]) -> MethodEntry:
        """The method with texts replaced wherever they stand in its values."""
        node, balancer, settings = (
            _replaced(part, places) for part in (self.node, self.balancer, dict(self.settings))
        )
        return replace(self, node=node, balancer=balancer, settings=settings)


def _replaced(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(inner, places) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(inner, places) for inner in value]
    if isinstance(value, str):
        for text, place in places.items():
            value = value.replace(text, place)
    return value


@dataclass(frozen=True)
class Teacher:
    """The teacher of a replicate.

    Attributes:
        weights: its file; None: the configs name it, or there is none.
        run: its training, which also says how to evaluate it; None: there is no config of it.
        trained_here: whether that training is part of the comparison.
    """

    weights: Path | None
    run: TrainingRun | None
    trained_here: bool


@dataclass(frozen=True)
class GridRun(TrainingRun):
    """One cell of the grid.

    Attributes:
        student: the config file's name.
        method: what is trained.
        replicate: of which.
        half: the instruction set of the replicate.
        teacher: the weights that it learns from; None: from nothing, or from a teacher without a file.
        references: other cells that this one takes something from, a balancer's weights say.
        settings: digest of everything but what the replicate decides.
        base: the same without the method.
    """

    student: str
    method: MethodEntry
    replicate: int
    half: Half
    teacher: Path | None
    references: tuple[GridRun, ...]
    settings: str
    base: str


def read_methods(path: Path, names: Sequence[str]) -> list[MethodEntry]:
    """The named methods of a methods file.

    Raises:
        ConfigError: the file cannot be used, it has no such method, or a weight is given for a balancer that
            takes none.
    """
    file = find_config_file(path, "methods file")
    try:
        entries = run_program(file)["methods"]
    # A config file is a program: whatever it raises is a mistake in the file.
    except Exception as error:
        raise ConfigError(f"methods file '{path}' fails with {type(error).__name__}: {error}") from error
    methods = [_read_method(entries, name, path) for name in names]
    labels = [method.label for method in methods]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"methods file '{path}': two of the methods have the same label: {labels}")
    return methods


def _read_method(entries: DictConfig, text: str, path: Path) -> MethodEntry:
    name, _, weight = text.partition("@")
    if name not in entries:
        hint = did_you_mean(name, [str(key) for key in entries])
        raise ConfigError(f"methods file '{path}' has no method '{name}'; {hint}")
    entry = OmegaConf.to_container(entries[name], resolve=True)
    required = {"label", "method", "balancer"}
    if not isinstance(entry, dict) or not required <= set(entry) <= required | {"settings"}:
        raise ConfigError(
            f"methods file '{path}': '{name}' must have label, method and balancer, may have settings, and has "
            f"nothing else"
        )
    settings = entry.get("settings", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"methods file '{path}': settings of '{name}' must map keys of a config to values")
    label, balancer = str(entry["label"]), entry["balancer"]
    if weight:
        if not isinstance(balancer.get("weights"), dict):
            raise ConfigError(f"--methods {text}: the balancer of '{name}' has no weights by name to set")
        try:
            balancer["weights"][DISTILL] = float(weight)
        except ValueError:
            raise ConfigError(f"--methods {text}: '{weight}' is not a number") from None
        label += f", weight {float(weight):g}"
    target = entry["method"]["_target_"]
    target = locate(target) if isinstance(target, str) else target
    return MethodEntry(
        text, label, entry["method"], balancer, getattr(target, "needs_teacher", True), settings
    )


def plan_teachers(options: argparse.Namespace) -> dict[int, Teacher]:
    """Replicate → where its teacher comes from.

    Raises:
        ConfigError: one is not there, and there is no config to train it with.
    """
    return {replicate: _plan_teacher(options, replicate) for replicate in options.replicates}


def _plan_teacher(options: argparse.Namespace, replicate: int) -> Teacher:
    given = None if options.teacher is None else Path(options.teacher.replace(PLACE, str(replicate)))
    directory = options.output / "runs" / f"teacher_r{replicate}"
    is_there = given is not None and given.is_file()
    if options.teacher_config is None:
        if given is not None and not is_there:
            raise ConfigError(
                f"--teacher {given} does not exist (replicate {replicate}); with --teacher-config FILE it is trained "
                "first"
            )
        return Teacher(given, None, False)
    seed = TEACHER_SEEDS + replicate
    overrides = [
        *options.teacher_set,
        as_override("train.output_dir", str(directory)),
        f"train.seed={seed}",
        f"dataloader.train.seed={seed}",
    ]
    config = load_config(options.teacher_config, overrides)
    overrides += draw_overrides(config, options.teacher_draw, replicate, "--teacher-draw")
    run = TrainingRun(
        f"teacher (replicate {replicate})",
        Path(options.teacher_config),
        directory,
        tuple(overrides),
        load_config(options.teacher_config, overrides),
        half_of(replicate).environment,
    )
    # Once begun here it stays the teacher of this comparison, even if the other file appears later.
    trained_here = not is_there or (directory / RECORD).is_file()
    return Teacher(run.weights if trained_here else given, run, trained_here)


def draw_overrides(config: DictConfig, count: int | None, replicate: int, option: str) -> list[str]:
    """Overrides that give a replicate training images of its own, where the configuration can draw them.

    Args:
        config: without these overrides.
        count: images, of each class where the config draws by class; None: as many as the config says.
        replicate: seed of the draw.
        option: that ``count`` was given by.

    Raises:
        ConfigError: a count for data that cannot be drawn from.
    """
    train = config.dataloader.train
    dataset = train.get("dataset")
    if isinstance(dataset, DictConfig):
        if "per_class" not in dataset:
            if count is None:
                return []
            raise ConfigError(
                f"{option} {count}: a classifier's images are drawn by "
                "mokd_det.classification.FewPerClass, which the config's dataloader.train.dataset is not"
            )
        chosen = [] if count is None else [f"dataloader.train.dataset.per_class={count}"]
        return [*chosen, f"dataloader.train.dataset.seed={replicate}"]
    if count is None and train.get("draw") is None:
        return []
    return [f"dataloader.train.draw={{count: {count or train.draw['count']}, seed: {replicate}}}"]


def plan(
    options: argparse.Namespace, methods: Sequence[MethodEntry], teachers: Mapping[int, Path | None]
) -> list[GridRun]:
    """All cells, replicate by replicate: an unfinished grid has its first replicates complete. What takes something
    from another cell stands after it. ``teachers`` maps replicates to weights.

    Raises:
        ConfigError: a config is not one of a distillation, or has nothing to evaluate with, or a method refers to a run
            that is not part of the grid.
    """
    bases = {path: load_config(path, options.set) for path in options.config}
    digests = {}
    for path, base in bases.items():
        _check_config(base, path)
        shared = load_config(path, _shared_overrides(options, base, options.replicates[0]))
        digests[path] = settings_digest(shared, method=False)
    waiting = [
        (path, method, replicate)
        for replicate in options.replicates
        for path in options.config
        for method in methods
    ]
    planned: dict[tuple[Path, str, int], GridRun] = {}
    while waiting:
        left = []
        for path, method, replicate in waiting:
            places = _references(method, replicate, options)
            if not all((path, *place) in planned for place in places.values()):
                left.append((path, method, replicate))
                continue
            found = {text: planned[(path, *place)] for text, place in places.items()}
            planned[path, method.name, replicate] = _cell(
                options, path, bases[path], digests[path], method, replicate, teachers[replicate], found
            )
        if len(left) == len(waiting):
            names = sorted({method.name for _, method, _ in left})
            raise ConfigError(f"the methods {', '.join(names)} take something from each other in a circle")
        waiting = left
    return list(planned.values())


def _references(
    method: MethodEntry, replicate: int, options: argparse.Namespace
) -> dict[str, tuple[str, int]]:
    """``{run:…}`` in a method's settings → (method, replicate) that it stands for."""
    found = {}
    for match in _REFERENCE.finditer(str((method.node, method.balancer, dict(method.settings)))):
        if match[1] not in options.methods:
            raise ConfigError(
                f"method '{method.name}' takes something from the runs of '{match[1]}', which must be among --methods"
            )
        order = list(options.replicates)
        place = (order.index(replicate) + (1 if match[2] else 0)) % len(order)
        found[match[0]] = (match[1], order[place])
    return found


def _shared_overrides(options: argparse.Namespace, base: DictConfig, replicate: int) -> list[str]:
    """What all methods of a replicate have in common."""
    views = options.teacher_cache and base.dataloader.train.get("views") is None
    return [
        *options.set,
        f"train.seed={replicate}",
        f"dataloader.train.seed={replicate}",
        *draw_overrides(base, options.draw, replicate, "--draw"),
        *(["dataloader.train.views=1"] if views else []),
    ]


def _cell(
    options: argparse.Namespace,
    path: Path,
    base: DictConfig,
    base_digest: str,
    method: MethodEntry,
    replicate: int,
    teacher: Path | None,
    references: Mapping[str, GridRun],
) -> GridRun:
    directory = options.output / "runs" / path.stem / f"{method.name}_r{replicate}"
    shared = _shared_overrides(options, base, replicate)
    weights = _teacher_weights(method, base, teacher)
    taught = []
    if weights is not None:
        taught.append(as_override("model.teacher_checkpoint", str(weights)))
        if options.teacher_cache:
            cache = {
                "_target_": "mokd_det.distillation.TeacherCache",
                "directory": str(
                    options.output / "teacher_cache" / f"{path.stem}_r{replicate}{_cache_suffix(method)}"
                ),
                "overwrite": True,
            }
            taught.append(as_override("model.teacher_cache", cache))
    own = method.with_places({text: str(run.directory) for text, run in references.items()})
    place = as_override("train.output_dir", str(directory))
    overrides = (*shared, place, *own.overrides(base), *taught)
    config = load_config(path, overrides)
    # Where the other runs lie differs between replicates; that they are named does not.
    described = load_config(path, [*shared, *method.overrides(base), *taught]) if references else config
    half = half_of(replicate)
    name = f"{method.label} (replicate {replicate})"
    return GridRun(
        f"{path.stem}: {name}" if len(options.config) > 1 else name,
        path,
        directory,
        overrides,
        config,
        half.environment,
        path.stem,
        method,
        replicate,
        half,
        weights,
        tuple(references.values()),
        settings_digest(described),
        base_digest,
    )


def _cache_suffix(method: MethodEntry) -> str:
    """What tells apart caches of methods that read other taps or have another teacher: they may train at once."""
    own = {
        key: value
        for key, value in method.settings.items()
        if key.startswith(("model.taps", "model.teacher"))
    }
    return f"_{content_digest(own)[:8]}" if own else ""


def settings_digest(config: DictConfig, *, method: bool = True) -> str:
    """Digest of what replicates have in common: everything but seeds, places and the teacher's file; ``method``: with
    the method's node, its balancer and the objectives."""
    config = copy.deepcopy(config)
    config.train.seed = config.dataloader.train.seed = 0
    for node in (config.dataloader.train.get("draw"), config.dataloader.train.get("dataset")):
        if isinstance(node, DictConfig) and "seed" in node:
            node.seed = 0
    if config.model.get("teacher_cache") is not None:
        config.model.teacher_cache.directory = ""
    if not method:
        config.balancer = config.objectives = None
        config.model.method = None
    return config_digest(config)


def _teacher_weights(method: MethodEntry, config: DictConfig, teacher: Path | None) -> Path | None:
    """The file that a method's teacher comes from; None: it has no teacher, or one without a file."""
    configured = config.model.get("teacher_checkpoint")
    if not method.needs_teacher or not (teacher or configured):
        return None
    if teacher is None and not Path(configured).is_file():
        raise ConfigError(
            f"teacher checkpoint {configured} of the config does not exist; give --teacher FILE, or train one with "
            "--teacher-config FILE"
        )
    return teacher or Path(configured)


def _check_config(config: DictConfig, path: Path) -> None:
    if not {"student", "method", "teacher"} <= set(config.model):
        raise ConfigError(f"--config {path}: model must be a Distiller with student, teacher and method")
    if config.objectives.get(DISTILL) is None:
        raise ConfigError(f"--config {path}: the objectives {list(config.objectives)} must have '{DISTILL}'")
    if config.dataloader.get("test") is None or config.dataloader.get("evaluator") is None:
        raise ConfigError(f"--config {path}: dataloader.test and dataloader.evaluator are needed to compare")
