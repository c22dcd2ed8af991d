"""The student with MoKD from the teacher that teacher.py trains, or with any method by choice.method=..."""

from ..CIFAR100.distill import balancer, choice, method, methods, model, objectives, student, teacher
from .common import dataloader, lr_multiplier, networks, optimizer, pair, train, warmup_epochs

dataloader.train.negatives = "${method.negatives}"
train.output_dir = "output/fashion_pairs/${choice.method}"
