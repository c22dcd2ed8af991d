"""ViDT-nano alone, on your own data."""

from ..common.objectives import alone
from ..common.vidt import nano as model
from .common import data, dataloader, from_data, lr_multiplier, optimizer, train, with_own_classes

with_own_classes(model)
objectives, balancer = alone.objectives, alone.balancer
train.init_checkpoint = "checkpoints/vidt_nano_50.pth"  # or ImageNet weights of the backbone
train.output_dir = "output/custom/vidt_nano"
