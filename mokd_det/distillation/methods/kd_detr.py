"""KD-DETR: both decoders asked at the same points (Wang et al., CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mokd_det.distillation.across_ranks import mean_over_ranks
from mokd_det.distillation.box_losses import box_distance, generalized_iou_distance
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import ClassWiseMethod
from mokd_det.distillation.requirements import require_positive, require_query_decoder
from mokd_det.distillation.row_losses import weighted_mean
from mokd_det.distillation.taps import Specs, Taps, TapValue
from mokd_det.distillation.vectors import tokens
from mokd_det.errors import ConfigError
from mokd_det.modeling.query_decoder import QueryDecoder

__all__ = ["KDDETR"]


class KDDETR(ClassWiseMethod):
    """``<kind>_class``, ``<kind>_bbox``, ``<kind>_giou`` for the kinds of sampling points that are asked for.

    "general" points are drawn uniformly for every image and step, "specific" ones are the reference points of the
    teacher's own queries. Each model answers with the query that it has nearest to a point, moved there
    (:meth:`~mokd_det.modeling.query_decoder.QueryDecoder.queries_at`); of the student every decoder level is compared
    with the teacher's last. With z the class logits, b the boxes and w = max_class σ(z_t) of each point,

        class = Σ_levels Σ_points w T² mean_class [softmax(z_t/T) (log softmax(z_t/T) − log softmax(z_s/T))] / images
        bbox  = Σ_levels Σ w ‖b_s − b_t‖₁ / Σ w          giou = Σ_levels Σ w (1 − GIoU(b_s, b_t)) / Σ w

    Published: T = 10, weights 1, 5 and 2 (class, bbox, giou). The student's decoder runs once more per kind, and the
    teacher's once for general points; numbers and widths of queries may differ.

    Args:
        general: points per image; 0: none.
        specific: whether the teacher's own points are asked for.
        temperature: T.

    Raises:
        ConfigError: no points at all, or a temperature that is not positive.
    """

    tap_kinds = {"logits": "tokens", "boxes": "tokens"}
    asks_decoders = True
    pairs_queries = True

    def __init__(self, general: int = 100, specific: bool = True, temperature: float = 10.0) -> None:
        super().__init__()
        if general < 0 or not (general or specific):
            raise ConfigError(f"KDDETR: general={general} and specific={specific} leave no points to compare")
        require_positive("temperature", temperature)
        self.general, self.specific, self.temperature = general, specific, temperature
        self.kinds = [kind for kind, asked in (("general", general), ("specific", specific)) if asked]
        # A cached answer would be about the same points in every epoch.
        self.teacher_draws = bool(general)

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        require_query_decoder("KDDETR", "student", student)
        require_query_decoder("KDDETR", "teacher", teacher)
        super().inspect(student, teacher)

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        self.require_equal_classes(student["logits"], teacher["logits"])

    def ask_teacher(self, decoder: QueryDecoder) -> dict[str, TapValue]:
        """Points (B, M, 2) of each kind, and the teacher's last predictions at general ones."""
        own = decoder.queries.reference[..., :2]
        answers: dict[str, TapValue] = {}
        if self.general:
            points = torch.rand(len(own), self.general, 2, device=own.device)
            logits, boxes = decoder(decoder.queries_at(points))
            answers.update(general_points=points, general_logits=logits[-1], general_boxes=boxes[-1])
        if self.specific:
            answers["specific_points"] = own
        return answers

    def ask_student(self, decoder: QueryDecoder, teacher: Taps) -> dict[str, TapValue]:
        """The student's predictions of all levels at the same points."""
        answers: dict[str, TapValue] = {}
        for kind in self.kinds:
            points = tokens(teacher[f"{kind}_points"])
            answers[f"{kind}_logits"], answers[f"{kind}_boxes"] = decoder(decoder.queries_at(points))
        return answers

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        of_teacher = {
            "general": ("general_logits", "general_boxes"),
            "specific": ("logits", "boxes"),  # its own queries have been asked already
        }
        terms = {}
        for kind in self.kinds:
            values = [student[f"{kind}_logits"], student[f"{kind}_boxes"]]
            values += [teacher[name] for name in of_teacher[kind]]
            for name, value in self._distances(*map(tokens, values)).items():
                terms[f"{kind}_{name}"] = value
        return terms

    def _distances(
        self, logits_s: Tensor, boxes_s: Tensor, logits_t: Tensor, boxes_t: Tensor
    ) -> dict[str, Tensor]:
        """Of the student's (L, B, M, …) and the teacher's (B, M, …)."""
        logits_t, boxes_t = logits_t.detach(), boxes_t.detach()
        weights = logits_t.sigmoid().amax(-1)  # (B, M)
        log_t = (logits_t / self.temperature).log_softmax(-1)
        log_s = (logits_s / self.temperature).log_softmax(-1)
        # Rounding leaves the divergence of equal rows a little below 0; a negative loss has no logarithm.
        divergence = (log_t.exp() * (log_t - log_s)).mean(-1).clamp_min(0) * self.temperature**2
        images = mean_over_ranks(len(logits_t), logits_t)

        def mean(values: Tensor) -> Tensor:
            flat = weights.flatten()
            levels = [weighted_mean(level.flatten(), flat, across_ranks=True) for level in values]
            return torch.stack(levels).sum()

        return {
            "class": (weights * divergence).sum() / images,
            "bbox": mean(box_distance(boxes_s, boxes_t)),
            "giou": mean(generalized_iou_distance(boxes_s, boxes_t)),
        }
