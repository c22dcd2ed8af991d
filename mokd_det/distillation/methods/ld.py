"""LD: localisation distillation, on the distributions of a box's sides (Zheng et al., CVPR 2022)."""

from __future__ import annotations

from torch import Tensor

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_positive
from mokd_det.distillation.row_losses import weighted_mean
from mokd_det.distillation.rows import check_comparable
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.distillation.vectors import tokens
from mokd_det.errors import IncompatibleModelsError

__all__ = ["LD"]


class LD(Method):
    """``sides``, for detectors that predict a box's four sides as distributions over bins (D-FINE, DEIMv2).

    With c the logits of a side's bins (the tap "corners", (…, 4 bins)) and w = max_class σ(z_t) of each query,

        sides = Σ_queries w T² mean over the sides of KL(softmax(c_t/T) ‖ softmax(c_s/T)) / Σ w

    over all processes. Published for dense heads, T = 10 and weight 0.25, in regions chosen by the annotated boxes;
    queries have no regions, so here the teacher's confidence weighs them. Both models need the same bins. Which query
    is compared with which is the Distiller's ``token_matching``.

    Args:
        temperature: T.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    required_taps = ("corners", "logits")
    tap_kinds = {"corners": "tokens"}

    def __init__(self, temperature: float = 10.0) -> None:
        super().__init__()
        require_positive("temperature", temperature)
        self.temperature = temperature

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        check_comparable("corners", student["corners"], teacher["corners"])
        channels = [specs["corners"].channels[0] for specs in (student, teacher)]
        if channels[0] != channels[1] or channels[0] % 4:
            raise IncompatibleModelsError(
                f"LD compares distributions over bins, 4 a box, but the student's tap 'corners' has {channels[0]} "
                f"numbers and the teacher's {channels[1]}; both need the same, 4 times the bins"
            )

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        log_s, log_t = (
            (corners.unflatten(-1, (4, -1)) / self.temperature).log_softmax(-1)
            for corners in (tokens(student["corners"]), tokens(teacher["corners"]).detach())
        )
        weights = tokens(teacher["logits"]).detach().sigmoid().amax(-1)
        # Rounding leaves the divergence of equal rows a little below 0; a negative loss has no logarithm.
        divergence = (log_t.exp() * (log_t - log_s)).sum(-1).mean(-1).clamp_min(0)
        mean = weighted_mean(divergence.flatten(), weights.flatten(), across_ranks=True)
        return {"sides": self.temperature**2 * mean}
