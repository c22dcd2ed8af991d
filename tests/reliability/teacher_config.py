"""A toy student with a toy teacher from a file."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller
from mokd_det.distillation.methods.pkt import PKT
from tests.engine.toy import ToyDetector
from tests.reliability.toys import PixelSum

from .fault_config import balancer, dataloader, lr_multiplier, optimizer, train  # noqa: F401

model = L(Distiller)(
    student=L(ToyDetector)(width=8),
    teacher=L(PixelSum)(),
    method=L(PKT)(),
    taps={
        "pooled": {
            "student": {"path": "backbone", "kind": "vectors", "channels": 8},
            "teacher": {"path": "body", "kind": "vectors", "channels": 8},
        }
    },
    teacher_checkpoint="",
)
objectives = dict(task=["loss_ce", "loss_bbox", "loss_extra"], distill=["loss_distill_*"])
