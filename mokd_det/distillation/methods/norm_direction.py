"""Norm and direction of the embedding: the "++" of ReviewKD++, KD++ and DKD++ (Wang et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.requirements import hard_targets
from mokd_det.distillation.taps import Specs, Taps, TapValue
from mokd_det.distillation.vectors import tokens, vector_pair
from mokd_det.distillation.warmup import WarmUp
from mokd_det.errors import ConfigError

__all__ = ["NormDirection"]


class NormDirection(Method):
    """``nd``: mean over images of 1 − ⟨s, e_y⟩ / max(|s|, |t|), in [0, 2].

    e_y is the direction of class y's centre, the mean of the teacher's vectors over its training images. A student's
    vector of another dimension goes through BatchNorm, dropout and a linear layer first; one of the same dimension is
    compared as it is. Add it to another method by :class:`~mokd_det.distillation.methods.combined.Combined`.

    The centres are learned by :meth:`prepare` with the images as ``dataloader.preparation`` delivers them, and kept in
    the checkpoint. The release rounds them to four decimals; they are not rounded here.

    Args:
        num_classes: classes of the training set.
        dropout: of the student's embedding, where there is one.
        warmup_epochs: see :class:`~mokd_det.distillation.warmup.WarmUp`.
    """

    tap_kinds = {"pooled": "vectors"}
    needs_preparation = True
    centers: Tensor

    def __init__(self, num_classes: int, *, dropout: float = 0.5, warmup_epochs: float = 0) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"NormDirection: num_classes={num_classes} must be at least 1")
        self.num_classes, self.dropout = num_classes, dropout
        self.warm_up = WarmUp(warmup_epochs)
        self.embed: nn.Sequential | None = None
        self._is_prepared = False

    def build_for(self, student: Specs, teacher: Specs) -> None:
        n_s, n_t = student["pooled"].channels[0], teacher["pooled"].channels[0]
        if n_s != n_t:
            self.embed = nn.Sequential(nn.BatchNorm1d(n_s), nn.Dropout(self.dropout), nn.Linear(n_s, n_t))
        self.register_buffer("centers", torch.zeros(self.num_classes, n_t))

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[dict[str, TapValue], MethodContext]]) -> None:
        """The mean vector of each class; a ConfigError if one has no image, or a label is no class."""
        sums = torch.zeros_like(self.centers, dtype=torch.float64)
        counts = sums.new_zeros(self.num_classes)
        for taps, context in batches:
            labels = hard_targets("NormDirection", context) if context.labels is None else context.labels
            if len(labels) and int(labels.max()) >= self.num_classes:
                raise ConfigError(
                    f"NormDirection: num_classes={self.num_classes}, but an image has class {int(labels.max())}"
                )
            sums.index_add_(0, labels, tokens(taps["pooled"]).double())
            counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        absent = (counts == 0).nonzero().flatten().tolist()
        if absent:
            raise ConfigError(f"NormDirection: no training image of class {absent[0]}, so it has no centre")
        self.centers.copy_(sums / counts[:, None])

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        z_s, z_t = vector_pair("pooled", student, teacher)
        labels = hard_targets("NormDirection", context)
        if not self._is_prepared:
            if not bool(self.centers.any()):
                raise RuntimeError("NormDirection.prepare comes before the first forward")
            self._is_prepared = True
        embedded = z_s if self.embed is None else self.embed(z_s)
        directions = F.normalize(self.centers[labels].to(embedded.dtype), dim=1)
        norms = [torch.linalg.vector_norm(vectors, dim=1) for vectors in (embedded, z_t.to(embedded.dtype))]
        cosine_like = (embedded * directions).sum(1) / norms[0].maximum(norms[1])
        # Rounding may leave a perfect match a little below 0; a negative loss has no logarithm.
        return self.warm_up({"nd": (1 - cosine_like).mean().clamp_min(0)}, context.epoch)
