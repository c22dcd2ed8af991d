"""The pretrained student with features of a vision transformer, whose 8 × 8 patches are the student's finest map.

The ViT is no foundation model but one that ``docs/make_digits_vit.py`` trains on digits: docs/results.md.
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, FoundationFeatures
from mokd_det.modeling import FeatureTeacher

from ..common.objectives import fixed, mokd
from .common import dataloader, lr_multiplier, optimizer, student, train

model = L(Distiller)(
    student=student,
    teacher=L(FeatureTeacher)(source="pretrained/digits_vit", stride=8),
    method=L(FoundationFeatures)(),
    taps=dict(patch=dict(student=dict(path="patch", strides=[8]), teacher="patch")),
)
objectives, balancer = mokd.objectives, fixed(5)
train.init_checkpoint = "output/few_scenes/pretrain/student_final.pth"
train.init_on_class_mismatch = "reinit"
train.output_dir = "output/few_scenes/foundation"
