"""MoKD between any two of timm's models: here MobileNetV4-small from ResNet-50. Change the names, and nothing else.

Both need "pooled" features and logits, which all of timm's classifiers have; one with a distillation token as the
student takes ``separate_heads=False``, or the taps of mokd_deit_tiny.py.
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MoKD

from ..common.classification import mokd, with_logits
from ..common.imagenet import dataloader
from ..common.schedule_deit import lr_multiplier, optimizer, train
from ..common.timm_classifiers import timm_classifier

model = L(Distiller)(
    student=timm_classifier("mobilenetv4_conv_small", drop_path_rate=0.1),
    teacher=timm_classifier("resnet50.a1_in1k", download=True),
    method=with_logits(L(MoKD)(task="classification"), temperature=1.0),
    taps=dict(logits="logits", pooled="pooled"),
)
objectives, balancer = mokd.objectives, mokd.balancer
train.output_dir = "output/timm_pair"
