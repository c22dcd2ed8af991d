"""Maps of models that pad the same images differently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mokd_det.distillation import Distiller, MoKD, TapRecorder, TokenMatching
from mokd_det.distillation.map_alignment import align_maps, image_sizes
from mokd_det.distillation.rows import pair_rows
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap


def maps(*shapes: tuple[int, int], stride: int = 8, batch: int = 2) -> list[FeatureMap]:
    return [
        FeatureMap(torch.randn(batch, 3, *shape), None, stride * 2**index)
        for index, shape in enumerate(shapes)
    ]


def test_maps_are_cropped_to_the_cells_both_models_have() -> None:
    # images of 40 × 60 and 33 × 60; the teacher pads to a multiple of 32
    student, teacher = maps((5, 8), (3, 4)), maps((8, 8), (4, 4))
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, 5:] = True
    teacher[0] = FeatureMap(teacher[0].tensor, mask, 8)
    sizes = [(40, 60), (33, 60)]
    tokens = torch.randn(2, 4, 3)
    found_s, found_t = align_maps(
        {"patch": student, "neck": tokens}, {"patch": teacher[::-1], "neck": tokens}, sizes
    )
    assert found_s["neck"] is tokens and found_t["neck"] is tokens
    for level, other, given_s, given_t in zip(
        found_s["patch"], found_t["patch"], student, teacher, strict=True
    ):
        height, width = given_s.tensor.shape[2:]
        assert torch.equal(level.tensor, given_s.tensor)
        assert torch.equal(other.tensor, given_t.tensor[:, :, :height, :width])
        assert level.stride == other.stride == given_s.stride
    assert not found_t["patch"][0].padding_mask.any(), "the teacher's own mask, cropped"
    # A cell is padding if it starts outside of the image, as ViDT's masks have it.
    assert found_s["patch"][0].padding_mask is None
    swapped_s, swapped_t = align_maps({"patch": teacher}, {"patch": student}, sizes)
    assert swapped_s["patch"][1].tensor.shape == swapped_t["patch"][1].tensor.shape == (2, 3, 3, 4)


def test_maps_without_a_mask_get_one_from_the_images(fake_detector, batch) -> None:
    model = fake_detector()
    with TapRecorder(model, {"patch": "patch"}) as recorder:
        model(batch)
    known = recorder.values["patch"]
    bare = [FeatureMap(level.tensor, None, level.stride) for level in known]
    found, other = align_maps({"patch": bare}, {"patch": known}, image_sizes(batch))
    for level, same, right in zip(found["patch"], other["patch"], known, strict=True):
        assert torch.equal(level.padding_mask, right.padding_mask) and right.padding_mask.any()
        assert same is right


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((5, 8), (4, 8)), ((5, 8), (17, 8)), ((4, 8), (8, 8)), ((5, 8), (5, 17))],
    ids=["teacher lacks cells", "more than padding", "student lacks cells", "too wide"],
)
def test_other_differences_are_refused_with_both_shapes(student, teacher) -> None:
    message = (
        rf"'patch', stride 8.*\(2, 3, {student[0]}, {student[1]}\) in the student and "
        rf"\(2, 3, {teacher[0]}, {teacher[1]}\) in the teacher, for images of up to 40 × 60"
    )
    with pytest.raises(IncompatibleModelsError, match=message):
        align_maps({"patch": maps(student)}, {"patch": maps(teacher)}, [(40, 60), (40, 60)])


def test_models_that_both_resize_alike_stay_as_they_are() -> None:
    student, teacher = maps((20, 30)), maps((20, 30))
    found_s, found_t = align_maps({"patch": student}, {"patch": teacher}, [(40, 60), (33, 60)])
    assert found_s["patch"][0] is student[0] and found_t["patch"][0] is teacher[0]


def test_batches_of_another_kind_have_no_image_sizes(batch) -> None:
    assert image_sizes(batch) == [(48, 64), (32, 40)]
    for other in (torch.zeros(2, 3, 4, 4), [], [{"pixels": 1}], [{"image": torch.zeros(4)}], "text"):
        assert image_sizes(other) is None


class Padding32(nn.Module):
    """A convolution of stride 8 that pads the batch to a multiple of 32, as feature pyramids want it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        images = [item["image"].float() / 255 for item in batched_inputs]
        height, width = (-(-max(i.shape[d] for i in images) // 32) * 32 for d in (1, 2))
        batch = torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])
        features = self.conv(batch)
        return {"loss_ce": features.square().mean()} if self.training else []


@pytest.mark.parametrize("make", [MoKD, TokenMatching])
def test_a_distiller_takes_both_kinds_of_padding(make, fake_detector, batch) -> None:
    taps = {
        "patch": {
            "student": {"path": "conv", "strides": [8], "channels": [8]},
            "teacher": {"path": "patch", "strides": [8]},
        }
    }
    torch.manual_seed(0)
    model = Distiller(Padding32(), fake_detector(), make(), taps)
    value = next(v for k, v in model(batch).items() if "distill" in k)
    # The second image ends at cell (4, 5) of (6, 8); what stands in its padding is of no account.
    teacher = model.prepare_batch(batch)
    teacher.teacher_taps["patch"][0].tensor[1, :, 4:] = 1e6
    teacher.teacher_taps["patch"][0].tensor[1, :, :, 5:] = 1e6
    again = next(v for k, v in model(teacher).items() if "distill" in k)
    torch.testing.assert_close(again, value)


@pytest.mark.parametrize("masked", ["student", "teacher", "both", "neither"])
def test_a_cell_that_is_padding_for_either_model_has_no_weight(masked: str) -> None:
    left, top = torch.zeros(2, 2, 3, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)
    left[0, :, 0], top[1, 0] = True, True
    student_mask = left if masked in ("student", "both") else None
    teacher_mask = top if masked in ("teacher", "both") else None
    student = [FeatureMap(torch.randn(2, 4, 2, 3), student_mask, 8)]
    teacher = [FeatureMap(torch.randn(2, 5, 2, 3), teacher_mask, 8)]
    (pair,) = pair_rows("patch", student, teacher)
    none = torch.zeros_like(left)
    padded = (none if student_mask is None else left) | (none if teacher_mask is None else top)
    if masked == "neither":
        assert pair.weights is None
    else:
        assert pair.weights is not None
        assert pair.weights.tolist() == (~padded).flatten().float().tolist()
    (unmasked,) = pair_rows("patch", student, teacher, mask_padding=False)
    assert unmasked.weights is None
