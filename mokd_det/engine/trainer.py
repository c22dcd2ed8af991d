"""The training loop for models with several losses that are balanced against each other."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mokd_det.balancing.base import Balancer, StepContext
from mokd_det.balancing.objectives import Objectives
from mokd_det.command_hint import command
from mokd_det.contract import PreparedBatch, as_task, as_training_loader
from mokd_det.engine.batch_numbers import bad_positions, describe_images, number_sums
from mokd_det.engine.host_copy import HostCopy
from mokd_det.engine.loss_monitor import LossMonitor
from mokd_det.engine.machine_error import lost_worker, machine_error
from mokd_det.engine.non_finite import NonFinitePolicy, StepState, keep_batch, kept_file
from mokd_det.engine.parameter_parts import REST, split_by_part
from mokd_det.engine.seeded_rng import step_seed
from mokd_det.engine.step_forward import StepForward
from mokd_det.engine.termination import StopSignal, TrainingStopped
from mokd_det.engine.time_split import TimeSplit
from mokd_det.errors import CheckpointError, ConfigError, InvalidLossError, InvalidNumberError, MoKDError

__all__ = ["MoKDTrainer"]

logger = logging.getLogger(__name__)

_AUTOCAST_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class _StepScalars:
    """Device scalars of one step on their way to the storage."""

    def __init__(self, iteration: int, scalars: Mapping[str, Tensor | float], times: TimeSplit) -> None:
        self.iteration = iteration
        on_device = {
            name: value for name, value in scalars.items() if isinstance(value, Tensor) and value.is_cuda
        }
        self._numbers = {name: float(value) for name, value in scalars.items() if name not in on_device}
        self._names = tuple(on_device)
        stacked = [value.detach().reshape(()).double() for value in on_device.values()]
        self._copy = HostCopy(torch.stack(stacked)) if stacked else None
        self._times = times

    def read(self) -> dict[str, float]:
        scalars = dict(self._numbers)
        if self._copy is not None:
            scalars.update(zip(self._names, self._copy.read().tolist(), strict=True))
        seconds = self._times.seconds()
        scalars.update((f"{name}_time", value) for name, value in seconds.items())
        return scalars


class MoKDTrainer(SimpleTrainer):
    """Trains any model that returns a dict of losses, balancing groups of them.

    The model is an ordinary Detectron2 model, or a :class:`~mokd_det.contract.TrainingTask`, which takes part in more.

    One step: the next ``accumulate`` batches → ``prepare_batch`` → ``balancer.backward`` over forwards that
        can be
    repeated exactly → unscaling → clipping → a check of every loss, gradient and number that entered → optimiser step →
    ``model.after_step`` → ``balancer.after_step`` → scalars. NaN or infinity in any of them stops the training before
    anything is stepped, or leaves the step out (``non_finite``): parameters, optimiser, balancer and buffers are then
    those of before, and only the iteration is counted. A step that the GradScaler skips changes neither the balancer
    nor the model.

    Negative losses stop the training only where the balancer ``requires_positive``.

    SIGTERM or Ctrl-C lets all ranks finish the step they are in; hooks see ``stopping`` and save, then
    :class:`~mokd_det.engine.termination.TrainingStopped` ends the training.

    Scalars, per iteration: every loss (mean over ranks and micro-batches), ``total_loss``, what the balancer
        returns
    (``pi/<objective>``, …), ``grad_norm`` (before clipping, where clipping is on), ``grad_scale`` (float16),
    and ``data_time``, ``teacher_time`` (``prepare_batch``), ``student_time`` (``balancer.backward`` and the
    optimiser step), ``balance_time`` (``balancer.after_step``: the second forward of the amortised mode). On
    CUDA the times are the device's, from events; the teacher's, if it has a stream of its own, runs beside the
    student's. Nothing synchronises the device: on CUDA a step waits only
    for its own backward (its forward without ``non_finite.check_gradients``), and its remaining scalars are stored one
    step later, under the iteration they belong to (:meth:`flush_scalars`). ``skipped_steps`` is stored where steps are
    left out, instead of everything else.

    Hooks' ``after_backward`` runs when the gradients are in ``.grad``, still times the loss scale and unclipped.
    While it does, ``step_forwards`` can be replayed and ``step_context`` tells what the balancer was told; the time
    it takes is in none of the above.

    Args:
        model: the model, or its ``DistributedDataParallel`` wrapper.
        data_loader: endless iterable of batches. A :class:`~mokd_det.contract.TrainingLoader` lets a
            resumed training continue with the batch after the last one that was trained on.
        optimizer: over the model's trainable parameters.
        objectives: groups the losses into a vector (K,).
        balancer: turns the objectives into a gradient; set up here.
        amp: ``dict(enabled=True, dtype="bfloat16" | "float16")``; float16 adds a GradScaler. None: full
            precision.
        clip_grad: ``dict(max_norm=0.1, norm_type=2.0)``: clip the norm of all gradients together. None: no
            clipping.
        accumulate: micro-batches per optimiser step.
        seed: with iteration, micro-batch and rank it determines every random mask.
        non_finite: what happens at NaN and infinity; None: the training stops, and no batch is kept.

    Raises:
        CheckpointError: the ranks have read different teachers.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        objectives: Objectives,
        balancer: Balancer,
        amp: Mapping[str, Any] | None = None,
        clip_grad: Mapping[str, Any] | None = None,
        accumulate: int = 1,
        seed: int = 0,
        non_finite: NonFinitePolicy | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if accumulate < 1:
            raise ConfigError(f"train.accumulate is {accumulate}; it must be 1 or more")
        self.module: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.task = as_task(self.module)
        self.device = next(self.module.parameters()).device
        self.objectives = objectives
        self.balancer = balancer
        self.accumulate = accumulate
        self.seed = seed
        self.non_finite = NonFinitePolicy() if non_finite is None else non_finite
        self.completed = False
        self.stopping = False
        self.skipped_steps = 0
        self.run_facts: dict[str, Any] = {}
        self._kept_batches = 0
        self._stop_signal = StopSignal()
        self._parameter_names: dict[int, tuple[str, str]] = {}
        self._teacher_digest = self._same_teacher_everywhere()
        self.autocast, self.grad_scaler = self._mixed_precision(amp)
        self._grad_scale: float | None = None
        self._clip = dict(clip_grad) if clip_grad else None
        self._pending: list[_StepScalars] = []
        self.step_forwards: Sequence[StepForward] = ()
        self.step_context: StepContext | None = None
        self.balancer.setup(objectives.names, self.device)

    def _mixed_precision(
        self, amp: Mapping[str, Any] | None
    ) -> tuple[Callable[[], AbstractContextManager[Any]], torch.amp.GradScaler | None]:
        if not amp or not amp.get("enabled", True):
            return nullcontext, None
        name = amp.get("dtype", "bfloat16")
        if name not in _AUTOCAST_DTYPES:
            raise ConfigError(f"train.amp.dtype is '{name}'; it must be one of {', '.join(_AUTOCAST_DTYPES)}")
        autocast = functools.partial(torch.autocast, self.device.type, dtype=_AUTOCAST_DTYPES[name])
        scaler = torch.amp.GradScaler(self.device.type) if name == "float16" else None
        return autocast, scaler

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` … ``max_iter - 1`` with the hooks around them.

        ``completed`` tells the hooks' ``after_train`` whether all of them were done; after an error it stays
        False.

        Raises:
            TrainingStopped: SIGTERM or SIGINT came, and the hooks of the step it came in have run.
            MachineError: a process that loads data is gone, or the disk is full.
        """
        logger.info("Training iterations %d to %d", start_iter, max_iter - 1)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.completed = False
        if self._data_loader_iter_obj is None:
            as_training_loader(self.data_loader).start_from(start_iter * self.accumulate)
        with EventStorage(start_iter) as self.storage, self._stop_signal:
            try:
                try:
                    self.before_train()
                    for self.iter in range(start_iter, max_iter):
                        self.before_step()
                        self.run_step()
                        self.after_step()
                        if self.stopping:
                            self._leave()
                    self.iter = max_iter
                    self.completed = True
                finally:
                    self.after_train()
            except (MoKDError, TrainingStopped):
                raise
            # Around the clean-up as well, which may be what fails.
            except Exception as error:
                lost = machine_error(error, f"at iteration {self.iter}")
                if lost is not None:
                    raise lost from error
                logger.exception("Training failed at iteration %d", self.iter)
                raise

    def run_step(self) -> None:
        """One optimiser step; see the class.

        Raises:
            InvalidLossError: a loss is NaN, infinite or, where a logarithm is taken, negative.
            InvalidNumberError: an image, a tap of the teacher or a gradient is NaN or infinite.
        """
        if not self.model.training:
            raise RuntimeError(
                "the model was left in evaluation mode; call model.train() after evaluating it"
            )
        times = TimeSplit(self.device)
        with times.part("data", host_only=True):
            loaded = [self._next_batch() for _ in range(self.accumulate)]
        monitor = LossMonitor(
            self.iter,
            allow_negative=not self.balancer.requires_positive,
            stop_requested=self._stop_signal.requested,
        )
        state = StepState(self.module) if self.non_finite.policy == "skip" else None
        try:
            batches = self._prepare(loaded, times)
            context = self._context()
            forwards = [self._forward(batch, index, monitor) for index, batch in enumerate(batches)]
            losses, scalars = self._backward(batches, forwards, context, monitor, times)
        except InvalidNumberError as error:
            self._refuse_step(error, monitor, loaded, state)
            return
        finally:
            self.stopping = monitor.stop_agreed and self.iter + 1 < self.max_iter
        with times.part("student"):
            stepped = self._optimizer_step(scalars)
        with times.part("balance"):
            if stepped:
                self.task.after_step()
                scalars.update(self.balancer.after_step(forwards, context))
        self._store(losses, scalars, times)

    def _prepare(self, loaded: Sequence[Any], times: TimeSplit) -> Sequence[Any]:
        """The batches as the model is called with them."""
        with times.part("teacher") as elsewhere:
            try:
                with self.autocast():
                    batches = [self.task.prepare_batch(batch) for batch in loaded]
            except Exception as error:
                self._explain(error, loaded)
                raise
            prepared = [batch for batch in batches if isinstance(batch, PreparedBatch)]
            elsewhere += [batch.side_events for batch in prepared if batch.side_events is not None]
            return batches

    def _backward(
        self,
        batches: Sequence[Any],
        forwards: Sequence[StepForward],
        context: StepContext,
        monitor: LossMonitor,
        times: TimeSplit,
    ) -> tuple[dict[str, float], dict[str, Tensor | float]]:
        """The checked and clipped gradient in ``.grad``; returns the losses, and scalars to log."""
        with times.part("student"):
            self.optimizer.zero_grad(set_to_none=True)
            try:
                scalars = dict(self.balancer.backward(forwards, context))
            except Exception as error:
                self._explain(error, batches)
                raise
        self.step_forwards, self.step_context = forwards, context
        self.after_backward()
        self.step_forwards, self.step_context = (), None
        with times.part("student"):
            if self.grad_scaler is not None:
                self.grad_scaler.unscale_(self.optimizer)
            elif self.non_finite.check_gradients:
                self._watch_gradients(monitor)
            if self._clip is not None:
                scalars["grad_norm"] = nn.utils.clip_grad_norm_(self._trained_parameters(), **self._clip)
            return monitor.check(), scalars

    def _explain(self, error: Exception, batches: Sequence[Any]) -> None:
        """Raise what really went wrong, if a forward failed over numbers that are not finite."""
        for batch in batches:
            for name, value in number_sums(batch).items():
                if not math.isfinite(value):
                    where = describe_images(batch, bad_positions(batch, name) or None)
                    raise InvalidNumberError(
                        f"{name} holds numbers that are NaN or infinite, at iteration {self.iter}; images: {where}. "
                        f"The forward failed ({_first_line(error)}); nothing was stepped."
                    ) from error
        if isinstance(error, FloatingPointError) and not isinstance(error, InvalidNumberError):
            images = ", ".join(describe_images(batch) for batch in batches)
            raise InvalidLossError(
                f"the forward failed at iteration {self.iter} ({_first_line(error)}); images: {images}. "
                "Nothing was stepped."
            ) from error

    def _watch_gradients(self, monitor: LossMonitor) -> None:
        with_gradient = [p for p in self._trained_parameters() if p.grad is not None]
        if not self._parameter_names:
            self._parameter_names = self._name_parameters()
        named = [self._parameter_names.get(id(p), ("a parameter", REST)) for p in with_gradient]
        monitor.watch_gradients(
            [name for name, _ in named],
            [group for _, group in named],
            [p.grad for p in with_gradient if p.grad is not None],
        )

    def _name_parameters(self) -> dict[int, tuple[str, str]]:
        """Name and group of every parameter, by identity."""
        student = self.task.eval_model
        parameters = list(student.parameters())
        of_student = {
            id(parameters[position]): group
            for group, positions in split_by_part(student, parameters).items()
            for position in positions
        }
        return {
            id(parameter): (name, of_student.get(id(parameter), name.partition(".")[0]))
            for name, parameter in self.module.named_parameters()
        }

    def _refuse_step(
        self,
        error: InvalidNumberError,
        monitor: LossMonitor,
        loaded: Sequence[Any],
        state: StepState | None,
    ) -> None:
        """Leave the step out, or end the training."""
        # A forward that failed on its own rank cannot be agreed upon: its partners wait within theirs.
        agreed = bool(monitor.bad_ranks)
        skip = state is not None and monitor.all_non_finite and (agreed or comm.get_world_size() == 1)
        if state is not None:
            state.put_back()
        message = f"{str(error).removesuffix('.')}.{self._keep(error, monitor.bad_ranks, loaded)}"
        if skip and self.skipped_steps >= self.non_finite.max_skips:
            message += f" {self.skipped_steps} steps were left out before (train.non_finite.max_skips)."
        if not skip or self.skipped_steps >= self.non_finite.max_skips:
            raise type(error)(message) from error
        self.skipped_steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.grad_scaler is not None:
            # It would refuse to unscale a second time; the scale itself is not to blame.
            self.grad_scaler.update(self.grad_scaler.get_scale())
        logger.warning("Step left out (%d of %d): %s", self.skipped_steps, self.non_finite.max_skips, message)
        if comm.is_main_process():
            self.storage.put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)

    def _keep(self, error: InvalidNumberError, bad_ranks: Sequence[int], loaded: Sequence[Any]) -> str:
        """Keep the batches of these ranks (none: this one's alone); returns a sentence about it."""
        directory = self.non_finite.directory
        if not directory or self._kept_batches >= self.non_finite.max_kept:
            return ""
        self._kept_batches += 1
        rank = comm.get_rank()
        reason = ""
        if rank in (bad_ranks or (rank,)):
            facts = {"iteration": self.iter, "rank": rank, "seed": self.seed}
            file = kept_file(directory, self.iter, rank)
            reason = keep_batch(file, self.task, loaded, str(error), facts)
        # Only a failure that all ranks know of may be talked about.
        reasons = [text for text in (comm.all_gather(reason) if bad_ranks else [reason]) if text]
        if reasons:
            return f" The batch could not be kept ({reasons[0]})."
        file = kept_file(directory, self.iter, bad_ranks[0] if bad_ranks else rank)
        return f" To look into it: {command('tools/replay_batch.py')} {file}"

    def _leave(self) -> None:
        self.flush_scalars()
        # No rank may end before the checkpoint is written: the launcher ends the others soon after the first.
        comm.synchronize()
        message = f"stopped after iteration {self.iter}; --resume continues"
        raise TrainingStopped(message, self._stop_signal.number)

    def _same_teacher_everywhere(self) -> str | None:
        digest = self.task.teacher_digest()
        digests = comm.all_gather(digest)
        if len(set(digests)) > 1:
            shown = ", ".join(f"rank {rank} {str(found)[:12]}" for rank, found in enumerate(digests))
            raise CheckpointError(
                f"the ranks have different teachers ({shown}): the teacher's file was replaced while the run started, "
                "or the machines have different files"
            )
        return digest

    def _next_batch(self) -> Any:
        try:
            return next(self._data_loader_iter)
        except StopIteration:
            raise ConfigError(
                f"the training data loader ended at iteration {self.iter}; dataloader.train must be endless"
            ) from None
        except (ConnectionError, FileNotFoundError, EOFError) as error:
            # A process that is killed while it hands over a batch breaks the pipe before torch sees it end. What the
            # mapper raised carries torch's words about the process it happened in.
            if "in DataLoader worker process" in str(error):
                raise
            raise lost_worker(type(error).__name__, f"at iteration {self.iter}") from error

    def _context(self) -> StepContext:
        scale: float | Tensor = 1.0
        if self.grad_scaler is not None:
            scale = self.grad_scaler.scale(torch.ones((), device=self.device))
        return StepContext(
            shared_parameters=[
                parameter for parameter in self.task.shared_parameters() if parameter.requires_grad
            ],
            private_parameters=[
                parameter for parameter in self.task.private_parameters() if parameter.requires_grad
            ],
            loss_scale=scale,
            iteration=self.iter,
            taps=self.task.last_student_taps,
        )

    def _forward(self, batch: Any, index: int, monitor: LossMonitor) -> StepForward:
        return StepForward(
            self.model,
            self.objectives,
            batch,
            micro_batch=index,
            seed=step_seed(self.seed, self.iter, index, comm.get_rank()),
            device=self.device,
            autocast=self.autocast,
            monitor=monitor,
            iteration=self.iter,
        )

    def _trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _optimizer_step(self, scalars: dict[str, Tensor | float]) -> bool:
        if self.grad_scaler is None:
            self.optimizer.step()
            return True
        # Remembered from the step before: asking a GPU for it is a wait.
        before = self.grad_scaler.get_scale() if self._grad_scale is None else self._grad_scale
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._grad_scale = self.grad_scaler.get_scale()
        scalars["grad_scale"] = before
        # The scale falls exactly when the step was skipped because a gradient overflowed.
        return self._grad_scale >= before

    def _store(
        self, losses: Mapping[str, float], scalars: Mapping[str, Tensor | float], times: TimeSplit
    ) -> None:
        self.flush_scalars()
        if comm.is_main_process():
            self.storage.put_scalar("total_loss", sum(losses.values()))
            self.storage.put_scalars(**losses)
            self._pending.append(_StepScalars(self.iter, scalars, times))
        if self.device.type == "cpu":
            self.flush_scalars()

    def flush_scalars(self) -> None:
        """Store the scalars of earlier steps that were left on the device, waiting for them if need be."""
        for pending in self._pending:
            self.storage.put_scalars(cur_iter=pending.iteration, **pending.read())
        self._pending.clear()

    def after_train(self) -> None:
        """Store what is left, then let every hook finish."""
        if self.completed:
            self.flush_scalars()
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs besides the model: plain tensors, numbers and strings."""
        state = super().state_dict()
        state["balancer"] = {
            "type": type(self.balancer).__qualname__,
            "objectives": list(self.objectives.names),
            "state": self.balancer.state_dict(),
        }
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        state["run"] = self._run_identity()
        state["skipped_steps"] = self.skipped_steps
        if self._teacher_digest is not None:
            state["teacher"] = self._teacher_digest
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state; warns about every setting with which the continuation is not that of the old
        run.

        Raises:
            CheckpointError: the teacher has other weights than the one the run began with.
            ValueError: the optimiser's groups differ from the stored ones.
        """
        teacher = state_dict.get("teacher")
        if None not in (teacher, self._teacher_digest) and teacher != self._teacher_digest:
            raise CheckpointError(
                "the teacher's weights are not those this run began with: was its file replaced? Put the old file "
                "back, or begin a new run (train.init_checkpoint=FILE keeps the student's weights)"
            )
        super().load_state_dict(state_dict)
        self.skipped_steps = state_dict.get("skipped_steps", 0)
        stored, own = state_dict["balancer"], self.state_dict()["balancer"]
        if (stored["type"], stored["objectives"]) == (own["type"], own["objectives"]):
            self.balancer.load_state_dict(stored["state"])
        else:
            logger.warning(
                "The balancer starts afresh: the checkpoint has %s over %s, this run %s over %s",
                stored["type"],
                stored["objectives"],
                own["type"],
                own["objectives"],
            )
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
            self._grad_scale = None
        for name, value in self._run_identity().items():
            # What older versions did not write cannot have changed.
            if state_dict["run"].get(name, value) != value:
                logger.warning(
                    "%s was %s and is now %s: this run goes on, but differs from an uninterrupted one",
                    name,
                    state_dict["run"].get(name),
                    value,
                )

    def _run_identity(self) -> dict[str, Any]:
        precision = "float32"
        if self.autocast is not nullcontext:
            precision = "float16" if self.grad_scaler is not None else "bfloat16"
        return {
            "seed": self.seed,
            "accumulate": self.accumulate,
            "world_size": comm.get_world_size(),
            "precision": precision,
            **self.run_facts,
        }


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
