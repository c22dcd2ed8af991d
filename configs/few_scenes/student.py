"""The pretrained student alone, as the cell ``none`` of the comparison trains it."""

from .common import alone, dataloader, lr_multiplier, optimizer, train
from .common import student as model

objectives, balancer = alone.objectives, alone.balancer
train.init_checkpoint = "output/few_scenes/pretrain/student_final.pth"
train.init_on_class_mismatch = "reinit"
train.output_dir = "output/few_scenes/student"
