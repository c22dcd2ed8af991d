"""A network alone on CIFAR-100, choice.network=... choice.recipe=...: the teachers, and students without one."""

from omegaconf import DictConfig

from ..common.cifar100 import choice, dataloader, lr_multiplier, optimizer, pair, recipes, train
from ..common.cifar_networks import networks
from ..common.classification import alone

choice["network"] = "resnet56"
model = DictConfig("${networks.${choice.network}.model}")
objectives, balancer = alone["objectives"], alone["balancer"]
optimizer.lr = "${recipes.${choice.recipe}.rate.${networks.${choice.network}.kind}}"
train["output_dir"] = "output/cifar100/${choice.network}"
