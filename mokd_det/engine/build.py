"""From a configuration to a finished training or evaluation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mokd_det.balancing.base import Balancer
from mokd_det.balancing.objectives import Objectives
from mokd_det.checkpoint import LoadReport, export_student, load_into, write_file
from mokd_det.classification.dataset import ImageDataset
from mokd_det.config import TrainSettings
from mokd_det.contract import TrainingLoader, TrainingTask, as_task, as_training_loader
from mokd_det.engine.cache_facts import cache_facts
from mokd_det.engine.checkpointing import AtomicCheckpointer
from mokd_det.engine.ema import EMA_TASK_PREFIX, StudentEma
from mokd_det.engine.gradient_conflict import GradientConflict
from mokd_det.engine.hooks import (
    BalancePrinter,
    BestModel,
    Evaluation,
    MethodDiagnostics,
    PeriodicCheckpointer,
    PeriodicWriter,
    SaveWhenStopping,
)
from mokd_det.engine.optimizer import with_fast_kernel
from mokd_det.engine.run_directory import drop_metrics_from, set_aside_previous_run
from mokd_det.engine.setup import pick_device
from mokd_det.engine.testing import evaluate, write_results
from mokd_det.engine.trackers import Tracker, flat_settings
from mokd_det.engine.trainer import MoKDTrainer
from mokd_det.errors import ConfigError
from mokd_det.folder_lock import unlock_folder
from mokd_det.guard.policy import BATCH_FOLDER, NonFinitePolicy

__all__ = ["build_trainer", "do_test", "do_train", "load_initial", "training_pass"]

logger = logging.getLogger(__name__)


def build_trainer(cfg: DictConfig, settings: TrainSettings) -> MoKDTrainer:
    """Model, optimiser, loader, objectives and balancer of a configuration, as a trainer without hooks.

    Raises:
        ConfigError: the configuration contradicts itself; other :class:`mokd_det.errors.MoKDError` from the
            parts.
    """
    device = pick_device(settings.device)
    model = instantiate(cfg.model).to(device)
    cfg.optimizer.params.model = model
    optimizer = with_fast_kernel(instantiate(cfg.optimizer))
    _make_plain(optimizer)
    # The configuration is kept and may be saved again; the model is no part of it.
    cfg.optimizer.params.model = None
    ddp = dict(settings.ddp)
    if device.type == "cpu":
        ddp.setdefault("device_ids", None)
    patterns = OmegaConf.to_container(cfg.objectives, resolve=True)
    balancer = instantiate(cfg.balancer)
    task = as_task(model)
    _check_signs(task, balancer)
    balancer.check_optimizer(optimizer)
    loader = instantiate(cfg.dataloader.train)
    _check_classes(cfg, task, as_training_loader(loader))
    trainer = MoKDTrainer(
        create_ddp_model(model, **ddp),
        loader,
        optimizer,
        objectives=Objectives({name: group for name, group in patterns.items() if group is not None}),
        balancer=balancer,
        amp=dataclasses.asdict(settings.amp),
        clip_grad=dataclasses.asdict(settings.clip_grad) if settings.clip_grad is not None else None,
        accumulate=settings.accumulate,
        seed=settings.seed,
        non_finite=NonFinitePolicy(
            **dataclasses.asdict(settings.non_finite), directory=str(Path(settings.output_dir) / BATCH_FOLDER)
        ),
    )
    images = cfg.dataloader.train.get("total_batch_size")
    trainer.run_facts = {
        "train.max_iter": settings.max_iter,
        **({} if images is None else {"dataloader.train.total_batch_size": images}),
    }
    _open_teacher_cache(cfg, trainer)
    return trainer


def _open_teacher_cache(cfg: DictConfig, trainer: MoKDTrainer) -> None:
    """Let a teacher's cache show that it was made for this configuration, before anything is trained or moved."""
    if not trainer.task.has_teacher_cache:
        return
    if as_training_loader(trainer.data_loader).augments_endlessly:
        raise ConfigError(
            "model.teacher_cache needs images that come back unchanged: set dataloader.train.views=1 (without random "
            "augmentation) or to the number of augmentations of an image"
        )
    with trainer.precision.autocast():
        trainer.task.open_teacher_cache(cache_facts(cfg, trainer.data_loader))


def _check_signs(task: TrainingTask, balancer: Balancer) -> None:
    """Refuse a loss that can be 0 or negative by construction where the balancer takes its logarithm."""
    signed = task.signed_losses
    if signed and balancer.requires_positive:
        raise ConfigError(
            f"balancer {type(balancer).__name__} takes logarithms, but loss '{signed[0]}' can be 0 or negative by "
            f"construction; use FixedWeights, or a variant of the method whose losses are positive"
        )


def _check_classes(cfg: DictConfig, task: TrainingTask, loader: TrainingLoader[Any]) -> None:
    """Refuse classes that differ between model, training data and evaluation data, as far as these say theirs."""
    names = loader.class_names
    if names is None:
        return
    student = task.eval_model
    found = as_task(student).num_classes
    if found not in (None, len(names)):
        raise ConfigError(
            f"{'model.student' if 'student' in cfg.model else 'model'} ({type(student).__name__}) has "
            f"num_classes={found}, but the training data {loader.data_name} has {len(names)} classes; "
            f"num_classes must be {len(names)}"
        )
    test = (cfg.dataloader.get("test") or {}).get("dataset")
    tested = instantiate(test) if isinstance(test, DictConfig) else None
    others = tested.class_names if isinstance(tested, ImageDataset) else names
    if tuple(others) != tuple(names):
        differing = [name for name in (*names, *others) if (name in names) != (name in others)]
        raise ConfigError(
            f"the training data {loader.data_name} and the evaluation data must have the same classes in the same "
            + (
                f"order, but only one of them has '{differing[0]}'"
                if differing
                else "order, but their orders differ"
            )
        )


def _make_plain(optimizer: torch.optim.Optimizer) -> None:
    """Replace the configuration's list objects, which some versions of torch keep, by tuples: checkpoints hold plain
    values only."""
    for options in (optimizer.defaults, *optimizer.param_groups):
        options.update({name: tuple(value) for name, value in options.items() if OmegaConf.is_list(value)})


def do_train(cfg: DictConfig, settings: TrainSettings, *, resume: bool = False) -> MoKDTrainer:
    """Train to ``max_iter``, with all hooks; ends with ``<output_dir>/student_final.pth``.

    With ``train.ema`` the averaged weights are in the checkpoints under "ema", are evaluated beside the student's, and
    end in ``student_final_ema.pth``. ``resume`` continues from the newest checkpoint of the output directory, if there
    is one; otherwise what an earlier run left there is set aside.
    """
    try:
        return _train(cfg, settings, resume)
    finally:
        unlock_folder(settings.output_dir)


def _train(cfg: DictConfig, settings: TrainSettings, resume: bool) -> MoKDTrainer:
    trackers: list[Tracker] = [instantiate(call) for call in cfg.trackers.values()]
    trainer = build_trainer(cfg, settings)
    student = trainer.task.eval_model
    parts = trainer.task.checkpoint_parts()
    ema = None if settings.ema is None else StudentEma(student, **dataclasses.asdict(settings.ema))
    if ema is not None:
        parts["ema"] = ema.model
    checkpointer = AtomicCheckpointer(student, settings.output_dir, trainer=trainer, **parts)
    trainer.register_hooks(_hooks(cfg, settings, checkpointer, student, ema))
    if settings.diagnostics_period > 0:
        trainer.register_hooks([MethodDiagnostics(settings.diagnostics_period)])
    # A single objective has nothing to be in conflict with.
    if settings.conflict_period > 0 and len(trainer.objectives.names) > 1:
        trainer.register_hooks([GradientConflict(settings.conflict_period, settings.conflict_groups)])
    # Now, as a resumed run may have nothing more to save.
    checkpointer.sweep()
    start = _restore(trainer, checkpointer, student, settings, cfg, resume)
    if ema is not None and start == 0:
        ema.restart()
    if comm.is_main_process():
        for tracker in trackers:
            tracker.begin(settings.output_dir, flat_settings(OmegaConf.to_container(cfg)), resumed=start > 0)
    # The writers open their files, so those of an earlier run must be dealt with before.
    if comm.is_main_process():
        writers = [
            *default_writers(settings.output_dir, settings.max_iter),
            BalancePrinter(trainer.objectives.names),
            *trackers,
        ]
        trainer.register_hooks([PeriodicWriter(writers, period=settings.log_period)])
        # After the writers: a kill between the two leaves lines too many, which a resume drops, and never one too few.
        period, keep = settings.checkpointer.period, settings.checkpointer.max_to_keep
        trainer.register_hooks([PeriodicCheckpointer(checkpointer, period, max_to_keep=keep)])
    trainer.train(start, settings.max_iter)
    if comm.is_main_process():
        _export(student, Path(settings.output_dir) / "student_final.pth", "trained")
        if ema is not None:
            _export(ema.model, Path(settings.output_dir) / "student_final_ema.pth", "averaged")
    return trainer


def _export(student: nn.Module, file: Path, what: str) -> None:
    write_file(export_student({"model": student.state_dict()})["model"], file)
    logger.info("The %s weights are in %s", what, file)
    if as_task(student).save_pretrained(file.with_suffix("")):
        logger.info("The %s model, as its own library loads it, is in %s", what, file.with_suffix(""))


def do_test(cfg: DictConfig, settings: TrainSettings, *, resume: bool = False) -> dict[str, Any]:
    """Evaluate ``init_checkpoint``, or with ``resume`` the newest checkpoint; writes ``<output_dir>/results.json``.

    Only the student of a distillation is built: no teacher file is needed. Returns {task: {metric: value}} on the main
    process.

    Raises:
        ConfigError: there is nothing to evaluate or nothing to evaluate with.
        CheckpointError: the weights cannot be used.
    """
    try:
        return _test(cfg, settings, resume)
    finally:
        unlock_folder(settings.output_dir)


def _test(cfg: DictConfig, settings: TrainSettings, resume: bool) -> dict[str, Any]:
    if not _can_evaluate(cfg):
        raise ConfigError("--eval-only needs dataloader.test and dataloader.evaluator in the config file")
    node = cfg.model.student if "student" in cfg.model else cfg.model
    student = instantiate(node).to(pick_device(settings.device))
    if resume:
        if AtomicCheckpointer(student, settings.output_dir).resume() is None:
            raise ConfigError(
                f"--eval-only --resume: no checkpoint in train.output_dir '{settings.output_dir}'"
            )
    elif settings.init_checkpoint:
        load_initial(student, settings, allow_classifier=False)
    else:
        raise ConfigError("--eval-only has nothing to evaluate: give train.init_checkpoint=FILE, or --resume")
    results = evaluate(cfg.dataloader, student)
    if comm.is_main_process():
        write_results(results, Path(settings.output_dir) / "results.json")
    return results


def _can_evaluate(cfg: DictConfig) -> bool:
    given = [name for name in ("test", "evaluator") if cfg.dataloader.get(name) is not None]
    if len(given) == 1:
        raise ConfigError(
            f"dataloader.{given[0]} is given without its partner; evaluation needs test and evaluator"
        )
    return bool(given)


def load_initial(student: nn.Module, settings: TrainSettings, *, allow_classifier: bool = True) -> LoadReport:
    """Load ``train.init_checkpoint`` as the other settings beside it say; returns what became of every tensor.

    Raises:
        CheckpointError: the file is unusable, or does not fit.
    """
    return load_into(
        student,
        settings.init_checkpoint,
        allow_missing=settings.init_allow_missing,
        allow_unexpected=settings.init_allow_unexpected,
        keep_rows=settings.init_keep_rows,
        on_class_mismatch=settings.init_on_class_mismatch,
        allow_classifier=allow_classifier,
    )


def _restore(
    trainer: MoKDTrainer,
    checkpointer: AtomicCheckpointer,
    student: nn.Module,
    settings: TrainSettings,
    cfg: DictConfig,
    resume: bool,
) -> int:
    """Put the trainer where it starts; returns the first iteration."""
    if resume and checkpointer.resume() is not None:
        start = trainer.iter + 1
        logger.info("Resuming at iteration %d", start)
        if start > settings.max_iter:
            logger.warning(
                "%s has done %d iterations, more than train.max_iter=%d: nothing is left to train",
                Path(settings.output_dir) / checkpointer.resumed_from,
                start,
                settings.max_iter,
            )
        if comm.is_main_process():
            drop_metrics_from(settings.output_dir, start)
        comm.synchronize()
        return start
    if resume:
        logger.info("--resume: no checkpoint in %s, starting at iteration 0", settings.output_dir)
    # Before anything moves: the weights may be those of the earlier run, and a mistake must leave that alone.
    if settings.init_checkpoint:
        load_initial(student, settings)
    # All ranks must have looked for checkpoints before the files move.
    comm.synchronize()
    if comm.is_main_process():
        set_aside_previous_run(settings.output_dir)
    comm.synchronize()
    if trainer.task.needs_preparation:
        trainer.task.prepare_method(training_pass(cfg))
    return 0


def training_pass(cfg: DictConfig) -> Iterable[Any]:
    """Every training image once, in order, as the training loader would deliver it."""
    if cfg.dataloader.get("preparation") is None:
        raise ConfigError(
            "the method looks at the training set before the first step: dataloader.preparation must be a loader that "
            "delivers each training image once"
        )
    return instantiate(cfg.dataloader.preparation)


def _hooks(
    cfg: DictConfig,
    settings: TrainSettings,
    checkpointer: AtomicCheckpointer,
    student: nn.Module,
    ema: StudentEma | None,
) -> list[HookBase]:
    registered: list[HookBase] = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
    ]
    if ema is not None:
        registered.append(ema)
    if comm.is_main_process():
        registered.append(SaveWhenStopping(checkpointer))

    def evaluated() -> dict[str, Any]:
        results = evaluate(cfg.dataloader, student)
        if ema is not None:
            averaged = evaluate(cfg.dataloader, ema.model)
            results.update((EMA_TASK_PREFIX + task, metrics) for task, metrics in averaged.items())
        return results

    if _can_evaluate(cfg):
        registered.append(Evaluation(settings.eval_period, evaluated))
        if settings.best is not None:
            best = settings.best
            directory = str(Path(settings.output_dir) / "best")
            model = ema.model if ema is not None and best.metric.startswith(EMA_TASK_PREFIX) else student
            registered.append(BestModel(model, directory, best.metric, best.mode, settings.eval_period))
    elif settings.best is not None:
        raise ConfigError("train.best needs dataloader.test and dataloader.evaluator")
    return registered
