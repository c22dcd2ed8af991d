"""K = 3: a Hugging Face detector from a detector and from a vision transformer's features, each its own objective.

model.student.source=DIR model.teacher.detector.source=DIR model.teacher.foundation.source=DIR data.train.json=FILE …
"""

from detectron2.config import LazyCall as L

from mokd_det.distillation import Combined, FoundationFeatures, MoKD
from mokd_det.modeling import FeatureTeacher, SeveralTeachers

from .mokd_transformers import (
    balancer,
    data,
    dataloader,
    from_data,
    images,
    lr_multiplier,
    model,
    objectives,
    optimizer,
    train,
)

model.teacher = L(SeveralTeachers)(
    detector=model.teacher,
    # DINOv2 or v3, timm's or transformers'; no labels or boxes are needed of it
    foundation=L(FeatureTeacher)(source="", stride=32, image_size="${images.side}"),
)
model.method = L(Combined)(
    parts=dict(detector=L(MoKD)(), foundation=L(FoundationFeatures)()),
    taps=dict(detector=["patch", "neck", "head"], foundation=["deep"]),
)
model.taps = dict(
    patch=dict(student="patch", teacher="detector.taps.patch"),
    neck=dict(student="neck", teacher="detector.taps.neck"),
    head=dict(student="head", teacher="detector.taps.head"),
    deep=dict(student=dict(path="patch", strides=[32]), teacher="foundation.taps.patch"),
)
model.prediction_taps = dict(
    logits=dict(student="logits", teacher="detector.taps.logits"),
    boxes=dict(student="boxes", teacher="detector.taps.boxes"),
)
objectives = dict(
    detector=["loss_distill_detector_*"], foundation=["loss_distill_foundation_*"], task=objectives.task
)
train.output_dir = "output/custom/two_teachers"
