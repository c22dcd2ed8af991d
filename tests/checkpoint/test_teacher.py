"""A published file as the frozen teacher of a distillation."""

from __future__ import annotations

import pytest
import timm
import torch

from mokd_det.checkpoint import load_into
from mokd_det.distillation import Distiller, MoKD
from mokd_det.errors import CheckpointError
from tests.checkpoint.published import detector


def test_a_published_teacher_has_the_students_classes(vidt_file):
    direct = detector()
    load_into(direct, vidt_file)
    model = Distiller(detector(), detector(), MoKD(), teacher_checkpoint=str(vidt_file))
    assert model.teacher is not None
    loaded = model.teacher.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in direct.state_dict().items())


def test_teachers_that_do_not_fit_are_named(vidt_file, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"^teacher checkpoint .* looks like ViDT-nano .*; the model is ViDT-tiny"
    ):
        Distiller(detector(), detector("tiny"), MoKD(), teacher_checkpoint=str(vidt_file))
    classifier = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, embed_dim=48)
    torch.save(classifier.state_dict(), tmp_path / "swin.pth")
    with pytest.raises(
        CheckpointError, match=r"^teacher checkpoint .* the classifier Swin-nano .* backbone only"
    ):
        Distiller(detector(), detector(), MoKD(), teacher_checkpoint=str(tmp_path / "swin.pth"))
