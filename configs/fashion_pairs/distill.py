"""The student with MoKD from the teacher that teacher.py trains, or with any method by choice.method=..."""

from ..common.cifar_distillation import balancer, choice, methods, model, objectives
from .common import dataloader, lr_multiplier, networks, optimizer, pair, train, warmup_epochs

dataloader.train.negatives = "${methods.${choice.method}.negatives}"
train["output_dir"] = "output/fashion_pairs/${choice.method}"
