"""A student from a teacher on CIFAR-100: choice.pair=... choice.method=... choice.recipe=..."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from mokd_det.distillation import Distiller

from ..common.cifar100 import (
    choice,
    dataloader,
    lr_multiplier,
    optimizer,
    recipe,
    recipes,
    train,
    warmup_epochs,
)
from ..common.cifar_methods import methods
from ..common.cifar_networks import networks
from ..common.cifar_pairs import pairs

choice.pair, choice.method = "resnet56_resnet20", "mokd"
# what the choices name: everything else refers to these
pair = DictConfig("${pairs.${choice.pair}}")
method = DictConfig("${methods.${choice.method}}")
student = DictConfig("${networks.${pair.student}}")
teacher = DictConfig("${networks.${pair.teacher}}")

model = L(Distiller)(
    student="${student.model}",
    teacher="${teacher.model}",
    teacher_checkpoint="${method.teacher_checkpoint}",
    method="${method.method}",
    taps="${method.taps}",
)
objectives, balancer = DictConfig("${method.objectives}"), DictConfig("${method.balancer}")
dataloader.train.negatives = "${method.negatives}"
optimizer.lr = "${recipe.rate.${student.kind}}"
train.output_dir = "output/cifar100/${pair.student}_${choice.method}"
