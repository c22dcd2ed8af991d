"""How classification's losses are grouped and balanced, and where its methods look."""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.balancing import FixedWeights
from mokd_det.distillation import Combined, LogitDistillation

from .objectives import amortized

two = dict(distill=["loss_distill_*"], task=["loss_cls"])

# a model that is trained alone has one objective, and its weight is 1
alone: Any = dict(objectives=dict(task=["loss_cls"]), balancer=L(FixedWeights)())

# MoKD: L_kl + L_kd against L_cls, their weights learned beside the model
mokd: Any = dict(objectives=two, balancer=amortized)

# the same with each of the three as an objective of its own
mokd_three_objectives: Any = dict(
    objectives=dict(kl=["loss_distill_kl_*"], kd=["loss_distill_kd_*"], cls=["loss_cls"]), balancer=amortized
)

# the plain sum of plain KD and of VkD, and DeiT's mean of task and distillation
plain_sum: Any = dict(objectives=two, balancer=L(FixedWeights)())
mean: Any = dict(objectives=two, balancer=L(FixedWeights)(weights=dict(distill=0.5, task=0.5)))

# the teacher's logits teach the student's distillation token; features are compared after pooling
dist_token = dict(student="dist_logits", teacher="logits")
token_and_features = dict(logits=dist_token, pooled="pooled")


def with_logits(method: Any, **options: Any) -> Any:
    """A method on pooled features beside the divergence of the class probabilities (``options``: its temperature)."""
    return L(Combined)(
        parts=dict(kd=method, kl=L(LogitDistillation)(**options)), taps=dict(kd=["pooled"], kl=["logits"])
    )
