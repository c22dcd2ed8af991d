"""MoKD between Detectron2's RetinaNets, R18-FPN from R50-FPN: nothing of them is edited, the tap is a module path."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.coco_detectron2 import dataloader
from ..common.detectron2_models import retinanet
from ..common.objectives import mokd_convolutional as mokd
from ..common.schedule_1x import lr_multiplier, optimizer, train

model = L(Distiller)(
    student=retinanet(depth=18),
    teacher=retinanet(depth=50),
    teacher_checkpoint="checkpoints/retinanet_R_50_FPN_1x.pth",  # the zoo's, see docs/methods.md
    ignore_teacher_keys=["pixel_*", "*anchor_generator.*"],  # constants that older files list
    method=L(MoKD)(),
    taps=dict(patch="backbone"),  # the pyramid p3 to p7, matched by stride
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/retinanet_r50_to_r18_fpn"
