"""Weights of the teacher from a file."""

from __future__ import annotations

import argparse

import pytest
import torch

from mokd_det.distillation.teacher_checkpoint import load_teacher_weights
from mokd_det.errors import CheckpointError


@pytest.fixture
def path(tmp_path, fake_detector) -> str:
    torch.save({"model": fake_detector().state_dict()}, tmp_path / "teacher.pth")
    return str(tmp_path / "teacher.pth")


def test_every_tensor_is_loaded(path, fake_detector) -> None:
    teacher = fake_detector()
    load_teacher_weights(teacher, path)
    for key, tensor in torch.load(path, weights_only=True)["model"].items():
        assert torch.equal(teacher.state_dict()[key], tensor)


def test_another_variant_is_named_by_its_first_tensor_and_both_shapes(path, fake_detector) -> None:
    with pytest.raises(
        CheckpointError, match=r"'queries' has shape \(5, 8\) in the file and \(7, 8\) in the teacher"
    ):
        load_teacher_weights(fake_detector(queries=7), path)
    with pytest.raises(CheckpointError, match=r"no tensor 'levels.2.weight', of shape \(8, 8, 1, 1\)"):
        load_teacher_weights(fake_detector(strides=(8, 16, 32)), path)


def test_extra_tensors_are_tolerated_only_by_name(path, fake_detector) -> None:
    smaller = fake_detector(levels=2)
    before = smaller.state_dict()["box.weight"].clone()
    with pytest.raises(CheckpointError, match=r"'decoder.1.weight' of shape \(8, 8\) is unknown"):
        load_teacher_weights(smaller, path)
    assert torch.equal(smaller.state_dict()["box.weight"], before)
    load_teacher_weights(smaller, path, ignore_teacher_keys=["decoder.1.*"])
    assert not torch.equal(smaller.state_dict()["box.weight"], before)


def test_files_that_cannot_be_used(tmp_path, fake_detector) -> None:
    teacher = fake_detector()

    def refuse(name: str, message: str) -> None:
        with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
            load_teacher_weights(teacher, str(tmp_path / name))

    refuse("missing.pth", "does not exist")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    refuse("text.pth", "not a readable file")
    torch.save({"model": teacher.state_dict()}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:500])
    refuse("cut.pth", "not a readable file")
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "unsafe.pth")
    refuse("unsafe.pth", "Python objects are refused")
    torch.save(teacher.state_dict(), tmp_path / "bare.pth")
    refuse("bare.pth", r"no weights under 'model'; it holds the keys \['box.bias'")
    torch.save([1, 2], tmp_path / "list.pth")
    refuse("list.pth", "it holds a list")
    torch.save({"model": {**teacher.state_dict(), "box.bias": 3}}, tmp_path / "number.pth")
    refuse("number.pth", "'box.bias' is a int")
