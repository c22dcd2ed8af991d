"""What the comparisons with few labelled images share (docs/results.md): the recipe, and how a bed is made of parts.

As in few_scenes/, the student gets a few images of each class, drawn anew in each replicate, and the teacher more of
them, those of the student included. Ten classes, 16 × 16 pixels: about ten seconds of one CPU core for a training.

Conditions of a bed, written down before any distillation run and decided on teacher and student alone: three times the
iterations gain the student less than 1 point of top-1, the teacher is at least 5 points ahead of that, the standard
deviation of the student alone over replicates is at most 1.5 points, and there are 1,000 test images or more.
"""

from collections.abc import Callable
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mokd_det.classification import (
    ClassificationEvaluator,
    SmallImageTransform,
    build_classification_test_loader,
    build_classification_train_loader,
)
from mokd_det.classification.subset import FewPerClass

NUM_CLASSES, PER_CLASS, SIDE = 10, 20, 16


def loaders(
    dataset: Callable[..., Any], per_class: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Any:
    """Batches of 32 of ``per_class`` images of each class, in 4 views each; judged on the validation images."""

    def transform(is_train: bool) -> Any:
        return L(SmallImageTransform)(is_train=is_train, mean=mean, std=std, size=SIDE, padding=2)

    return dict(
        train=L(build_classification_train_loader)(
            dataset=L(FewPerClass)(dataset=L(dataset)(split="train", size=SIDE), per_class=per_class),
            transform=transform(is_train=True),
            total_batch_size=32,
            num_workers=0,
            seed=0,
            views=4,
            keep_views=True,
        ),
        test=L(build_classification_test_loader)(
            dataset=L(dataset)(split="val", size=SIDE), transform=transform(is_train=False), batch_size=250
        ),
        evaluator=L(ClassificationEvaluator)(dataset="${..test.dataset}", per_class=False),
    )


def training(iterations: int, output: str) -> Any:
    """The ``train`` section: one evaluation, at the end."""
    return dict(
        max_iter=iterations,
        output_dir=f"output/few_images/{output}",
        seed=0,
        device="auto",
        checkpointer=dict(period=100_000, max_to_keep=1),
        eval_period=iterations,
        log_period=50,
        diagnostics_period=0,
    )


lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01), warmup_factor=0.02, warmup_length=0.05
)
