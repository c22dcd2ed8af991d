"""Distillation between real ViDTs."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from mokd_det.distillation import Distiller, MoKD, TapRecorder, TokenMatching, VkD, tap_specs
from mokd_det.distillation.distiller import DEFAULT_TAPS
from tests.modeling.golden import build, images


def test_token_matching_of_nano_and_tiny_reproduces_the_published_loss(goldens) -> None:
    stored = goldens["distil_models"]
    case = {
        "batch_shape": (2, 3, 256, 288),
        "images": [(3, 224, 288), (3, 256, 192)],
        "image_names": ["input.pad.0", "input.pad.1"],
    }
    student, teacher = (build(stored[who]) for who in ("student", "teacher"))
    tensors = images(case, torch.float32)
    values = []
    with torch.no_grad():
        for model in (student, teacher):
            with TapRecorder(model, DEFAULT_TAPS) as recorder:
                model.forward_tensors(*tensors)
            values.append(recorder.values)
    method = TokenMatching(mask_padding=False)
    method.setup(tap_specs(student, DEFAULT_TAPS), tap_specs(teacher, DEFAULT_TAPS))
    shapes = stored["f64"]["token_shapes"]
    for value in values:
        assert [list(level.tensor.shape) for level in value["patch"]] == shapes["patch"]
        assert list(value["neck"].shape) == shapes["body"] and list(value["head"].shape) == shapes["neck"]
        torch.testing.assert_close(value["neck"], value["head"][0], rtol=0, atol=0)
    loss = method(*values)["tokens"]
    assert loss.item() == pytest.approx(stored["f64"]["loss_distil"], rel=1e-6)
    masked = TokenMatching()
    masked.setup(tap_specs(student, DEFAULT_TAPS), tap_specs(teacher, DEFAULT_TAPS))
    assert abs(masked(*values)["tokens"] - loss) > 1e-4


@pytest.mark.parametrize("make", [TokenMatching, VkD, MoKD])
def test_a_step_of_vidt_reaches_every_tap_of_the_student(make) -> None:
    batch = []
    for height, width in ((64, 96), (64, 64)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[8.0, 10.0, 40.0, 44.0]]))
        instances.gt_classes = torch.tensor([3])
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image, "height": height, "width": width, "instances": instances})
    model = Distiller(build("vidt_swin_nano", filled=False), build("vidt_swin_nano", filled=False), make())
    model.train()
    losses = model(batch)
    terms = [value for name, value in losses.items() if name.startswith("loss_distill_")]
    assert len(losses) == 21 + len(terms)
    gradients = torch.autograd.grad(sum(terms), model.last_student_taps(), retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    task = sum(value for name, value in losses.items() if not name.startswith("loss_distill_"))
    gradients = torch.autograd.grad(task, model.last_student_taps())
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert [set(p) for p in model.eval()(batch)] == [{"instances"}] * 2
