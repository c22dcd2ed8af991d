"""MoKD between Detectron2's Faster R-CNNs, R18-FPN from R50-FPN: nothing of them is edited."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.coco_detectron2 import dataloader
from ..common.detectron2_models import faster_rcnn
from ..common.objectives import mokd_convolutional as mokd
from ..common.schedule_1x import lr_multiplier, optimizer, train

model = L(Distiller)(
    student=faster_rcnn(depth=18),
    teacher=faster_rcnn(depth=50),
    teacher_checkpoint="checkpoints/faster_rcnn_R_50_FPN_1x.pth",  # the zoo's, see docs/methods.md
    ignore_teacher_keys=["pixel_*", "*anchor_generator.*"],  # constants that older files list
    method=L(MoKD)(),
    taps=dict(patch="backbone"),  # the pyramid p2 to p6, matched by stride
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/faster_rcnn_r50_to_r18_fpn"
