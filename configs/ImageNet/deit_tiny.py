"""DeiT-Ti alone on ImageNet-1k, 300 epochs, batch 1024."""

from ..common.classification import alone
from ..common.imagenet import dataloader
from ..common.schedule_deit import lr_multiplier, optimizer, train
from ..common.timm_classifiers import tiny as model

objectives, balancer = alone.objectives, alone.balancer
train.output_dir = "output/deit_tiny"
