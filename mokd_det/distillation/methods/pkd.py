"""PKD: the Pearson correlation of feature maps (Cao et al., NeurIPS 2022)."""

from __future__ import annotations

from torch import Tensor

from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.row_losses import standardize, weighted_mean
from mokd_det.distillation.rows import RowPair

__all__ = ["PKD"]


class PKD(Method):
    """One term per tap, the sum over its map levels; no parameters, no gradient with respect to scales.

    With N the normalisation of each channel over batch, height and width (mean 0, variance 1),

        patch = ½ Σ_levels mean (N(F_s) − N(F_t))²  =  Σ_levels mean_c (1 − ρ_c)

    with ρ_c the correlation of channel c. Published on four levels of feature pyramids with weights 6 (two-stage
    teachers) and 10 (RetinaNet, RepPoints, FCOS) per level. The published code lets padded cells into the statistics
    (``mask_padding=False``), and takes them over the images of one GPU (``across_ranks=False``), so that its loss
    depends on how a batch is spread.

    Args:
        mask_padding: leave padded cells out of statistics and loss.
        across_ranks: statistics over the images of all processes; the gradient passes through them.
        eps: added to the variances.
    """

    same_channels = True

    def __init__(self, mask_padding: bool = True, across_ranks: bool = True, eps: float = 1e-6) -> None:
        super().__init__(mask_padding)
        self.across_ranks, self.eps = across_ranks, eps

    def compare_pair(self, pair: RowPair) -> Tensor:
        student, teacher = (
            standardize(rows, pair.weights, self.eps, self.across_ranks)
            for rows in (pair.student, pair.teacher)
        )
        return weighted_mean((student - teacher).square().mean(1), pair.weights, across_ranks=True) / 2
