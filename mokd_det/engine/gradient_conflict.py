"""How the objectives' gradients relate to each other and to the step, measured during any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase
from torch import Tensor

from mokd_det.balancing.base import StepContext
from mokd_det.balancing.conflict import gram_scalars
from mokd_det.balancing.objective_gradients import ObjectiveGradients
from mokd_det.contract.parameter_parts import WHOLE, split_by_part
from mokd_det.engine.time_split import TimeSplit

__all__ = ["GradientConflict"]


class GradientConflict(HookBase):
    """Measures conflict, dominance and alignment every ``period`` iterations, whatever balancer trains.

    Gradients ∇L_i are over the student's shared parameters, averaged over ranks and micro-batches, of the very batch,
    masks and parameters of the step. For every pair of objectives a, b and every group of parameters ("all" of them,
    and :func:`~mokd_det.contract.parameter_parts.split_by_part`) it stores

    - ``cosine/<a>_<b>/<group>``, the same for ∇L_i and ∇log L_i = ∇L_i / L_i;
    - ``raw_inner_product/…``, ⟨∇L_a, ∇L_b⟩ (the preprint's conflict score, figures 3 and C.4: negative means conflict),
      and ``raw_norm_ratio/…``, ‖∇L_a‖ / ‖∇L_b‖ (its dominance);
    - ``log_inner_product/…`` and ``log_norm_ratio/…``: the same of ∇log L_i, which the balancers of logarithms see;
    - ``conflict_share/<a>_<b>/<group>``: the share of all measurements so far, also those before a resume, whose
      inner product was negative;

    and for every objective the cosine between its gradient and what is done with it, positive where the step lowers
    the objective to first order:

    - ``alignment/<a>/<group>``: with the gradient that the balancer left in ``.grad``, before clipping;
    - ``update_alignment/<a>/<group>``: with θ_before − θ_after, the whole step of the optimiser, its momentum, its
      preconditioning and its weight decay included; without a value if the GradScaler skipped the step;

    and ``conflict_time``, the seconds it took. Where the gradient of an objective vanishes (it does not reach the
    group) or overflows, its scalars are left out. An objective that is not positive has no logarithm, and no
    scalars of it.

    The names end with a group also for all parameters, because balancers that compute a Gram matrix themselves log
    the plain names every step.

    It changes nothing in the training: the forwards are replays, ``.grad`` holds the same tensors afterwards. A
    measurement costs a forward and K backward passes of each micro-batch and waits for the device. It holds K
    gradients and, until the optimiser has stepped, a copy of the parameters, besides what the step itself holds.

    Args:
        period: iterations from one measurement to the next; the last of each period is measured, so with a
            ``log_period`` that divides it every measurement is in ``metrics.json``.
        groups: group → ``fnmatch`` patterns of the student's parameter names; None or empty: the default groups.

    Raises:
        ConfigError: (in :meth:`before_train`) see :func:`~mokd_det.contract.parameter_parts.split_by_part`.
    """

    def __init__(self, period: int, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        self._period = period
        self._patterns = groups
        self._counts: dict[str, list[int]] = {}
        self._times: TimeSplit | None = None
        self._gradients: ObjectiveGradients | None = None
        self._before: list[Tensor] = []
        self._scalars: dict[str, float] = {}

    def before_train(self) -> None:
        # What an earlier training that failed within a step has left is no part of this one.
        self._gradients = None
        # A mistake in the patterns shows now, not after the first period.
        self._groups(self._student_parameters())

    def after_backward(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        self._times = TimeSplit(self.trainer.device)
        with self._times.part("conflict"):
            self._measure_gradients()

    def after_step(self) -> None:
        if self._gradients is None or self._times is None:
            return
        with self._times.part("conflict"):
            self._measure_update()
        seconds = self._times.seconds()["conflict"]
        self.trainer.storage.put_scalars(smoothing_hint=False, conflict_time=seconds, **self._scalars)
        self._gradients, self._before, self._scalars = None, [], {}

    def _measure_gradients(self) -> None:
        context = self.trainer.step_context
        # Private parameters belong to one objective: neither conflict nor a gradient of them is wanted.
        gradients = ObjectiveGradients(
            StepContext(context.shared_parameters, loss_scale=context.loss_scale, iteration=context.iteration)
        )
        parameters = gradients.shared_parameters
        applied = [parameter.grad for parameter in parameters]
        try:
            losses = gradients.collect([forward.replay for forward in self.trainer.step_forwards])
        finally:
            gradients.restore()
        self._scalars = {}
        for group, gram in self._grams(gradients, applied).items():
            self._scalars.update(self._relations(gram, losses.cpu(), group))
            self._scalars.update(self._alignments(gram, "alignment", group))
        self._gradients = gradients
        self._before = [parameter.detach().clone() for parameter in parameters]

    def _measure_update(self) -> None:
        assert self._gradients is not None
        with torch.no_grad():
            for before, after in zip(self._before, self._gradients.shared_parameters, strict=True):
                before.sub_(after)
        for group, gram in self._grams(self._gradients, self._before).items():
            self._scalars.update(self._alignments(gram, "update_alignment", group))

    def _grams(self, gradients: ObjectiveGradients, direction: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Group → Gram matrix (K + 1, K + 1) of the ∇L_i and, last, a direction; on the host."""
        groups = self._groups(gradients.shared_parameters)
        parts = {
            name: gradients.partial_gram(of_group, [direction]).cpu() for name, of_group in groups.items()
        }
        whole = torch.stack(list(parts.values())).sum(0)
        return {WHOLE: whole, **(parts if len(parts) > 1 else {})}

    def _relations(self, gram: Tensor, losses: Tensor, group: str) -> dict[str, float]:
        """Scalars of the pairs of objectives; counts the conflicts."""
        names = self.trainer.objectives.names
        live = [index for index in range(len(names)) if _is_live(gram, index)]
        positive = [index for index in live if losses[index] > 0]
        relations = {
            **gram_scalars(
                gram[positive][:, positive], [names[index] for index in positive], losses[positive].double()
            ),
            **gram_scalars(gram[live][:, live], [names[index] for index in live]),
        }
        scalars = {}
        for name, value in relations.items():
            kind, _, pair = name.partition("/")
            scalars[f"{name}/{group}"] = float(value)
            if kind == "cosine":
                count = self._counts.setdefault(f"{pair}/{group}", [0, 0])
                count[0] += bool(value < 0)
                count[1] += 1
                scalars[f"conflict_share/{pair}/{group}"] = count[0] / count[1]
        return scalars

    def _alignments(self, gram: Tensor, kind: str, group: str) -> dict[str, float]:
        """Cosines of the last row, the direction, with the objectives' gradients."""
        last = len(gram) - 1
        return {
            f"{kind}/{name}/{group}": float(gram[i, last] / (gram[i, i] * gram[last, last]).sqrt())
            for i, name in enumerate(self.trainer.objectives.names)
            if _is_live(gram, i) and _is_live(gram, last)
        }

    def _student_parameters(self) -> Sequence[torch.nn.Parameter]:
        return self.trainer.task.shared_parameters()

    def _groups(self, parameters: Sequence[torch.nn.Parameter]) -> dict[str, list[int]]:
        return split_by_part(self.trainer.task.eval_model, parameters, self._patterns)

    def state_dict(self) -> dict[str, Any]:
        """How many conflicts of how many measurements, per pair and group."""
        return {"counts": {name: list(count) for name, count in self._counts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = {name: list(count) for name, count in state["counts"].items()}


def _is_live(gram: Tensor, index: int) -> bool:
    return 0 < float(gram[index, index]) < float("inf")
