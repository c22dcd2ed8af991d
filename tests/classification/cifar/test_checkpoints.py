"""Published CIFAR checkpoints load as they are; those of another network are refused by name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from mokd_det.checkpoint import load_into
from mokd_det.classification import ImageClassifier
from mokd_det.distillation import RKD, Distiller
from mokd_det.errors import CheckpointError
from tests.classification.cifar.golden import NETWORKS, fill, goldens


def published(name: str, path: Path, **extra: object) -> Path:
    """A file as the releases write it, with all that a training left in it."""
    network = fill(NETWORKS[name]())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    content = {"epoch": 240, "model": network.state_dict(), "optimizer": optimizer.state_dict(), **extra}
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "extra",
    [
        {"best_acc": torch.tensor(72.34)},  # RepDistiller, best epoch
        {
            "opt": argparse.Namespace(model="resnet20", lr_decay_epochs=[150, 180, 210])
        },  # the same, last epoch
        {"best_acc": 72.34},  # mdistiller
    ],
    ids=["best", "last", "mdistiller"],
)
def test_a_published_teacher(tmp_path: Path, extra: dict[str, object]) -> None:
    network = NETWORKS["resnet20"]()
    report = load_into(network, published("resnet20", tmp_path / "ckpt_epoch_240.pth", **extra))
    assert report.is_complete and not report.skipped
    with torch.no_grad():
        logits = network.double().eval()(torch.from_numpy(goldens()["input"]).double())
    expected = torch.from_numpy(goldens()["resnet20/logits"])
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-13


@pytest.mark.parametrize("name", ["wrn_40_1", "MobileNetV2", "ShuffleV2"])
def test_data_parallel_names(tmp_path: Path, name: str) -> None:
    weights = {f"module.{key}": value for key, value in fill(NETWORKS[name]()).state_dict().items()}
    torch.save({"model": weights}, tmp_path / "parallel.pth")
    assert load_into(NETWORKS[name](), tmp_path / "parallel.pth").is_complete


@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        ("resnet56", "resnet20", r"does not fit the model CifarResNet.*layer1\.3\."),
        ("resnet20", "wrn_40_1", r"does not fit the model WideResNet.*block1\.layer\.0"),
        ("resnet8x4", "ShuffleV1", r"does not fit the model CifarShuffleNetV1"),
    ],
)
def test_another_network(tmp_path: Path, stored: str, wanted: str, message: str) -> None:
    path = published(stored, tmp_path / "teacher.pth")
    network = NETWORKS[wanted]()
    before = [value.clone() for value in network.state_dict().values()]
    with pytest.raises(CheckpointError, match=message):
        load_into(network, path, what="teacher checkpoint")
    assert all(map(torch.equal, before, network.state_dict().values()))


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = published("resnet20", tmp_path / "teacher.pth")
    with pytest.raises(CheckpointError, match=r"fc\.weight.*\[100, 64\].*\[10, 64\]"):
        load_into(NETWORKS["resnet20"](num_classes=10), path)


def test_as_the_teacher_of_a_distiller(tmp_path: Path) -> None:
    path = published("wrn_40_1", tmp_path / "ckpt_epoch_240.pth", best_acc=torch.tensor(71.98))
    student, teacher = (
        ImageClassifier(NETWORKS[name](), num_classes=100) for name in ("resnet20", "wrn_40_1")
    )
    model = Distiller(student, teacher, RKD(), {"pooled": "pooled"}, teacher_checkpoint=str(path))
    assert model.teacher is not None and not model.teacher.training
    stored = fill(NETWORKS["wrn_40_1"]()).state_dict()
    # the classifier has the network's own names
    assert list(model.teacher.state_dict()) == list(stored)
    assert all(map(torch.equal, model.teacher.state_dict().values(), stored.values()))
    with pytest.raises(CheckpointError, match=r"teacher checkpoint '.*' does not fit"):
        Distiller(
            student,
            ImageClassifier(NETWORKS["resnet56"](), num_classes=100),
            RKD(),
            {"pooled": "pooled"},
            str(path),
        )
