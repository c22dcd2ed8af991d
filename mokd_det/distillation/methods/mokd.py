"""MoKD's subspace alignment (Hayder et al., 2025, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.row_losses import Norm
from mokd_det.distillation.rows import RowPair
from mokd_det.distillation.subspace import MetricInit, StudentNorm, SubspaceHead, SubspaceLoss
from mokd_det.errors import ConfigError, require_choice

__all__ = ["MoKD"]

MoKDTask = Literal["detection", "classification"]


class MoKD(Method):
    """One :class:`~mokd_det.distillation.subspace.SubspaceHead` per tap and map level; one term per tap.

    The head's stack of decoder levels shares one subspace head. The other half of MoKD, the multi-task
    optimisation, is the balancer. The paper's Table 3 is three switches: ``subspace``, ``high_dimensional``,
    and the balancer (amortised against fixed weights).

    The preprint describes the two tasks differently, and so do the defaults: detection maximises the similarity of
    Eq. 16 (``loss="similarity"``); classification names a normalised L1 (``loss="regression"``, the teacher's rows
    layer-normalised). Eq. 16 has no bias. What else it can be read as: docs/readings.md.

    Args:
        task: "detection" or "classification": the default of ``loss``.
        subspace: learn the projections; False compares the taps as they are (needs equal channels).
        high_dimensional: align in more dimensions than either model has; False: n = max(n_s, n_t).
        n: the common dimension; None: n_s + n_t rounded up to 64 if ``high_dimensional``. Given with
            ``high_dimensional=False`` it would contradict it.
        loss: None: as ``task`` says.
        norm, student_norm, eps, learn_teacher_subspace, metric, metric_init, bias: of every subspace head.
        mask_padding: leave padded cells out of the losses on maps.

    Raises:
        ConfigError: switches that contradict each other, or an unknown choice.
    """

    def __init__(
        self,
        *,
        task: MoKDTask = "detection",
        subspace: bool = True,
        high_dimensional: bool = True,
        n: int | None = None,
        loss: SubspaceLoss | None = None,
        norm: Norm = "layer_norm",
        student_norm: StudentNorm = "none",
        eps: float = 1e-5,
        learn_teacher_subspace: bool = True,
        metric: bool = True,
        metric_init: MetricInit = "ones",
        bias: bool = False,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(mask_padding)
        require_choice("task", task, MoKDTask)
        if loss is None:
            loss = "similarity" if task == "detection" else "regression"
        require_choice("loss", loss, SubspaceLoss)
        require_choice("norm", norm, Norm)
        require_choice("student_norm", student_norm, StudentNorm)
        require_choice("metric_init", metric_init, MetricInit)
        if high_dimensional and not subspace:
            raise ConfigError("subspace=False has no space to lift into; set high_dimensional=False as well")
        if n is not None and not high_dimensional:
            raise ConfigError(
                f"n={n} contradicts high_dimensional=False, which means n = max(n_s, n_t); drop one"
            )
        self.subspace, self.high_dimensional, self.n = subspace, high_dimensional, n
        self.head_options: dict[str, Any] = {
            "loss": loss,
            "norm": norm,
            "student_norm": student_norm,
            "eps": eps,
            "subspace": subspace,
            "learn_teacher_subspace": learn_teacher_subspace,
            "metric": metric,
            "metric_init": metric_init,
            "bias": bias,
        }
        self.same_channels = not subspace
        self.heads = nn.ModuleDict()

    def build(self, channels: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
        for keys in channels.values():
            for key, (n_s, n_t) in keys.items():
                n = self.n if self.high_dimensional else max(n_s, n_t)
                self.heads[key] = SubspaceHead(n_s, n_t, n, **self.head_options)

    def compare_pair(self, pair: RowPair) -> Tensor:
        return self.heads[pair.key](pair.student, pair.teacher, pair.weights)

    def diagnostics(self) -> dict[str, float]:
        """``<tap and level>/<number>`` for each number of :meth:`SubspaceHead.diagnostics`."""
        return {
            f"{key}/{number}": value
            for key, head in self.heads.items()
            for number, value in head.diagnostics().items()
        }
