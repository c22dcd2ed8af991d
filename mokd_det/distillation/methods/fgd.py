"""FGD: focal and global knowledge of feature maps (Yang et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mokd_det.distillation.across_ranks import mean_over_ranks
from mokd_det.distillation.context import MethodContext, Objects
from mokd_det.distillation.map_adapters import build_adapters
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import require_objects, require_positive
from mokd_det.distillation.rows import MapPair, check_comparable, pair_maps, row_channels
from mokd_det.distillation.taps import Specs, Taps

__all__ = ["FGD", "RelationBlock", "foreground_scale"]


class RelationBlock(nn.Module):
    """R(F) = F + W₂ ReLU(LN(W₁ c)) with c = Σ_cells softmax_cells(w·F) F (the global context block of GCNet).

    W₂ starts at 0, so R is the identity at first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.attention = nn.Linear(channels, 1)
        self.first = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, channels)
        nn.init.kaiming_normal_(self.attention.weight)
        nn.init.zeros_(self.attention.bias)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, maps: Tensor, valid: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; ``valid`` (B, H, W) is 0 on padding, which the context leaves out."""
        cells = maps.flatten(2).transpose(1, 2)  # (B, HW, C)
        scores = self.attention(cells).squeeze(-1).masked_fill(valid.flatten(1) == 0, -torch.inf)
        context = (scores.softmax(1)[:, None] @ cells).squeeze(1)
        return maps + self.second(self.norm(self.first(context)).relu())[:, :, None, None]


class FGD(Method):
    """Four terms, sums over the map levels of the tap "patch", averaged over the images.

    With F_t the teacher's map of C channels on N valid cells, F_s the student's (after a 1 × 1 convolution where
    channels differ), T = ``temperature``, M the cells of annotated boxes, and

        A^S(F) = N softmax_cells(mean_c |F| / T),    A^C(F) = C softmax_c(mean_cells |F| / T)
        S = 1/(cells of the smallest box there) where M, else 1/(cells outside of all boxes)

    the terms are, with all A of the teacher but in the third,

        foreground = Σ M S A^S A^C (F_t − F_s)²            background = Σ (1 − M) S A^S A^C (F_t − F_s)²
        attention  = ‖A^S(F_t) − A^S(F_s)‖₁ + ‖A^C(F_t) − A^C(F_s)‖₁    relation = Σ (R_t(F_t) − R_s(F_s))²

    with R a :class:`RelationBlock`. Published weights 1e-3, 5e-4, 5e-4 (1e-3 is the default of the released code) and
    5e-6. ``attention`` and ``relation`` are sums over cells: their pressure grows with the images' size. R_t is trained
    too, as published, so the pair can lower ``relation`` by moving its target.

    Args:
        temperature: T.
        learn_teacher_relation: False: R_t is R_s as it stands, without a gradient, so no weight is there to move the
            target alone.
        mask_padding: leave padded cells out.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    tap_kinds = {"patch": "maps"}

    def __init__(
        self, temperature: float = 0.5, learn_teacher_relation: bool = True, mask_padding: bool = True
    ) -> None:
        super().__init__(mask_padding)
        require_positive("temperature", temperature)
        self.temperature, self.learn_teacher_relation = temperature, learn_teacher_relation
        self.adapters = nn.ModuleDict()
        self.student_relations, self.teacher_relations = nn.ModuleDict(), nn.ModuleDict()

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        check_comparable("patch", student["patch"], teacher["patch"])

    def build_for(self, student: Specs, teacher: Specs) -> None:
        channels = row_channels("patch", student["patch"], teacher["patch"])
        self.adapters.update(build_adapters(channels))
        for key, (_, n_t) in channels.items():
            self.student_relations[key] = RelationBlock(n_t)
            if self.learn_teacher_relation:
                self.teacher_relations[key] = RelationBlock(n_t)

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        objects = require_objects("FGD", context)
        pairs = pair_maps("patch", student["patch"], teacher["patch"], self.mask_padding)
        levels = [self._level(pair, objects) for pair in pairs]
        images = mean_over_ranks(len(objects.boxes), pairs[0].teacher)
        return {name: torch.stack([terms[name] for terms in levels]).sum() / images for name in levels[0]}

    def _level(self, pair: MapPair, objects: Objects) -> dict[str, Tensor]:
        """The sums over the batch."""
        target, valid = pair.teacher, pair.valid
        maps = self.adapters[pair.key](pair.student)
        cells_t, channels_t = self.attentions(target, valid)
        cells_s, channels_s = self.attentions(maps, valid)
        inside = foreground_scale(objects, pair.stride, valid)
        outside = valid * (inside == 0)
        outside = outside / outside.sum((1, 2), keepdim=True).clamp_min(1)
        squares = (channels_t[:, :, None, None] * (target - maps).square()).sum(1) * cells_t  # (B, H, W)
        if self.learn_teacher_relation:
            related = self.teacher_relations[pair.key](target, valid)
        else:
            with torch.no_grad():
                related = self.student_relations[pair.key](target, valid)
        relation = related - self.student_relations[pair.key](maps, valid)
        return {
            "foreground": (squares * inside).sum(),
            "background": (squares * outside).sum(),
            "attention": (cells_t - cells_s).abs().sum() + (channels_t - channels_s).abs().sum(),
            "relation": (relation.square().sum(1) * valid).sum(),
        }

    def attentions(self, maps: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """A^S (B, H, W), 0 on padding, and A^C (B, C) of maps (B, C, H, W)."""
        size = maps.abs()
        count = valid.sum((1, 2))
        scores = (size.mean(1) / self.temperature).masked_fill(valid == 0, -torch.inf)
        over_cells = scores.flatten(1).softmax(1).view_as(scores) * count[:, None, None]
        means = (size * valid[:, None]).sum((2, 3)) / count[:, None]
        return over_cells, (means / self.temperature).softmax(1) * maps.shape[1]


def foreground_scale(objects: Objects, stride: int, valid: Tensor) -> Tensor:
    """1/(cells of the smallest box that covers a cell), and 0 where there is none and on padding: (B, H, W).

    A box covers the cells that it overlaps, at least one. (The released code counts one more row and column.)
    """
    height, width = valid.shape[1:]
    rows, columns = (torch.arange(side, device=valid.device) for side in (height, width))
    scales = []
    for boxes in objects.boxes:
        if not len(boxes):
            scales.append(valid.new_zeros(height, width))
            continue
        cells = boxes.to(valid.device, valid.dtype, non_blocking=True) / stride
        limit = cells.new_tensor((width, height))
        first = torch.minimum(cells[:, :2].floor().clamp_min(0), limit - 1)
        last = torch.minimum(torch.maximum(cells[:, 2:].ceil(), first + 1), limit)  # exclusive
        across = (columns >= first[:, :1]) & (columns < last[:, :1])  # (n, W)
        along = (rows >= first[:, 1:]) & (rows < last[:, 1:])  # (n, H)
        covered = along[:, :, None] & across[:, None]
        scales.append((covered / (last - first).prod(1)[:, None, None]).amax(0))
    return torch.stack(scales) * valid
