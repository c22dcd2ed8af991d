"""What the six pairs for CIFAR-100 share: student, teacher and a method, ``choice.method`` of cifar_methods.py."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from mokd_det.distillation import Distiller

from .cifar100 import (
    choice,
    dataloader,
    lr_multiplier,
    optimizer,
    pair,
    recipes,
    train,
    warmup_epochs,
)
from .cifar_methods import methods
from .cifar_networks import networks

choice["method"] = "mokd"


def chosen(key):
    """A value of the chosen method."""
    return "${methods.${choice.method}." + key + "}"


model = L(Distiller)(
    student="${networks.${pair.student}.model}",
    teacher="${networks.${pair.teacher}.model}",
    teacher_checkpoint=chosen("teacher_checkpoint"),
    method=chosen("method"),
    taps=chosen("taps"),
)
# sections of a config are mappings: these two stand elsewhere in it
objectives, balancer = DictConfig(chosen("objectives")), DictConfig(chosen("balancer"))
train["output_dir"] = "output/cifar100/${pair.student}_${choice.method}"
optimizer.lr = "${recipes.${choice.recipe}.rate.${networks.${pair.student}.kind}}"
dataloader.train.negatives = chosen("negatives")
