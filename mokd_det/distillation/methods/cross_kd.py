"""CrossKD: the student's head features through the rest of the teacher's head (Wang et al., CVPR 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.across_ranks import mean_over_ranks
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.row_losses import moments, standardize
from mokd_det.distillation.rows import MapPair, check_comparable, pair_maps
from mokd_det.distillation.taps import Specs, Taps, TapSource
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers import cxcywh_to_xyxy, generalized_iou
from mokd_det.layers.tap_point import TapSpec
from mokd_det.modeling.dense_head import BoxCoding, CutHead, dense_heads

__all__ = ["CrossKD"]

KINDS = ("class", "box")
LONGEST_LOG_RATIO = math.log(1000 / 16)
"""Of a box's side to its anchor's, beyond which Detectron2 and torchvision cut it off."""


class CrossKD(Method):
    """``class`` and ``box``, for pairs of dense detectors whose heads are alike.

    f are the features of a head after ``convolutions`` convolutions, brought channel by channel to mean and standard
    deviation of the teacher's (over a level's cells of the batch, all processes together), g is the rest of the
    *teacher's* head. The cross predictions g(f_s) are compared with the teacher's own: with q = σ(teacher's class
    logits), p = σ of the cross ones and w = max_class q per anchor,

        class = Σ |p − q|^β · BCE(p, q) / Σ w                     (quality focal loss, over all anchors and classes)
        box   = Σ w · d(cross box, teacher's box) / Σ w

    d is 1 − GIoU, in units of the anchor or of the level; for heads that predict distributions ("bins", one anchor)
    KL(teacher ‖ cross) at T = 1, the mean over the four sides. Published: third convolution, β = 1, weights 1 (class)
    and 4 (distributions). The gradient passes through the frozen teacher's head to the student's features and so not
    to the end of the student's own head. Σ w is our choice: the formulas that we have name no divisor.

    The tap "patch" is the pyramid that enters the heads, with all levels. What the heads deliver is found by
    :func:`~mokd_det.modeling.dense_head.dense_heads`.

    Args:
        convolutions: of the tower, before the features.
        beta: β.
        eps: of the standardisation.
        mask_padding: leave padded cells out of statistics and losses.

    Raises:
        ConfigError: a negative β.
    """

    tap_kinds = {"patch": "maps"}

    def __init__(
        self, convolutions: int = 3, beta: float = 1.0, eps: float = 1e-6, mask_padding: bool = True
    ) -> None:
        super().__init__(mask_padding)
        if beta < 0:
            raise ConfigError(f"CrossKD: beta={beta} must not be negative")
        self.convolutions, self.beta, self.eps = convolutions, beta, eps
        # In a tuple: the teacher's modules must not become the method's.
        self._rest: tuple[dict[str, tuple[nn.Module, ...]]] = ({},)
        self._coding: BoxCoding = "deltas"
        self.num_anchors = 0

    def more_taps(self, model: nn.Module, taps: Specs) -> dict[str, TapSource]:
        """Features before the cut and predictions of both heads (there must be both), once per level of the pyramid."""
        if "patch" not in taps:
            return {}
        strides = taps["patch"].strides
        found = {}
        for kind, part in self._cut(model).items():
            predictor = dense_heads(model)[kind].predictor
            for name, path, channels in (
                (f"{kind}_features", part.features, part.channels),
                (f"{kind}_predictions", predictor, part.outputs),
            ):
                spec = TapSpec("maps", (channels,) * len(strides), strides)
                found[name] = TapSource(path, spec, per_level=True)
        return found

    def _cut(self, model: nn.Module) -> dict[str, CutHead]:
        heads = dense_heads(model)
        name = type(model).__name__
        if set(heads) != set(KINDS):
            raise IncompatibleModelsError(
                f"CrossKD needs detectors with a class and a box head that every pyramid level runs through, but "
                f"{name} has none: use RetinaNet, FCOS, or a model with dense_heads() (docs/extending.md)"
            )
        cut = {kind: heads[kind].cut(model, self.convolutions) for kind in KINDS}
        missing = [kind for kind, part in cut.items() if part is None]
        if missing:
            raise IncompatibleModelsError(
                f"CrossKD: {name}'s {missing[0]} head cannot be cut after convolutions={self.convolutions}; it takes 1 "
                f"or more, and at least one of the tower must follow"
            )
        return {kind: part for kind, part in cut.items() if part is not None}

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Take the rest of the teacher's heads; both models' must have equal widths, anchors, classes and boxes."""
        assert teacher is not None  # the Distiller refuses a method that needs one without
        cut_s, cut_t = self._cut(student), self._cut(teacher)
        codings = [dense_heads(model)["box"].boxes for model in (student, teacher)]
        for kind in KINDS:
            for what, numbers in (
                ("features", (cut_s[kind].channels, cut_t[kind].channels)),
                ("predictions", (cut_s[kind].outputs, cut_t[kind].outputs)),
            ):
                if numbers[0] != numbers[1]:
                    raise IncompatibleModelsError(
                        f"CrossKD runs the student's {kind} head through the teacher's, but their {what} have "
                        f"{numbers[0]} and {numbers[1]} channels; both need the same"
                    )
        if codings[0] != codings[1] or codings[1] is None:
            raise IncompatibleModelsError(
                f"CrossKD compares boxes, but the student's head predicts {codings[0]} and the teacher's {codings[1]}"
            )
        self._coding = codings[1]
        self.num_anchors = 1 if self._coding == "bins" else cut_t["box"].outputs // 4
        self._rest = ({kind: cut_t[kind].rest for kind in KINDS},)

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        check_comparable("patch", student["patch"], teacher["patch"])

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        cross, own, valid = {}, {}, []
        for kind in KINDS:
            features, predictions = (
                pair_maps(name, student[name], teacher[name], self.mask_padding)
                for name in (f"{kind}_features", f"{kind}_predictions")
            )
            cross[kind] = [self._by_anchor(self._through(kind, pair)) for pair in features]
            own[kind] = [self._by_anchor(pair.teacher) for pair in predictions]
            valid = [pair.valid[:, None] for pair in predictions]  # (B, 1, H, W)
        quality = [logits.sigmoid() for logits in own["class"]]
        weights = [q.amax(2) * v for q, v in zip(quality, valid, strict=True)]  # (B, A, H, W)
        total = mean_over_ranks(torch.stack([w.sum() for w in weights]).sum())
        total = total.clamp_min(torch.finfo(total.dtype).tiny)
        classes = [
            ((p.sigmoid() - q).abs() ** self.beta * _entropy(p, q)).sum(2) * v
            for p, q, v in zip(cross["class"], quality, valid, strict=True)
        ]
        boxes = [
            self._box_distance(p, q) * w for p, q, w in zip(cross["box"], own["box"], weights, strict=True)
        ]
        return {
            name: torch.stack([level.sum() for level in levels]).sum() / total
            for name, levels in (("class", classes), ("box", boxes))
        }

    def _through(self, kind: str, pair: MapPair) -> Tensor:
        """The student's features with the teacher's statistics, through the rest of its head."""
        shape = pair.student.shape
        rows_s, rows_t = (maps.transpose(0, 1).flatten(1).T for maps in (pair.student, pair.teacher))
        weights = pair.valid.flatten()
        mean, variance = moments(rows_t, weights, across_ranks=True)
        rows = standardize(rows_s, weights, self.eps, across_ranks=True) * variance.sqrt() + mean
        maps = rows.T.unflatten(1, (shape[0], *shape[2:])).transpose(0, 1)
        for module in self._rest[0][kind]:
            maps = module(maps)
        return maps

    def _by_anchor(self, maps: Tensor) -> Tensor:
        """(B, A·n, H, W) → (B, A, n, H, W)."""
        return maps.unflatten(1, (self.num_anchors, -1))

    def _box_distance(self, cross: Tensor, own: Tensor) -> Tensor:
        """(B, A, n, H, W) of both → (B, A, H, W)."""
        if self._coding == "bins":
            log_s, log_t = (x.unflatten(2, (4, -1)).log_softmax(3) for x in (cross, own))
            return (log_t.exp() * (log_t - log_s)).sum(3).mean(2).clamp_min(0)
        corners = [_corners(x.movedim(2, -1), self._coding) for x in (cross, own)]
        return 1 - generalized_iou(*corners)


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _corners(boxes: Tensor, coding: BoxCoding) -> Tensor:
    """(…, 4) deltas or distances as corners about the anchor or the cell; GIoU does not depend on the unit."""
    if coding == "deltas":
        size = boxes[..., 2:].clamp(max=LONGEST_LOG_RATIO).exp()
        return cxcywh_to_xyxy(torch.cat((boxes[..., :2], size), -1))
    # An area of 0 would make the GIoU 0/0.
    distances = boxes.clamp_min(1e-6)
    return torch.cat((-distances[..., :2], distances[..., 2:]), -1)
