"""DETRDistill: predictions, target-aware features and query priors of a DETR (Chang et al., ICCV 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from mokd_det.distillation.across_ranks import mean_over_ranks
from mokd_det.distillation.box_losses import box_distance, generalized_iou_distance
from mokd_det.distillation.context import MethodContext, Objects
from mokd_det.distillation.methods.base import ClassWiseMethod
from mokd_det.distillation.query_matching import HungarianTokenMatching
from mokd_det.distillation.requirements import require_kind, require_objects, require_query_decoder
from mokd_det.distillation.rows import check_comparable, pair_rows, row_channels
from mokd_det.distillation.tap_pairing import teacher_levels
from mokd_det.distillation.taps import Specs, Taps, TapValue
from mokd_det.distillation.vectors import token_stack
from mokd_det.errors import ConfigError
from mokd_det.layers import xyxy_to_cxcywh
from mokd_det.modeling.matcher import HungarianMatcher
from mokd_det.modeling.query_decoder import Queries, QueryDecoder, take_rows
from mokd_det.modeling.targets import Targets

__all__ = ["DETRDistill"]


class DETRDistill(ClassWiseMethod):
    """Three parts, each a switch; sums over the student's decoder levels. Published weights: class 1, bbox 5, giou 2.

    **Logits** (``logits_class``, ``logits_bbox``, ``logits_giou``). On every level the teacher's predictions of that
    level are soft targets, one per student query, by the Hungarian assignment of cost |p_s − p_t|₁ + 5 |b_s − b_t|₁ −
    2 GIoU. With P pairs,

        class = Σ_pairs Σ_c BCE(z_s, σ(z_t)) / P,    bbox = Σ_pairs |b_s − b_t|₁ / P,    giou = Σ_pairs (1 − GIoU) / P

    Levels of unequal numbers are paired by depth (:func:`~mokd_det.distillation.tap_pairing.teacher_levels`). The
    cross-entropy of soft targets has a floor above 0, which ``balancer.min_losses`` can take off.

    **Features** (``features``). With F the cells of all levels of the tap "patch" (a 1 × 1 map before the student's
    where channels differ; the paper has equal ones), q the teacher's last decoder states and s_q = max_c σ(z_q),

        M = clamp(Σ_q s_q cos(q, F_t), 1e-2) / its maximum over the image,    features = mean (M F_t − M F_s)²

    the mean over valid cells and channels.

    **Query prior** (``prior_class``, ``prior_bbox``, ``prior_giou``). The teacher's queries (content, position,
    reference points; linear maps before them where widths differ) enter the student's decoder in a run of their own,
    and its predictions are compared with the annotated objects by the *teacher's* assignment, that of its last level
    with ViDT's matching costs: focal loss (α = 0.25, γ = 2) over all queries and classes, L1 and 1 − GIoU of assigned
    boxes, divided by the objects.

    P, cells and objects are those of all processes.

    Args:
        logits: the first part.
        features: the second.
        query_prior: the third.
        mask_padding: leave padded cells out of the features' part.

    Raises:
        ConfigError: all parts off.
    """

    pairs_queries = True

    def __init__(
        self,
        logits: bool = True,
        features: bool = True,
        query_prior: bool = True,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(mask_padding)
        if not (logits or features or query_prior):
            raise ConfigError("DETRDistill: logits, features and query_prior are all off; switch one on")
        self.logits, self.features, self.query_prior = logits, features, query_prior
        self.asks_decoders = query_prior
        on_features = ("patch", "head") if features else ()
        self.required_taps = (*on_features, "head_logits", "head_boxes")
        self.adapters = nn.ModuleDict()
        self.query_adapters = nn.ModuleDict()
        self._query_parts: tuple[str, ...] = ()
        self._query_channels = (0, 0)
        self.matching = HungarianTokenMatching(cost_class=1.0, cost_bbox=5.0, cost_giou=2.0)
        self.matcher = HungarianMatcher()

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """See that the student's decoder takes the teacher's queries: a ConfigError if these lack the positions."""
        super().inspect(student, teacher)
        if not self.query_prior:
            return
        decoder_s = require_query_decoder("DETRDistill(query_prior=True)", "student", student)
        decoder_t = require_query_decoder("DETRDistill(query_prior=True)", "teacher", teacher)
        if decoder_s.takes_position and not decoder_t.takes_position:
            raise ConfigError(
                f"DETRDistill: the student's decoder ({type(student).__name__}) needs queries with positions, which "
                f"the teacher's ({type(teacher).__name__}) do not have; use query_prior=False"
            )
        self._query_parts = ("content", "position") if decoder_s.takes_position else ("content",)
        self._query_channels = decoder_t.channels, decoder_s.channels

    def check(self, student: Specs, teacher: Specs) -> None:
        for name in ("head_logits", "head_boxes"):
            require_kind("DETRDistill", name, "tokens", student, teacher)
        self.require_equal_classes(student["head_logits"], teacher["head_logits"])
        if self.features:
            require_kind("DETRDistill", "patch", "maps", student, teacher)
            require_kind("DETRDistill", "head", "tokens", student, teacher)
            check_comparable("patch", student["patch"], teacher["patch"])

    def build_for(self, student: Specs, teacher: Specs) -> None:
        if self.features:
            for key, (n_s, n_t) in row_channels("patch", student["patch"], teacher["patch"]).items():
                self.adapters[key] = _linear(n_s, n_t)
        for part in self._query_parts:
            self.query_adapters[part] = _linear(*self._query_channels)

    def ask_teacher(self, decoder: QueryDecoder) -> dict[str, TapValue]:
        """The teacher's own queries: content, reference and, where it has one, position."""
        own = decoder.queries
        answers: dict[str, TapValue] = {"query_content": own.content, "query_reference": own.reference}
        if own.position is not None:
            answers["query_position"] = own.position
        return answers

    def ask_student(self, decoder: QueryDecoder, teacher: Taps) -> dict[str, TapValue]:
        """What the student's decoder makes of them: logits (L, B, N, K) and boxes (L, B, N, 4)."""
        given = {part: layer(teacher[f"query_{part}"]) for part, layer in self.query_adapters.items()}
        reference = teacher["query_reference"]
        assert isinstance(reference, Tensor)
        logits, boxes = decoder(Queries(given["content"], reference, given.get("position")))
        return {"prior_logits": logits, "prior_boxes": boxes}

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        logits_t, boxes_t = (token_stack(teacher[name]).detach() for name in ("head_logits", "head_boxes"))
        if self.logits:
            logits_s, boxes_s = (token_stack(student[name]) for name in ("head_logits", "head_boxes"))
            terms.update(self._soft_targets(logits_s, boxes_s, logits_t, boxes_t))
        if self.features:
            terms["features"] = self._features(student["patch"], teacher, logits_t[-1])
        if self.query_prior:
            objects = require_objects("DETRDistill(query_prior=True)", context)
            predicted = [token_stack(student[name]) for name in ("prior_logits", "prior_boxes")]
            terms.update(self._prior(predicted[0], predicted[1], logits_t[-1:], boxes_t[-1:], objects))
        return terms

    def _soft_targets(
        self, logits_s: Tensor, boxes_s: Tensor, logits_t: Tensor, boxes_t: Tensor
    ) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {"class": [], "bbox": [], "giou": []}
        count = 0
        for level, partner in enumerate(teacher_levels(len(logits_s), len(logits_t))):
            own, others = (logits_s[level], boxes_s[level]), (logits_t[partner], boxes_t[partner])
            queries = self.matching.assign(
                {"logits": own[0], "boxes": own[1]}, {"logits": others[0], "boxes": others[1]}
            )
            (z_s, b_s), (z_t, b_t) = (
                [take_rows(value, picked) for value in side]
                for side, picked in zip((own, others), queries, strict=True)
            )
            count = queries[0].numel()
            found["class"].append(F.binary_cross_entropy_with_logits(z_s, z_t.sigmoid(), reduction="sum"))
            found["bbox"].append(box_distance(b_s, b_t).sum())
            found["giou"].append(generalized_iou_distance(b_s, b_t).sum())
        pairs = mean_over_ranks(count, logits_s)
        return {f"logits_{name}": torch.stack(sums).sum() / pairs for name, sums in found.items()}

    def _features(self, maps: TapValue, teacher: Taps, logits_t: Tensor) -> Tensor:
        """``logits_t``: (B, N, K) of the last level."""
        batch = len(logits_t)
        pairs = pair_rows("patch", maps, teacher["patch"], self.mask_padding)
        target = torch.cat([pair.teacher.unflatten(0, (batch, -1)) for pair in pairs], 1)  # (B, S, C)
        weights = (p.teacher.new_ones(len(p.teacher)) if p.weights is None else p.weights for p in pairs)
        valid = torch.cat([of_level.view(batch, -1) for of_level in weights], 1)
        adapted = torch.cat([self.adapters[p.key](p.student).unflatten(0, (batch, -1)) for p in pairs], 1)
        states = token_stack(teacher["head"]).detach()[-1]  # (B, N, C)
        cosines = F.normalize(states, dim=-1) @ F.normalize(target, dim=-1).transpose(1, 2)  # (B, N, S)
        mask = (logits_t.sigmoid().amax(-1)[:, None] @ cosines).squeeze(1).clamp_min(1e-2) * valid
        mask = mask / mask.amax(1, keepdim=True)
        squares = (mask[..., None] * (target - adapted)).square().mean(-1)
        return squares.sum() / mean_over_ranks(valid.sum()).clamp_min(1)

    def _prior(
        self, logits: Tensor, boxes: Tensor, logits_t: Tensor, boxes_t: Tensor, objects: Objects
    ) -> dict[str, Tensor]:
        """Of the student's (L, B, N, …) with the assignment of the teacher's (1, B, N, …) to the objects."""
        targets = _targets(objects, logits.device)
        matched = self.matcher(logits_t, boxes_t, targets)
        image, query = matched.image, matched.query
        wanted = torch.zeros_like(logits[0]).index_put(
            (image, query, targets.labels[matched.target]), logits.new_ones(())
        )
        goal, picked = targets.boxes[matched.target].to(boxes.dtype), boxes[:, image, query]
        count = mean_over_ranks(sum(targets.counts), logits).clamp_min(1)
        return {
            "prior_class": sigmoid_focal_loss(logits, wanted.expand_as(logits), reduction="sum") / count,
            "prior_bbox": box_distance(picked, goal).sum() / count,
            "prior_giou": generalized_iou_distance(picked, goal).sum() / count,
        }


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)


def _targets(objects: Objects, device: torch.device) -> Targets:
    """Boxes relative to each image."""
    boxes = [
        xyxy_to_cxcywh(corners) / corners.new_tensor((width, height, width, height))
        for corners, (height, width) in zip(objects.boxes, objects.sizes, strict=True)
    ]
    return Targets(
        torch.cat(objects.classes).to(device, torch.int64, non_blocking=True),
        torch.cat(boxes).to(device, non_blocking=True),
        tuple(len(found) for found in boxes),
    )
