"""Training: the trainer, its hooks, checkpoints, and the set-up that all tools share."""

from mokd_det.config import TrainSettings
from mokd_det.config.config_file import load_config
from mokd_det.engine.build import build_trainer, do_test, do_train
from mokd_det.engine.checkpointing import AtomicCheckpointer
from mokd_det.engine.launch import launch
from mokd_det.engine.lr_schedule import EpochCosineParamScheduler
from mokd_det.engine.optimizer import get_timm_param_groups, get_vidt_param_groups
from mokd_det.engine.setup import default_setup
from mokd_det.engine.trainer import MoKDTrainer
from mokd_det.training_arguments import argument_parser

__all__ = [
    "AtomicCheckpointer",
    "EpochCosineParamScheduler",
    "MoKDTrainer",
    "TrainSettings",
    "argument_parser",
    "build_trainer",
    "default_setup",
    "do_test",
    "do_train",
    "get_timm_param_groups",
    "get_vidt_param_groups",
    "launch",
    "load_config",
]
