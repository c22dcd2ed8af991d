"""Hooks that Detectron2 lacks, or has with a trap."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.engine.checkpointing import AtomicCheckpointer

__all__ = [
    "BalancePrinter",
    "BestModel",
    "Evaluation",
    "MethodDiagnostics",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "SaveWhenStopping",
]

logger = logging.getLogger(__name__)


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's, after the trainer has stored the scalars that were still on the device."""

    def after_step(self) -> None:
        is_last = self.trainer.iter == self.trainer.max_iter - 1
        if is_last or (self.trainer.iter + 1) % self._period == 0:
            self.trainer.flush_scalars()
        super().after_step()

    def after_train(self) -> None:
        if self.trainer.completed:
            super().after_train()
            return
        # The error that ended the training is about to be reported. Writers may fail over an unfinished step
        # (Detectron2's divides by the iterations since its last line) or the same full disk, and must not hide it.
        for writer in self._writers:
            for last_words in (writer.write, writer.close):
                try:
                    last_words()
                except Exception as error:
                    logger.debug("%s failed after the training had: %s", type(writer).__name__, error)


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's, counting the files of earlier parts of the same run among those it keeps.

    To be registered after the hooks whose state is in the files. A run that was killed after its last step, but before
    the final checkpoint was complete, has no step left that would write it: it is written when the resumed one begins.
    """

    def before_train(self) -> None:
        super().before_train()
        if self.max_to_keep is not None:
            directory = Path(self.checkpointer.save_dir)
            self.recent_checkpoints = [
                str(file) for file in sorted(directory.glob(f"{self.file_prefix}_[0-9]*.pth"))
            ]
        final, trainer = f"{self.file_prefix}_final", self.trainer
        if trainer.start_iter >= trainer.max_iter and self.checkpointer.resumed_from != f"{final}.pth":
            trainer.iter = trainer.start_iter - 1  # the step that the state is of
            self.checkpointer.save(final, iteration=trainer.iter)
            trainer.iter = trainer.start_iter


class SaveWhenStopping(HookBase):
    """Writes a checkpoint when the trainer is about to stop early (SIGTERM, Ctrl-C).

    To be registered after the hooks whose state a step changes (learning rate, averages) and before those that take
    long (evaluation), which the system may not wait for. Its files are named like the periodic ones.
    """

    def __init__(self, checkpointer: AtomicCheckpointer) -> None:
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        if self.trainer.stopping:
            self._checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)


class Evaluation(hooks.EvalHook):
    """Detectron2's, but not after a training that failed in its last iteration."""

    def after_train(self) -> None:
        if self.trainer.completed:
            super().after_train()


class BestModel(HookBase):
    """Keeps the model with the best evaluation result, apart from the checkpoints a training resumes from.

    ``<directory>/model_best.pth`` holds its weights, ``<directory>/best.json`` the result and the iteration,
    also for the comparison after a resume. (Detectron2's ``BestCheckpointer`` tags its file as the last
    checkpoint, so that a resumed training goes back to the best iteration.)

    Args:
        model: the bare module whose weights are kept.
        directory: a folder of its own.
        metric: name in the storage, e.g. "bbox/AP".
        mode: "max" or "min".
        period: of the evaluation in iterations; 0: only after the last one.
    """

    def __init__(
        self, model: nn.Module, directory: str, metric: str, mode: str = "max", period: int = 0
    ) -> None:
        self._checkpointer = AtomicCheckpointer(model, directory)
        self._record = Path(directory) / "best.json"
        self._metric = metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._period = period
        self.value: float | None = None
        self.iteration: int | None = None

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and self._record.is_file():
            record = json.loads(self._record.read_text())
            if record["metric"] == self._metric and record["iteration"] < self.trainer.start_iter:
                self.value, self.iteration = record["value"], record["iteration"]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._consider()

    def after_train(self) -> None:
        if self.trainer.completed:
            self._consider()

    def _consider(self) -> None:
        if not comm.is_main_process():
            return
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            logger.warning(
                "train.best.metric '%s' is not among the evaluation's results; no best model", self._metric
            )
            return
        value, iteration = latest
        if not math.isfinite(value) or (self.value is not None and self._sign * (value - self.value) <= 0):
            return
        self.value, self.iteration = value, iteration
        self._checkpointer.save("model_best", iteration=iteration)
        with atomic_write(self._record, "w") as handle:
            json.dump({"metric": self._metric, "value": value, "iteration": iteration}, handle)
        logger.info("Best so far: %s = %.5f at iteration %d", self._metric, value, iteration)


class MethodDiagnostics(HookBase):
    """Stores what the model says about its distillation (``model.diagnostics()``) every ``period`` iterations.

    It waits for the device, so the period should be long against a step.
    """

    def __init__(self, period: int) -> None:
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self.trainer.storage.put_scalars(smoothing_hint=False, **self.trainer.task.diagnostics())


class BalancePrinter(EventWriter):
    """One line of the log with what Detectron2's printer leaves out: the weights, and where the time goes."""

    _PARTS = ("data", "teacher", "student", "balance")
    _WINDOW = 20  # iterations that the times are averaged over

    def __init__(self, objectives: Sequence[str]) -> None:
        self._objectives = tuple(objectives)
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        latest: dict[str, Any] = storage.latest()
        weights = {name: latest[f"pi/{name}"] for name in self._objectives if f"pi/{name}" in latest}
        newest = latest.get("total_loss", (0.0, -1))[1]
        if newest <= self._last_write:
            return
        self._last_write = newest
        parts = [f"{name}: {value:.4f}" for name, (value, _) in weights.items()]
        seconds = {
            part: storage.history(f"{part}_time").avg(storage.count_samples(f"{part}_time", self._WINDOW))
            for part in self._PARTS
            if f"{part}_time" in latest
        }
        times = "  ".join(f"{part} {value:.4f}" for part, value in seconds.items())
        logger.info("iter: %d  pi  %s  seconds  %s", newest, "  ".join(parts) or "-", times)
