"""VkD (Miles et al., CVPR 2024), as it distils detectors."""

from __future__ import annotations

from mokd_det.distillation.methods.projector_matching import ProjectorMatching

__all__ = ["VkD"]


class VkD(ProjectorMatching):
    """Orthogonal projection with a gain and a bias per channel; both sides standardised; smooth L1.

    One projection per map level, one for the neck, one for the head's whole stack: the published loss is the
    sum of these terms, with coefficient 4 (the balancer's here). Standardising the student after gain and
    bias cancels them but for the gain's signs, as published.

    Args:
        eps: added to the variances; the published code has none (0), and is NaN on a constant channel.
        mask_padding: leave padded cells out; False: as published.
    """

    def __init__(self, eps: float = 1e-5, mask_padding: bool = True) -> None:
        super().__init__(
            "orthogonal", norm="standardize", student_norm="after", eps=eps, mask_padding=mask_padding
        )
