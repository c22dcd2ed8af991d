"""A projector baseline (Fig. 6): DeiT-Ti from RegNetY-160 on ImageNet-1k, 300 epochs, batch 1024.

``model.method.parts.kd.projector=linear``, ``orthogonal``, ``mlp`` or ``ensemble`` chooses the projector, and
``train.output_dir=...`` its directory; everything else is vkd_deit_tiny.py's.
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import ProjectorMatching

from .vkd_deit_tiny import balancer, dataloader, lr_multiplier, model, objectives, optimizer, train

model.method.parts.kd = L(ProjectorMatching)(projector="linear")
train.output_dir = "output/projector_linear_deit_tiny"
