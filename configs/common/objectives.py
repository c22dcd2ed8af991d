"""Which losses belong to which objective, and how the objectives are balanced."""

from detectron2.config import LazyCall as L

from mokd_det.balancing import Amortized, FixedWeights

task_losses = ["loss_ce*", "loss_bbox*", "loss_giou*"]

# a model that is trained alone has one objective, and its weight is 1
alone = dict(objectives=dict(task=task_losses), balancer=L(FixedWeights)())

# MoKD: two objectives, their weights learned beside the model (amortised, updated every iteration)
mokd = dict(
    objectives=dict(distill=["loss_distill_*"], task=task_losses),
    balancer=L(Amortized)(pi_optimizer="adamw", lr=0.025, weight_decay=0.01, update_every=1),
)
