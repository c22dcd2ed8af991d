"""MaskedKD: DeiT-Ti from CaiT-S24, which sees half of the patches, on ImageNet-1k, 300 epochs, batch 1024."""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, MaskedKD

from ...common.classification import mean
from ...common.imagenet import dataloader
from ...common.schedule_deit import lr_multiplier, optimizer, train
from ...common.timm_classifiers import timm_classifier
from ...common.timm_classifiers import tiny as student

model = L(Distiller)(
    student=student,
    teacher=timm_classifier("cait_s24_224.fb_dist_in1k"),
    teacher_checkpoint="checkpoints/cait_s24_224.fb_dist_in1k.safetensors",
    method=L(MaskedKD)(keep=98),
    taps=dict(
        logits="logits",
        # queries, keys and values of the student's last layer: 3 × 192 channels, CLS and 196 patches
        attention=dict(path="network.blocks.11.attn.qkv", channels=576, num_tokens=197),
    ),
)
objectives, balancer = mean.objectives, mean.balancer
train.output_dir = "output/masked_kd_deit_tiny"
