"""What a method learns of batch and models besides the taps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
import torch
from torch import Tensor, nn

from mokd_det.classification import ClassificationBatch
from mokd_det.distillation import Distiller, MoKD, NoDistillation
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.taps import TapValue
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers.tap_point import TapPoint, TapSpec


class Classifier(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(12, width)
        self.taps = nn.ModuleDict({"pooled": TapPoint(TapSpec("vectors", (width,)))})
        self.head = nn.Linear(width, 3)

    def forward(self, batch: ClassificationBatch) -> Tensor | dict[str, Tensor]:
        logits = self.head(self.taps["pooled"](self.body(batch.images.flatten(1))))
        if not self.training:
            return logits
        return {"loss_cls": nn.functional.cross_entropy(logits, batch.targets)}


class Centres(Method):
    """Distance to the teacher's mean vector of the class, which a pass over the training set finds."""

    required_taps = ("pooled",)
    needs_preparation = True

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        self.seen = (student, teacher)

    def check(self, student: Mapping[str, TapSpec], teacher: Mapping[str, TapSpec]) -> None:
        self.specs = (student["pooled"], teacher["pooled"])

    def build_for(self, student: Mapping[str, TapSpec], teacher: Mapping[str, TapSpec]) -> None:
        self.projection = nn.Linear(student["pooled"].channels[0], teacher["pooled"].channels[0])
        self.register_buffer("centres", torch.zeros(3, teacher["pooled"].channels[0]))

    def prepare(self, batches: Iterable[tuple[dict[str, TapValue], MethodContext]]) -> None:
        sums, counts = torch.zeros_like(self.centres), torch.zeros(3)
        for taps, context in batches:
            sums.index_add_(0, context.labels, taps["pooled"])
            counts += torch.bincount(context.labels, minlength=3)
        self.centres.copy_(sums / counts[:, None])

    def compare_taps(
        self, student: Mapping[str, TapValue], teacher: Mapping[str, TapValue], context: MethodContext
    ) -> dict[str, Tensor]:
        distance = self.projection(student["pooled"]) - self.centres[context.labels]
        return {"centre": distance.square().mean() * (1 + context.epoch)}


def make_batch(labels: list[int], epoch: float = 0.0) -> ClassificationBatch:
    count = len(labels)
    generator = torch.Generator().manual_seed(count)
    return ClassificationBatch(
        images=torch.randn(count, 3, 2, 2, generator=generator),
        targets=torch.tensor(labels),
        labels=torch.tensor(labels),
        indices=torch.arange(count),
        names=[f"image {i}" for i in range(count)],
        epoch=epoch,
    )


def test_labels_epoch_and_preparation_reach_the_method() -> None:
    torch.manual_seed(0)
    student, teacher, method = Classifier(4), Classifier(6), Centres()
    distiller = Distiller(student, teacher, method, taps={"pooled": "pooled"})
    assert method.seen == (student, teacher)
    assert method.specs == (TapSpec("vectors", (4,)), TapSpec("vectors", (6,)))
    assert distiller.needs_preparation

    batches = [make_batch([0, 1, 2]), make_batch([2, 2, 1, 0])]
    distiller.prepare_method(batches)
    rows = torch.cat([teacher.body(batch.images.flatten(1)) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    for label in range(3):
        torch.testing.assert_close(method.centres[label], rows[labels == label].mean(0))
    assert "method.centres" in distiller.state_dict()

    now = distiller(make_batch([0, 1, 2]))
    later = distiller(make_batch([0, 1, 2], epoch=2.0))
    assert set(now) == {"loss_cls", "loss_distill_centre"}
    torch.testing.assert_close(later["loss_distill_centre"], 3 * now["loss_distill_centre"])


def test_a_row_method_serves_vectors() -> None:
    distiller = Distiller(Classifier(4), Classifier(6), MoKD(), taps={"pooled": "pooled"})
    losses = distiller(make_batch([0, 1, 2]))
    losses["loss_distill_pooled"].backward()
    assert distiller.student.body.weight.grad.abs().sum() > 0


def test_a_missing_tap_is_named() -> None:
    with pytest.raises(IncompatibleModelsError, match=r"Centres reads the tap 'pooled', .*it names 'x'"):
        Distiller(Classifier(4), Classifier(6), Centres(), taps={"x": "pooled"})


def test_a_batch_moves_as_a_whole() -> None:
    moved = make_batch([0, 1]).to("meta")
    assert moved.images.device.type == moved.targets.device.type == moved.indices.device.type == "meta"
    assert len(moved) == 2 and moved.negatives is None and moved.names == ["image 0", "image 1"]


def test_a_class_that_compares_nothing_is_refused_when_it_is_made() -> None:
    class Silent(Method):
        """Neither rows nor taps."""

    class Unprepared(NoDistillation):
        """Wants a pass over the training set that it does not define."""

        needs_preparation = True

    with pytest.raises(
        TypeError, match=r"Silent says nowhere.*define compare_pair\(pair\), compare\(pairs\), or"
    ):
        Silent()
    with pytest.raises(TypeError, match=r"Unprepared has needs_preparation=True.*prepare\(batches\)"):
        Unprepared()
