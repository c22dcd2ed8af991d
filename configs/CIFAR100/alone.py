"""A network alone on CIFAR-100, choice.network=... choice.recipe=...: the teachers, and students without one."""

from typing import Any

from omegaconf import DictConfig

from ..common.cifar100 import choice, dataloader, lr_multiplier, optimizer, recipe, recipes, train
from ..common.cifar_networks import networks
from ..common.classification import alone

choice.network = "resnet56"
pair: Any = dict(num_classes=100)
network = DictConfig("${networks.${choice.network}}")
model = DictConfig("${network.model}")
objectives, balancer = alone.objectives, alone.balancer
optimizer.lr = "${recipe.rate.${network.kind}}"
train.output_dir = "output/cifar100/${choice.network}"
