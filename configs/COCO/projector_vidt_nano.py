"""A projector baseline (Fig. 6): ViDT-nano from ViDT-base on COCO, 50 epochs, batch 16.

``model.method.projector=linear``, ``orthogonal``, ``mlp`` or ``ensemble`` chooses the projector, and
``train.output_dir=...`` its directory. The paper draws this figure for classification; the loss is the same.
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, ProjectorMatching

from ..common.coco import dataloader
from ..common.objectives import published
from ..common.schedule import lr_multiplier, optimizer, train
from ..common.vidt import base as teacher
from ..common.vidt import nano as student

model = L(Distiller)(
    student=student,
    teacher=teacher,
    teacher_checkpoint="checkpoints/vidt_base_50.pth",
    method=L(ProjectorMatching)(projector="linear"),
)
objectives, balancer = published["objectives"], published["balancer"]
train["init_checkpoint"] = (
    "checkpoints/swin_nano_patch4_window7_224.pth"  # ImageNet weights of the student's backbone
)
train["output_dir"] = "output/projector_linear_vidt_nano"
