"""What a training would do, found out without doing it: every check, one batch, time, memory and files."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn

from mokd_det.checkpoint.reading import require_file
from mokd_det.config import TrainSettings, load_config
from mokd_det.config.own_data import own_data_summary
from mokd_det.data.catalog import coco_source
from mokd_det.data.dataset_check import check_dataset
from mokd_det.distillation.distiller import Distiller
from mokd_det.distillation.taps import TapRecorder
from mokd_det.engine.build import build_trainer, load_initial, training_pass
from mokd_det.engine.checkpointing import AtomicCheckpointer
from mokd_det.engine.run_directory import earlier_products
from mokd_det.engine.trainer import MoKDTrainer
from mokd_det.errors import ConfigError, MoKDError
from mokd_det.folder_lock import lock_folder, unlock_folder
from mokd_det.layers import FeatureMap

__all__ = ["dry_run"]

_TIMED_STEPS = 3
_LONG_STEP_SECONDS = 20.0
_EXAMPLES = 3


def dry_run(args: argparse.Namespace) -> int:
    """Check everything that a training depends on and measure one of its steps; nothing is written.

    Errors of the parts are collected. Without any, the run is built, its first batch goes forward and backward (in
    memory alone), and time, memory, taps and files of the whole run are told.

    Returns:
        0; 2 with every error on stderr.

    Raises:
        ConfigError: the configuration itself cannot be read, so there is nothing further to look at.
    """
    if args.eval_only:
        raise ConfigError("--dry-run is for trainings; --eval-only writes next to nothing")
    cfg = load_config(args.config_file, args.opts)
    settings = TrainSettings.from_config(cfg.train)
    seed_all_rng(settings.seed)
    run = _DryRun(cfg, settings, args)
    run.look_at_files()
    run.look_at_data()
    if run.errors:
        run.look_at_parts()
    else:
        run.attempt(run.try_out)
    return run.end()


class _DryRun:
    """The parts of a run, looked at one after the other.

    Attributes:
        errors: of all of them, each once, in the order of discovery.
    """

    def __init__(self, cfg: DictConfig, settings: TrainSettings, args: argparse.Namespace) -> None:
        self.cfg, self.settings, self.args = cfg, settings, args
        self.errors: dict[str, None] = {}
        self.processes = args.num_gpus * args.num_machines
        self.output = Path(settings.output_dir)

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns; None after a mistake in the input, which is kept."""
        try:
            return work()
        except MoKDError as error:
            self.errors[str(error)] = None
            return None

    def end(self) -> int:
        for error in self.errors:
            print(f"error: {error}", file=sys.stderr)
        if self.errors:
            print(f"\n{len(self.errors)} error{'s' * (len(self.errors) != 1)}; this would not train")
            return 2
        print("\nNo error found; nothing was written.")
        return 0

    # Files and data

    def look_at_files(self) -> None:
        _title("configuration")
        print(f"{self.args.config_file} {' '.join(self.args.opts)}".rstrip())
        for line in own_data_summary(self.cfg):
            print(line)
        self.attempt(self._look_at_output)
        for what, path in (
            ("checkpoint", self.settings.init_checkpoint),
            ("teacher checkpoint", self.cfg.model.get("teacher_checkpoint")),
        ):
            if path:
                print(f"{what}: {path}")
                self.attempt(partial(require_file, path, what))
        self.attempt(self._look_at_processes)

    def _look_at_output(self) -> None:
        print(f"output: {self.output}")
        folder = _existing(self.output)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"train.output_dir '{self.output}' cannot be made: '{folder}' is not writable")
        if self.output.is_dir():
            lock_folder(self.output, "train.output_dir")
            unlock_folder(self.output)
        found = earlier_products(self.output)
        if found and self.args.resume:
            print(f"  it holds a run, which --resume continues ({len(found)} files)")
        elif found:
            print(
                f"  it holds a run, which would be set aside into a folder previous_<n> ({len(found)} files)"
            )

    def _look_at_processes(self) -> None:
        images = self.cfg.dataloader.train.get("total_batch_size")
        if images is not None and images % self.processes:
            raise ConfigError(
                f"dataloader.train.total_batch_size is {images}, which {self.processes} processes cannot share equally"
            )

    def look_at_data(self) -> None:
        _title("data")
        for part in ("train", "test"):
            node = self.cfg.dataloader.get(part)
            names = node.get("dataset") if isinstance(node, DictConfig) else None
            if isinstance(names, DictConfig):
                found = self.attempt(partial(instantiate, names))
                if found is not None:
                    print(f"{part}: {getattr(found, 'name', type(found).__name__)}, {len(found)} images")
                continue
            for name in [names] if isinstance(names, str) else names or ():
                self.attempt(partial(self._look_at_dataset, part, name))

    def _look_at_dataset(self, part: str, name: str) -> None:
        source = coco_source(name)
        if source is None:
            print(f"{part}: {name}, which its own loader checks")
            return
        report = check_dataset(source, image_check="header", max_examples=_EXAMPLES)
        numbers = report.statistics
        classes = [entry.name for entry in numbers.classes]
        print(
            f"{part}: {source.json_file}: {numbers.images:,} images ({numbers.images_without_boxes:,} without boxes), "
            f"{numbers.boxes:,} boxes, {len(classes)} classes: {', '.join(classes[:10])}{', …' * (len(classes) > 10)}"
        )
        for problem in report.problems:
            more = f" (and {problem.count - 1:,} more like it)" if problem.count > 1 else ""
            if problem.severity == "error":
                self.errors[f"{problem.examples[0]}{more}"] = None
            else:
                print(f"  warning: {problem.examples[0]}{more}")

    # Parts by themselves, where the whole cannot be built

    def look_at_parts(self) -> None:
        parts: dict[str, Any] = {
            "model": self.cfg.model,
            **{
                f"dataloader.{name}": self.cfg.dataloader.get(name) for name in ("train", "test", "evaluator")
            },
            "balancer": self.cfg.balancer,
        }
        for node in parts.values():
            if node is not None:
                self.attempt(partial(instantiate, node))

    # The whole

    def try_out(self) -> None:
        """Build the run and take its first steps in memory; raises what the run itself would end with."""
        if "teacher_cache" in self.cfg.model:
            self.cfg.model.teacher_cache = None
        share = self.cfg.dataloader.train.get("total_batch_size")
        if self.processes > 1 and share is not None:
            self.cfg.dataloader.train.total_batch_size = share // self.processes
        trainer = build_trainer(self.cfg, self.settings)
        trainer.guard.policy = dataclasses.replace(trainer.guard.policy, directory="")
        student = trainer.task.eval_model
        self._load(trainer)
        _title("model")
        trained = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
        print(
            f"{type(student).__name__}: {_count(student)} parameters; trained, with the method's: {trained:,}"
        )
        if trainer.task.teacher is not None:
            print(f"teacher {type(trainer.task.teacher).__name__}: {_count(trainer.task.teacher)} parameters")
        if trainer.task.needs_preparation:
            print("the method looks at the whole training set first ...", flush=True)
            trainer.task.prepare_method(training_pass(self.cfg))
        if isinstance(trainer.task, Distiller):
            self._show_taps(trainer, trainer.task)
        seconds = self._steps(trainer)
        evaluation = self._evaluation(trainer)
        self._files(trainer, seconds, evaluation)

    def _load(self, trainer: MoKDTrainer) -> None:
        student = trainer.task.eval_model
        if self.args.resume and (self.output / "last_checkpoint").exists():
            checkpointer = AtomicCheckpointer(
                student, str(self.output), trainer=trainer, **trainer.task.checkpoint_parts()
            )
            # Of the hooks, which are not there, it would warn that their states are left out.
            logging.getLogger("detectron2.engine.train_loop").setLevel(logging.ERROR)
            checkpointer.resume()
            print(f"continues from {checkpointer.resumed_from}, iteration {trainer.iter + 1}")
        elif self.settings.init_checkpoint:
            print(load_initial(student, self.settings))

    def _show_taps(self, trainer: MoKDTrainer, task: Distiller) -> None:
        _title("taps")
        task.train()
        with torch.no_grad(), trainer.precision.autocast():
            inputs = task.prepare_batch(next(iter(trainer.data_loader))).inputs
            for who, model in (("student", task.student), ("teacher", task.teacher)):
                sources = task.tap_sources[who]
                if model is None or not sources:
                    continue
                with TapRecorder(model, sources) as recorder:
                    model(inputs)
                for name, value in recorder.values.items():
                    print(f"{who:<8} {name:<12} {_shape(value)}")

    def _steps(self, trainer: MoKDTrainer) -> float:
        """Take the first steps; returns seconds per step."""
        _title("one step")
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.model.train()
        trainer.start_iter, trainer.max_iter = 0, self.settings.max_iter
        seconds = []
        with EventStorage(0) as trainer.storage:
            for trainer.iter in range(1 + _TIMED_STEPS):
                began = time.perf_counter()
                trainer.run_step()
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - began)
                if trainer.iter == 0 and seconds[0] > _LONG_STEP_SECONDS:
                    break
            trainer.flush_scalars()
            for name, value in trainer.storage.latest().items():
                if name.startswith(("loss_", "total_loss", "grad_norm")):
                    print(f"{name:<24} {value[0]:.4g}")
        step = statistics.median(seconds[1:] or seconds)
        each = "per process " if self.processes > 1 else ""
        print(f"seconds {each}{step:.3g} (the first, with all that is made once: {seconds[0]:.3g})")
        if trainer.device.type == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            print(f"GPU memory {_bytes(torch.cuda.max_memory_reserved())} of {_bytes(total)}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"memory of this process {_bytes(peak)}, without those that load data")
        return step

    def _evaluation(self, trainer: MoKDTrainer) -> float:
        """Evaluate one batch; returns the seconds of all evaluations of the run."""
        if self.cfg.dataloader.get("test") is None or self.cfg.dataloader.get("evaluator") is None:
            return 0.0
        student = trainer.task.eval_model.eval()
        loader, evaluator = instantiate(self.cfg.dataloader.test), instantiate(self.cfg.dataloader.evaluator)
        evaluator.reset()
        with torch.no_grad():
            for batch in loader:
                began = time.perf_counter()
                evaluator.process(batch, student(batch))
                seconds = time.perf_counter() - began
                break
        period = self.settings.eval_period
        times = math.ceil(self.settings.max_iter / period) if period > 0 else 1
        whole = seconds * len(loader) / self.processes
        print(f"evaluation: about {_clock(whole)} for {len(loader):,} batches, {times} times")
        return whole * times

    def _files(self, trainer: MoKDTrainer, step: float, evaluation: float) -> None:
        _title("the whole run")
        steps = self.settings.max_iter
        print(f"{steps:,} iterations: about {_clock(steps * step)}, and {_clock(evaluation)} for evaluations")
        student = trainer.task.eval_model
        weights = _size(student.state_dict())
        parts = {name: module.state_dict() for name, module in trainer.task.checkpoint_parts().items()}
        checkpoint = (
            weights * (2 if self.settings.ema is not None else 1) + _size(parts) + _size(trainer.state_dict())
        )
        saved = self.settings.checkpointer
        kept = math.ceil(steps / saved.period)
        kept = kept if saved.max_to_keep is None else min(kept, saved.max_to_keep)
        names = f"{kept} x model_<iteration>.pth (every {saved.period} iterations), model_final.pth"
        needed = (kept + 1) * checkpoint + weights
        print(f"{self.output}/")
        print(f"  {names}: {_bytes(checkpoint)} each")
        print(f"  student_final.pth: {_bytes(weights)}")
        print("  config.yaml, environment.txt, log.txt, metrics.json, events.out.tfevents.*")
        if self.settings.best is not None:
            print(f"  best/model_best.pth: {_bytes(weights)}")
            needed += weights
        free = shutil.disk_usage(_existing(self.output)).free
        print(f"together about {_bytes(needed)}; free: {_bytes(free)}")
        if needed > free:
            raise ConfigError(
                f"train.output_dir '{self.output}' needs about {_bytes(needed)}, but {_bytes(free)} are free: free "
                "some, or keep fewer checkpoints (train.checkpointer.max_to_keep)"
            )


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)


def _count(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def _size(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0


def _shape(value: Any) -> str:
    if isinstance(value, FeatureMap):
        return f"{list(value.tensor.shape)} at stride {value.stride}"
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return ", ".join(map(_shape, value))


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
