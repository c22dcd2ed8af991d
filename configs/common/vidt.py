"""ViDT's four variants for the 80 classes of COCO."""

from collections.abc import Callable
from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.modeling import DeformableTransformer, HungarianMatcher, InputProjection, SetCriterion, ViDT
from mokd_det.modeling.backbone import swin_base, swin_nano, swin_small, swin_tiny


def vidt(backbone: Callable[..., Any]) -> Any:
    """A detector on the given backbone; everything else is the same in all variants."""
    return L(ViDT)(
        backbone=L(backbone)(num_det_tokens=100),
        neck=L(InputProjection)(),  # L(EPFF)() is ViDT+'s
        transformer=L(DeformableTransformer)(num_layers=6, num_heads=8, ffn_dim=1024, dropout=0.1),
        num_classes=80,
        criterion=L(SetCriterion)(
            num_classes="${..num_classes}",
            matcher=L(HungarianMatcher)(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
            weights=dict(ce=2.0, bbox=5.0, giou=2.0),  # of each of the seven levels
        ),
    )


nano, tiny, small, base = vidt(swin_nano), vidt(swin_tiny), vidt(swin_small), vidt(swin_base)
