"""Files of every origin are read, and none of them runs code."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from yacs.config import CfgNode

from mokd_det.checkpoint import load_file
from mokd_det.errors import CheckpointError

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    found = load_file(path)["model"]
    assert list(found) == list(WEIGHTS)
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())
    return found


def test_containers_of_published_files_are_read(tmp_path):
    content = {
        "model": WEIGHTS,
        "args": argparse.Namespace(lr=1e-4, names=["a"]),
        "config": CfgNode({"TRAIN": {"EPOCHS": 300, "SIZES": [224, 384]}}),
        "epoch": 3,
    }
    torch.save(content, tmp_path / "x.pth")
    before = torch.serialization.get_safe_globals()
    weights_of(tmp_path / "x.pth")
    found = load_file(tmp_path / "x.pth")
    assert found["args"] == content["args"]
    assert dict(found["config"]["TRAIN"]) == {"EPOCHS": 300, "SIZES": [224, 384]}
    assert found["epoch"] == 3
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        OrderedDict(WEIGHTS),
        {"model": WEIGHTS},
        {"state_dict": WEIGHTS, "model": "resnet", "epoch": 1},
        {"model": {f"module.{key}": value for key, value in WEIGHTS.items()}},
    ],
    ids=["bare", "ordered", "model", "state_dict", "data parallel"],
)
def test_weights_are_found_wherever_they_are(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    weights_of(tmp_path / "x.pth")
    assert "state_dict" not in load_file(tmp_path / "x.pth")


def test_old_torch_files_and_safetensors(tmp_path):
    torch.save(
        {"model": WEIGHTS, "args": argparse.Namespace(lr=1)},
        tmp_path / "old.pth",
        _use_new_zipfile_serialization=False,
    )
    weights_of(tmp_path / "old.pth")
    safetensors.torch.save_file(WEIGHTS, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")["model"]
    assert set(found) == set(WEIGHTS)
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


def test_code_is_refused_and_not_run(tmp_path):
    trap = RunsCode(tmp_path / "owned")
    for name, content in (("a.pth", {"model": WEIGHTS, "args": trap}), ("b.pth", trap)):
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"{name}' holds a Python object \(\w+\.mkdir\).*refused"):
            load_file(tmp_path / name)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(trap))
    with pytest.raises(CheckpointError, match=r"c\.pth"):
        load_file(tmp_path / "c.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": WEIGHTS, "size": np.float64(3)}, "numpy.*scalar"),
        ({"model": WEIGHTS, "path": Path("x")}, "pathlib"),
    ],
)
def test_other_objects_are_named_with_the_way_out(content, name, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError,
        match=rf"Python object \({name}.*python tools/convert_checkpoint\.py FILE COPY --trust",
    ):
        load_file(tmp_path / "x.pth")


def write_truncated(path: Path, share: float, **options: Any) -> None:
    torch.save({"model": WEIGHTS}, path, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
def test_truncated_files_are_named(share, options, tmp_path):
    write_truncated(tmp_path / "cut.pth", share, **options)
    with pytest.raises(CheckpointError, match=r"cut\.pth' cannot be read: broken or not a checkpoint"):
        load_file(tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "does not exist"),
        ("empty.pth", b"", "is empty"),
        ("note.pth", b"these are not weights", "broken or not a checkpoint"),
        ("page.pth", b"<!DOCTYPE html><html>404</html>", "broken or not a checkpoint"),
        ("list.pth", pickle.dumps([1, 2], protocol=2), "cannot be read"),
        ("note.safetensors", b"these are not weights either", "no safetensors file"),
        ("cut.safetensors", safetensors.torch.save(WEIGHTS)[:-3], "no safetensors file"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_file(tmp_path / name, what="teacher checkpoint")
    assert str(caught.value).startswith(f"teacher checkpoint '{tmp_path / name}' ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "no dict of tensors"),
        ({"model": {}}, "no dict of tensors"),
        ({"model": [1]}, "entry 'model' is no tensor but of type list"),
        ({"model": {**WEIGHTS, "epoch": 3}}, "entry 'epoch' is no tensor but of type int"),
        ({"epoch": 3}, "entry 'epoch' is no tensor"),
        ({"model": {0: torch.ones(1)}}, "entry '0'"),
    ],
)
def test_files_without_weights_are_named(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        load_file(tmp_path / "x.pth")


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"model": WEIGHTS}, tmp_path / "x.pth")
    assert set(load_file("~/x.pth#model")["model"]) == set(WEIGHTS)


def test_a_directory_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a directory"):
        load_file(tmp_path)


AVERAGED = {key: value + 1.0 for key, value in WEIGHTS.items()}
SEVERAL = {
    "timm": ({"state_dict": WEIGHTS, "state_dict_ema": AVERAGED, "optimizer": {}}, "state_dict", "state_dict_ema"),
    "DeiT": ({"model": WEIGHTS, "model_ema": AVERAGED, "epoch": 3}, "model", "model_ema"),
    "wrapped": ({"model": WEIGHTS, "ema": {"module": AVERAGED, "updates": 7}}, "model", "ema"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_sets_of_weights_it_is_said_which_is_taken(kind, tmp_path, caplog):
    content, taken, other = SEVERAL[kind]
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with caplog.at_level("WARNING", logger="mokd_det"):
        weights_of(path)
    assert (
        f"x.pth': the weights under '{taken}' are taken; it has others, which '{path}#{other}' takes"
        in caplog.text
    )
    found = load_file(f"{path}#{other}")["model"]
    assert all(torch.equal(found[key], value) for key, value in AVERAGED.items())
    with pytest.raises(
        CheckpointError, match=rf"has no weights under 'best'; keys with weights: '{taken}', '{other}'"
    ):
        load_file(f"{path}#best")


def test_a_file_of_averaged_weights_alone_and_a_name_with_the_mark(tmp_path, caplog):
    path = tmp_path / "a#b.pth"
    torch.save({"ema": WEIGHTS, "epoch": 1}, path)
    with caplog.at_level("WARNING", logger="mokd_det"):
        weights_of(path)
    assert "the weights under 'ema' are taken" in caplog.text


def test_what_wrappers_put_into_names_is_gone(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    for number, prefix in enumerate(
        ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.")
    ):
        torch.save(
            {"model": {prefix + k: v for k, v in model.state_dict().items()}}, tmp_path / f"{number}.pth"
        )
        assert list(load_file(tmp_path / f"{number}.pth")["model"]) == list(model.state_dict())
    inner = {k.replace("1.", "1._orig_mod."): v for k, v in model.state_dict().items()}
    torch.save(inner, tmp_path / "inner.pth")
    assert list(load_file(tmp_path / "inner.pth")["model"]) == list(model.state_dict())
    # Versions of modules move with the names: BatchNorm's tells that the number of batches is there.
    wrapped = nn.Module()
    wrapped.net = model
    state = {"state_dict": wrapped.state_dict(), "pytorch-lightning_version": "2.4.0"}
    state["state_dict"]["metric.total"] = torch.ones(1)
    torch.save(state, tmp_path / "lightning.ckpt")
    found = load_file(tmp_path / "lightning.ckpt")["model"]
    assert list(found) == list(model.state_dict())
    assert found._metadata["0"] == {"version": 2}
    model.load_state_dict(found)
