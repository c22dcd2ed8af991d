"""Which query of the teacher a query of the student is compared with: by index, or by what both predict."""

from __future__ import annotations

import dataclasses
import logging
from typing import ClassVar, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mokd_det.distillation.box_losses import with_area
from mokd_det.distillation.precision import autocast_off, full_precision
from mokd_det.distillation.taps import Specs, Taps, TapValue
from mokd_det.errors import ConfigError, IncompatibleModelsError, InvalidLossError, require_choice
from mokd_det.layers import TapSpec, cxcywh_to_xyxy, generalized_iou
from mokd_det.modeling.query_decoder import take_rows

logger = logging.getLogger(__name__)

__all__ = ["PREDICTION_TAPS", "HungarianTokenMatching", "TokenMatchingChoice", "parse_token_matching"]

OtherClasses = Literal["refuse", "boxes"]
TokenMatchingChoice = Literal["index", "hungarian"]

PREDICTION_TAPS = {"logits": "logits", "boxes": "boxes"}
"""Where a ViDT's final predictions are read."""


class HungarianTokenMatching:
    """Assigns queries of the teacher to queries of the student by their final predictions, image by image.

    The assignment minimises the sum over the pairs of

        cost_class · ‖p_s − p_t‖₁ + cost_bbox · ‖b_s − b_t‖₁ − cost_giou · GIoU(b_s, b_t)

    with p the sigmoid class probabilities and b the boxes (cx, cy, w, h) relative to the image. The smaller of the
    two sets is matched as a whole; what is left of the larger one is compared with nothing. It takes no part in any
    gradient, and each forward has its own, as the matching of predictions to objects has.

    Args:
        cost_class: weight of the class cost; 0 for models of different label sets.
        cost_bbox: weight of the boxes' L1 distance.
        cost_giou: weight of the boxes' generalised IoU.
        other_classes: of models with different label sets: "refuse" them, or match by "boxes" alone, which is logged.

    Raises:
        ConfigError: a negative weight, or no positive one, or another word.
    """

    names: ClassVar[tuple[str, ...]] = ("logits", "boxes")

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        other_classes: OtherClasses = "refuse",
    ) -> None:
        require_choice("other_classes", other_classes, OtherClasses)
        self.other_classes = other_classes
        costs = {"cost_class": cost_class, "cost_bbox": cost_bbox, "cost_giou": cost_giou}
        for name, cost in costs.items():
            if cost < 0:
                raise ConfigError(f"{name}={cost} is negative; a cost weighs 0 or more")
        if not any(costs.values()):
            raise ConfigError("all costs of the token matching weigh 0; give at least one above 0")
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou

    def check(
        self,
        student: Specs,
        teacher: Specs,
        names: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None),
    ) -> tuple[int, int]:
        """The numbers of queries of both models.

        Args:
            student, teacher: descriptions of their taps "logits" (B, N, classes) and "boxes" (B, N, 4).
            names: the class names of both, as far as they are known.

        Raises:
            IncompatibleModelsError: taps that are no such predictions, or of different label sets with a class cost.
        """
        counts = []
        for who, specs in (("student", student), ("teacher", teacher)):
            logits, boxes = specs["logits"], specs["boxes"]
            for name, spec in (("logits", logits), ("boxes", boxes)):
                if spec.kind != "tokens" or spec.num_levels != 1 or spec.num_tokens is None:
                    raise IncompatibleModelsError(
                        f"hungarian token matching: the {who}'s tap {name!r} must deliver one set of tokens of a "
                        f"known number (B, N, C), not {spec}"
                    )
            if logits.num_tokens != boxes.num_tokens or boxes.channels != (4,):
                raise IncompatibleModelsError(
                    f"hungarian token matching: the {who} predicts classes (B, {logits.num_tokens}, "
                    f"{logits.channels[0]}) and boxes (B, {boxes.num_tokens}, {boxes.channels[0]}); it needs "
                    f"one box of 4 numbers per query"
                )
            counts.append(int(logits.num_tokens or 0))
        classes_s, classes_t = student["logits"].channels[0], teacher["logits"].channels[0]
        differ = classes_s != classes_t or (None not in names and names[0] != names[1])
        if self.cost_class and differ:
            found = (
                f"hungarian token matching: the student predicts {classes_s} classes and the teacher {classes_t}"
                f"{'' if classes_s != classes_t else ' others'}, so their probabilities cannot be compared"
            )
            if self.other_classes == "refuse":
                raise IncompatibleModelsError(f"{found}; match by boxes alone with cost_class=0")
            logger.info("%s: queries are matched by boxes alone", found)
            self.cost_class = 0.0
        return counts[0], counts[1]

    @torch.no_grad()
    def assign(self, student: Taps, teacher: Taps) -> tuple[Tensor, Tensor]:
        """Match one batch; the costs of all images reach the host in one copy.

        Args:
            student, teacher: "logits" (B, N, classes) and "boxes" (B, N, 4), cx, cy, w, h in [0, 1]; N may differ.

        Returns:
            The matched queries of the student, ascending, and of the teacher, both (B, min(N_s, N_t)) int64.

        Raises:
            InvalidLossError: a prediction is NaN or infinite.
        """
        predictions = (_tensor(side[name]) for side in (student, teacher) for name in self.names)
        costs = self.costs(*predictions)  # (B, N_s, N_t)
        table = torch.empty(2, costs.shape[0], min(costs.shape[1:]), dtype=torch.int64)
        for image, cost in enumerate(costs.cpu().numpy()):
            try:
                rows, columns = linear_sum_assignment(cost)
            except ValueError as error:
                raise InvalidLossError(
                    f"hungarian token matching: a prediction of student or teacher is NaN or infinite for image "
                    f"{image} of the batch"
                ) from error
            table[0, image], table[1, image] = torch.from_numpy(rows), torch.from_numpy(columns)
        queries = table.to(costs.device, non_blocking=True)
        return queries[0], queries[1]

    def costs(self, logits_s: Tensor, boxes_s: Tensor, logits_t: Tensor, boxes_t: Tensor) -> Tensor:
        """Cost of every pair of queries, (B, N_s, N_t), in float32 at least."""
        with autocast_off(boxes_s.device):
            boxes_s, boxes_t = full_precision(boxes_s), full_precision(boxes_t)
            boxes_t = boxes_t.to(boxes_s.dtype)
            total = self.cost_bbox * torch.cdist(boxes_s, boxes_t, p=1)
            corners_s, corners_t = (cxcywh_to_xyxy(with_area(boxes)) for boxes in (boxes_s, boxes_t))
            total -= self.cost_giou * generalized_iou(corners_s[:, :, None], corners_t[:, None])
            if self.cost_class:
                both = (full_precision(x).to(boxes_s.dtype).sigmoid() for x in (logits_s, logits_t))
                total += self.cost_class * torch.cdist(*both, p=1)
        return total


def parse_token_matching(
    value: TokenMatchingChoice | HungarianTokenMatching,
) -> HungarianTokenMatching | None:
    """None for "index", the matching for "hungarian" or one with costs of its own; else a ConfigError."""
    if isinstance(value, HungarianTokenMatching):
        return value
    if value == "hungarian":
        return HungarianTokenMatching()
    if value != "index":
        raise ConfigError(f"token_matching={value!r} is not 'index', 'hungarian' or a HungarianTokenMatching")
    return None


def matched_spec(name: str, spec: TapSpec, predicted: int, count: int) -> TapSpec:
    """Description of a tap after :func:`take_queries`: ``count`` of the ``predicted`` queries.

    Raises:
        IncompatibleModelsError: tokens that are not the queries.
    """
    if spec.kind != "tokens":
        return spec
    if spec.num_tokens != predicted:
        raise IncompatibleModelsError(
            f"tap {name!r} has {spec.num_tokens} tokens, but the model predicts from {predicted} queries: hungarian "
            f"token matching cannot reorder them; tap queries only, or use token_matching='index'"
        )
    return dataclasses.replace(spec, num_tokens=count)


def take_queries(taps: Taps, queries: Tensor) -> dict[str, TapValue]:
    """The taps with their tokens in the order of ``queries`` (B, M); maps stay as they are."""
    return {
        name: value if isinstance(value, list) else take_rows(value, queries) for name, value in taps.items()
    }


def _tensor(value: TapValue) -> Tensor:
    if isinstance(value, list):
        raise IncompatibleModelsError("hungarian token matching needs predictions per query, not maps")
    return value
