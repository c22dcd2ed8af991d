"""The training loop for models with several losses that are balanced against each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from detectron2.engine.train_loop import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from mokd_det.balancing.base import Balancer, StepContext
from mokd_det.balancing.objectives import Objectives
from mokd_det.contract import PreparedBatch, as_task, as_training_loader
from mokd_det.engine import run_state
from mokd_det.engine.clipping import clip_gradients
from mokd_det.engine.machine_error import machine_errors, next_batch
from mokd_det.engine.mixed_precision import MixedPrecision
from mokd_det.engine.scalar_queue import ScalarQueue
from mokd_det.engine.seeded_rng import step_seed
from mokd_det.engine.step_forward import StepForward
from mokd_det.engine.termination import StopSignal, TrainingStopped
from mokd_det.engine.time_split import TimeSplit
from mokd_det.errors import ConfigError, InvalidNumberError
from mokd_det.guard.policy import NonFinitePolicy
from mokd_det.guard.step_guard import StepGuard

__all__ = ["MoKDTrainer"]

logger = logging.getLogger(__name__)


class _Trained(Sequence[nn.Parameter]):
    """The trainable ones of some parameters, looked for when a balancer reads them first; most never do."""

    def __init__(self, find: Callable[[], Iterable[nn.Parameter]]) -> None:
        self._find = find

    @cached_property
    def _found(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._find() if parameter.requires_grad]

    def __getitem__(self, index: Any) -> Any:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)


class MoKDTrainer(SimpleTrainer):
    """Trains any model that returns a dict of losses, balancing groups of them.

    The model is an ordinary Detectron2 model, or a :class:`~mokd_det.contract.TrainingTask`, which takes part in more.

    **One step** (:meth:`run_step`): ``accumulate`` batches → ``prepare_batch`` → ``balancer.backward`` over forwards
    that can be repeated exactly → unscaling → clipping → a check of every loss, gradient and number that entered →
    optimiser step → ``after_step`` of model and balancer → scalars. A step that the GradScaler skips changes neither.

    **NaN and infinity** (:class:`~mokd_det.guard.step_guard.StepGuard`) stop the training before anything is stepped,
    or leave the step out: all is then as before, and only the iteration is counted. Negative losses stop it where the
    balancer ``requires_positive``. **SIGTERM or Ctrl-C** lets all ranks finish their step; hooks see ``stopping`` and
    save, then :class:`~mokd_det.engine.termination.TrainingStopped` ends the training.

    **Scalars**: every loss (mean over ranks and micro-batches), ``total_loss``, what the balancer returns
    (``pi/<objective>``, …), ``grad_norm`` (before clipping), ``grad_scale`` (float16), and the seconds of
    ``data_time``, ``teacher_time`` (``prepare_batch``), ``student_time`` (``balancer.backward`` and the optimiser) and
    ``balance_time`` (``balancer.after_step``); on CUDA the device's, where a teacher on its own stream overlaps with
    the student. Where a step is left out: ``skipped_steps`` alone. A step waits only for its own backward on CUDA (its
    forward, without ``non_finite.check_gradients``); its other scalars are stored one step later.

    **Hooks'** ``after_backward`` runs when the gradients are in ``.grad``, still times the loss scale and unclipped.
    While it does, ``step_forwards`` can be replayed and ``step_context`` tells what the balancer was told.

    Args:
        model: the model, or its ``DistributedDataParallel`` wrapper.
        data_loader: endless; a :class:`~mokd_det.contract.TrainingLoader` goes on where a resumed training left off.
        optimizer: over the model's trainable parameters.
        objectives: groups the losses into a vector (K,).
        balancer: turns the objectives into a gradient; set up here.
        amp: ``dict(enabled=True, dtype="bfloat16" | "float16")``; None: full precision.
        clip_grad: ``dict(max_norm=0.1, norm_type=2.0)``: clip the norm of all gradients together; None: no clipping.
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
        optimizer: optim.Optimizer,
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
        self.objectives, self.balancer = objectives, balancer
        self.accumulate, self.seed = accumulate, seed
        self.completed = self.stopping = False
        self.run_facts: dict[str, Any] = {}
        self.step_forwards: Sequence[StepForward] = ()
        self.step_context: StepContext | None = None
        self.precision = MixedPrecision(self.device, amp)
        self.guard = StepGuard(
            self.module, non_finite, seed=seed, allow_negative=not balancer.requires_positive
        )
        self._clip = dict(clip_grad) if clip_grad else None
        self._scalars = ScalarQueue()
        self._stop_signal = StopSignal()
        self._teacher_digest = run_state.same_teacher_everywhere(self.task.teacher_digest())
        balancer.setup(objectives.names, self.device)

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
            loaded = [next_batch(self._data_loader_iter, self.iter) for _ in range(self.accumulate)]
        self.guard.begin(self.iter, loaded, stop_requested=self._stop_signal.requested)
        try:
            batches = self._prepare(loaded, times)
            context = self._context()
            forwards = [self._forward(batch, index) for index, batch in enumerate(batches)]
            losses, scalars = self._backward(batches, forwards, context, times)
        except InvalidNumberError as error:
            self._leave_out(error)
            return
        finally:
            self.stopping = self.guard.stop_agreed and self.iter + 1 < self.max_iter
        with times.part("student"):
            stepped = self.precision.step(self.optimizer, scalars)
        with times.part("balance"):
            if stepped:
                self.task.after_step()
                scalars.update(self.balancer.after_step(forwards, context))
        self._store(losses, scalars, times)

    def _prepare(self, loaded: Sequence[Any], times: TimeSplit) -> Sequence[Any]:
        """The batches as the model is called with them: the teacher has run."""
        with times.part("teacher") as elsewhere:
            with self.guard.explaining(loaded), self.precision.autocast():
                batches = [self.task.prepare_batch(batch) for batch in loaded]
            events = [batch.side_events for batch in batches if isinstance(batch, PreparedBatch)]
            elsewhere += [pair for pair in events if pair is not None]
            return batches

    def _context(self) -> StepContext:
        return StepContext(
            shared_parameters=_Trained(self.task.shared_parameters),
            private_parameters=_Trained(self.task.private_parameters),
            loss_scale=self.precision.loss_scale(),
            iteration=self.iter,
            taps=self.task.last_student_taps,
        )

    def _forward(self, batch: Any, micro_batch: int) -> StepForward:
        return StepForward(
            self.model,
            self.objectives,
            batch,
            micro_batch=micro_batch,
            seed=step_seed(self.seed, self.iter, micro_batch, comm.get_rank()),
            device=self.device,
            autocast=self.precision.autocast,
            monitor=self.guard.monitor,
            iteration=self.iter,
        )

    def _backward(
        self,
        batches: Sequence[Any],
        forwards: Sequence[StepForward],
        context: StepContext,
        times: TimeSplit,
    ) -> tuple[dict[str, float], dict[str, Tensor | float]]:
        """The checked and clipped gradient in ``.grad``; returns the losses, and scalars to log."""
        with times.part("student"):
            self.optimizer.zero_grad(set_to_none=True)
            with self.guard.explaining(batches):
                scalars = dict(self.balancer.backward(forwards, context))
        self.step_forwards, self.step_context = forwards, context
        self.after_backward()
        self.step_forwards, self.step_context = (), None
        with times.part("student"):
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            # A GradScaler looks at them itself.
            norms = None if self.precision.unscale(self.optimizer) else self.guard.watch_gradients(trained)
            if self._clip is not None:
                scalars["grad_norm"] = clip_gradients(trained, norms, **self._clip)
            return self.guard.check(), scalars

    def _leave_out(self, error: InvalidNumberError) -> None:
        self.guard.refuse(error)
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.leave_out()
        if comm.is_main_process():
            self.storage.put_scalar("skipped_steps", self.guard.skipped_steps, smoothing_hint=False)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` … ``max_iter - 1`` with the hooks around them; ``completed`` if all were done.

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
        with (
            EventStorage(start_iter) as self.storage,
            self._stop_signal,
            machine_errors(lambda: f"at iteration {self.iter}"),
        ):
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.stopping:
                        self._stop()
                self.iter = max_iter
                self.completed = True
            finally:
                self.after_train()

    def _stop(self) -> None:
        self.flush_scalars()
        # No rank may end before the checkpoint is written: the launcher ends the others soon after the first.
        comm.synchronize()
        message = f"stopped after iteration {self.iter}; --resume continues"
        raise TrainingStopped(message, self._stop_signal.number)

    def after_train(self) -> None:
        """Store what is left, then let every hook finish."""
        if self.completed:
            self.flush_scalars()
        super().after_train()

    def _store(
        self, losses: Mapping[str, float], scalars: Mapping[str, Tensor | float], times: TimeSplit
    ) -> None:
        self.flush_scalars()
        if comm.is_main_process():
            self.storage.put_scalar("total_loss", sum(losses.values()))
            self.storage.put_scalars(**losses)
            self._scalars.put(self.iter, scalars, times)
        if self.device.type == "cpu":
            self.flush_scalars()

    def flush_scalars(self) -> None:
        """Store the scalars of earlier steps that were left on the device, waiting for them if need be."""
        self._scalars.flush(self.storage)

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs besides the model: plain tensors, numbers and strings."""
        state = super().state_dict()
        state["balancer"] = run_state.balancer_state(self.balancer, self.objectives.names)
        if self.precision.scaler is not None:
            state["grad_scaler"] = self.precision.scaler.state_dict()
        state["run"] = self._settings()
        state["skipped_steps"] = self.guard.skipped_steps
        if self._teacher_digest is not None:
            state["teacher"] = self._teacher_digest
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state; warns about every setting with which the continuation is not that of the old run.

        Raises:
            CheckpointError: the teacher has other weights than the one the run began with.
            ValueError: the optimiser's groups differ from the stored ones.
        """
        run_state.check_teacher(state_dict.get("teacher"), self._teacher_digest)
        super().load_state_dict(state_dict)
        self.guard.skipped_steps = state_dict.get("skipped_steps", 0)
        run_state.load_balancer(self.balancer, self.objectives.names, state_dict["balancer"])
        if "grad_scaler" in state_dict:
            self.precision.load(state_dict["grad_scaler"])
        run_state.warn_of_changes(state_dict["run"], self._settings())

    def _settings(self) -> dict[str, Any]:
        own = {"seed": self.seed, "accumulate": self.accumulate, "world_size": comm.get_world_size()}
        return {**own, "precision": self.precision.name, **self.run_facts}
