"""VkD (Miles et al., CVPR 2024), as it distils detectors and classifiers."""

from __future__ import annotations

from typing import Literal

from mokd_det.distillation.methods.projector_matching import ProjectorMatching
from mokd_det.errors import require_choice

__all__ = ["VkD"]

VkDTask = Literal["detection", "classification"]


class VkD(ProjectorMatching):
    """Orthogonal projection of the student's rows, normalised teacher rows, smooth L1.

    Detection: a gain and a bias per channel after the projection, and both sides standardised per channel over the
    rows. One projection per map level, one for the neck, one for the head's whole stack: the published loss is the
    sum of these terms, with coefficient 4 (the balancer's here). Standardising the student after gain and
    bias cancels them but for the gain's signs, as published.

    Classification: neither gain nor bias, the student as it is, the teacher layer-normalised without affine parameters;
    on the tap "pooled". The published code's projection is zeroed by weight decay in the first step; ours takes none.

    Args:
        eps: added to the variances; the published detection code has none (0), and is NaN on a constant channel.
        mask_padding: leave padded cells out; False: as published.
        task: "detection" or "classification".

    Raises:
        ConfigError: an unknown task.
    """

    def __init__(self, eps: float = 1e-5, mask_padding: bool = True, task: VkDTask = "detection") -> None:
        require_choice("task", task, VkDTask)
        for_detection = task == "detection"
        super().__init__(
            "orthogonal",
            options=dict(affine=for_detection),
            norm="standardize" if for_detection else "layer_norm",
            student_norm="after" if for_detection else "none",
            eps=eps,
            mask_padding=mask_padding,
        )
