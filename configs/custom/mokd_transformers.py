"""MoKD between any two Hugging Face detectors, on your own data: docs/transformers.md.

model.student.source=DIR model.teacher.source=DIR data.train.json=FILE data.train.images=FOLDER …
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Distiller, HungarianTokenMatching, MoKD
from mokd_det.modeling import TransformersDetector

from ..common.objectives import mokd_transformers
from .transformers import data, dataloader, from_data, images, lr_multiplier, optimizer, train
from .transformers import model as student

model = L(Distiller)(
    student=student,
    teacher=L(TransformersDetector)(source="", image_size="${images.side}"),  # with its own classes
    method=L(MoKD)(),
    # Whatever the two have: the query that predicts the same object, maps of strides in common, levels by depth.
    token_matching=L(HungarianTokenMatching)(other_classes="boxes"),
    tap_pairing="common",
)
objectives, balancer = mokd_transformers.objectives, mokd_transformers.balancer
train.output_dir = "output/custom/mokd_transformers"
