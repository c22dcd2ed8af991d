"""Two processes, one and three images: losses and gradients are those of one process with all four."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mokd_det.distillation import FGD, KDDETR, LD, MGD, PKD, CrossKD, DETRDistill, FoundationFeatures, Method
from mokd_det.distillation.context import MethodContext, Objects
from mokd_det.distillation.taps import TapValue
from mokd_det.layers.tap_point import FeatureMap
from tests.distillation.method_goldens import set_up
from tests.distillation.test_cross_kd import Dense
from tests.forks import spawn

SHARES = (slice(0, 1), slice(1, 4))


def cross_kd() -> Method:
    """Heads of two convolutions, cut after the first."""
    torch.manual_seed(2)
    dense, method = Dense(channels=4).double(), CrossKD(convolutions=1)
    method.inspect(dense, dense.requires_grad_(False))
    return method


METHODS: dict[str, Callable[[], Method]] = {
    "pkd": PKD,
    "mgd": lambda: MGD(ratio=0.0),
    "mgd mean": lambda: MGD(ratio=0.0, reduction="mean"),
    "fgd": FGD,
    "foundation": FoundationFeatures,
    "cross": cross_kd,
    "points": lambda: KDDETR(general=2),
    "distill": DETRDistill,
    "sides": LD,
}
STACKS = ("head", "head_logits", "head_boxes", "prior_logits", "prior_boxes", "general_logits", "general_boxes",
          "specific_logits", "specific_boxes")  # fmt: skip
"""Of the student; what has no level axis in the teacher is marked there."""


def whole_batch() -> tuple[dict[str, TapValue], dict[str, TapValue], Objects]:
    """Four images, padded differently, with 0 to 3 objects; taps and answers of all methods."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    padding = torch.zeros(4, 3, 5, dtype=torch.bool)
    for image, columns in enumerate((5, 2, 4, 3)):
        padding[image, :, columns:] = True
    sides: list[dict[str, TapValue]] = []
    for who in ("student", "teacher"):
        maps = {
            "patch": 4,
            "class_features": 4,
            "class_predictions": 3,
            "box_features": 4,
            "box_predictions": 4,
        }
        side: dict[str, TapValue] = {
            name: [FeatureMap(draw(4, channels, 3, 5), padding, 8)] for name, channels in maps.items()
        }
        for name in (*STACKS, "logits", "boxes", "corners"):
            channels = {"head": 4, "corners": 8}.get(name, 4 if name.endswith("boxes") else 3)
            leads = (2,) if name in STACKS and (who == "student" or name.startswith("head")) else ()
            value = draw(*leads, 4, 2, channels)
            side[name] = value.sigmoid() if name.endswith("boxes") else value
        sides.append(side)
    corner = torch.rand(6, 2, generator=generator) * 12
    boxes = torch.cat((corner, corner + 9), 1).split([3, 0, 1, 2])
    labels = torch.randint(0, 3, (6,), generator=generator).split([3, 0, 1, 2])
    sizes = ((24, 40), (24, 16), (24, 32), (24, 24))
    return sides[0], sides[1], Objects(tuple(boxes), tuple(labels), sizes)


def part(value: TapValue, images: slice) -> TapValue:
    if not isinstance(value, list):
        return value[:, images] if value.ndim == 4 else value[images]
    return [FeatureMap(m.tensor[images], m.padding_mask[images], m.stride) for m in value]


def leaves(taps: dict[str, TapValue]) -> list[Tensor]:
    return [t for v in taps.values() for t in ([m.tensor for m in v] if isinstance(v, list) else [v])]


def results(images: slice) -> dict[str, Any]:
    """Of each method: its terms, and the gradients of their sum for the student's taps and the method's weights."""
    found = {}
    for name, make in METHODS.items():
        student, teacher, objects = whole_batch()
        method = make()
        read = [*method.required_taps] or ["patch"]
        set_up(method, {key: student[key] for key in read}, {key: teacher[key] for key in read}).double()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        student = {key: part(value, images) for key, value in student.items()}
        teacher = {key: part(value, images) for key, value in teacher.items()}
        for tensor in leaves(student):
            tensor.requires_grad_()
        own = Objects(objects.boxes[images], objects.classes[images], objects.sizes[images])
        terms = method(student, teacher, MethodContext(objects=own))
        sum(terms.values()).backward()
        found[name] = {
            "terms": {key: value.detach() for key, value in terms.items()},
            "taps": [tensor.grad for tensor in leaves(student) if tensor.grad is not None],
            "weights": [parameter.grad for parameter in method.parameters()],
        }
    return found


def worker(rank: int, folder: str) -> None:
    torch.save(results(SHARES[rank]), f"{folder}/rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(worker, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_mean_over_processes_is_the_loss_of_one(ranks, name) -> None:
    alone, of_ranks = results(slice(0, 4))[name], [found[name] for found in ranks]
    for term, value in alone["terms"].items():
        mean = (of_ranks[0]["terms"][term] + of_ranks[1]["terms"][term]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-10, atol=0)
    # data-parallel training averages the gradients, so each process has its images' share of the mean
    for i, whole in enumerate(alone["taps"]):
        of_images = torch.cat([found["taps"][i] / 2 for found in of_ranks], 1 if len(whole) == 2 else 0)
        torch.testing.assert_close(of_images, whole, rtol=1e-9, atol=1e-12)
    for i, whole in enumerate(alone["weights"]):
        mean = (of_ranks[0]["weights"][i] + of_ranks[1]["weights"][i]) / 2
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-12)
