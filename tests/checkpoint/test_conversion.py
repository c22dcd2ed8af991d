"""One command converts between layouts and formats; the predictions stay."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import timm
import torch

from mokd_det.checkpoint import export_student, identify, load_file, load_into, official_weights, write_file
from mokd_det.errors import CheckpointError
from mokd_det.tools import convert_checkpoint
from tests.checkpoint.published import NANO, detector, official_state, swin_state


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return convert_checkpoint


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_a_published_detector_becomes_a_student(tool, vidt_file, tmp_path, capsys):
    assert tool.main([str(vidt_file), str(tmp_path / "student.pth")]) == 0
    content = torch.load(tmp_path / "student.pth", weights_only=True)
    assert list(content) == ["model"]
    direct = detector()
    load_into(direct, vidt_file)
    assert same(content["model"], direct.state_dict())
    printed = capsys.readouterr().out
    assert "vidt_nano.pth: ViDT-nano (91 classes, 100 queries, 6 decoder layers), 485 tensors" in printed
    assert "student.pth: ViDT-nano (80 classes, 100 queries, 6 decoder layers), 443 tensors" in printed
    assert os.listdir(tmp_path) == ["student.pth"]


def test_rows_can_be_kept_and_the_way_back_is_exact(tool, vidt_file, tmp_path):
    ours, back = str(tmp_path / "91.pth"), str(tmp_path / "back.pth")
    assert tool.main([str(vidt_file), ours, "--keep-rows", "all"]) == 0
    assert load_file(ours)["model"]["class_embed.0.weight"].shape == (91, 256)
    load_into(detector(num_classes=91), ours)
    assert tool.main([ours, back, "--to", "official"]) == 0
    assert same(load_file(back)["model"], official_state(NANO))


def test_80_classes_get_the_published_rows_back(tool, tmp_path):
    model = detector()
    write_file(model.state_dict(), tmp_path / "ours.pth")
    assert tool.main([str(tmp_path / "ours.pth"), str(tmp_path / "official.pth"), "--to", "official"]) == 0
    official = load_file(tmp_path / "official.pth")
    assert identify(official).kind == "vidt"
    assert {key: value.shape for key, value in official["model"].items()} == {
        key: value.shape for key, value in official_state(NANO).items()
    }
    for unused in (0, 12, 83):
        assert official["model"]["class_embed.2.bias"][unused] == -100
        assert not official["model"]["class_embed.2.weight"][unused].any()
    other = detector()
    load_into(other, tmp_path / "official.pth")
    assert same(other.state_dict(), model.state_dict())
    kept = official_weights({"model": model.state_dict()}, "checkpoint 'x.pth'", keep_rows="all")
    assert kept["class_embed.0.weight"].shape == (80, 256)


def test_safetensors(tool, vidt_file, tmp_path):
    assert tool.main([str(vidt_file), str(tmp_path / "x.safetensors"), "--to", "safetensors"]) == 0
    one, other = detector(), detector()
    load_into(one, tmp_path / "x.safetensors")
    load_into(other, vidt_file)
    assert same(one.state_dict(), other.state_dict())


def test_the_student_of_a_training_is_exported(tool, tmp_path):
    model = detector(num_classes=10)
    content = {
        "model": model.state_dict(),
        "method": {"weight": torch.zeros(2)},
        "trainer": {"iteration": 9, "optimizer": {"state": {}}},
        "iteration": 9,
    }
    exported = export_student(content)
    assert list(exported) == ["model"]
    assert same(exported["model"], model.state_dict())
    torch.save(content, tmp_path / "model_final.pth")
    assert tool.main([str(tmp_path / "model_final.pth"), str(tmp_path / "student.pth")]) == 0
    other = detector(num_classes=10)
    load_into(other, tmp_path / "student.pth")
    assert same(other.state_dict(), model.state_dict())


def test_timms_swin_in_microsofts_names(tool, tmp_path, capsys):
    network = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, embed_dim=12)
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    assert tool.main([str(tmp_path / "timm.pth"), str(tmp_path / "official.pth"), "--to", "official"]) == 0
    wanted = swin_state(network, layout="microsoft")
    constants = {key for key in wanted if key.endswith(("relative_position_index", "attn_mask"))}
    assert same(
        load_file(tmp_path / "official.pth")["model"],
        {key: value for key, value in wanted.items() if key not in constants},
    )
    assert tool.main([str(tmp_path / "timm.pth"), str(tmp_path / "student.pth")]) == 2
    assert "no detector; train.init_checkpoint takes it as it is" in capsys.readouterr().err


def test_mistakes_end_with_one_line_and_status_2(tool, vidt_file, tmp_path, capsys):
    def refuse(arguments: list[str], message: str) -> None:
        assert tool.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1

    before = vidt_file.read_bytes()
    refuse([str(tmp_path / "none.pth"), str(tmp_path / "x.pth")], "none.pth' does not exist")
    refuse([str(vidt_file), str(vidt_file)], "is the input")
    refuse([str(vidt_file), str(tmp_path / "x.pth"), "--to", "safetensors"], "must end with .safetensors")
    refuse([str(vidt_file), str(tmp_path / "x.safetensors")], "must not end with .safetensors")
    refuse([str(vidt_file), str(tmp_path / "no" / "x.pth")], "could not be written")
    assert vidt_file.read_bytes() == before
    assert os.listdir(tmp_path) == []


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    write_file({"a": torch.ones(1)}, path)

    def full_disk(content, handle):
        handle.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match=r"x\.pth' could not be written \(.*No space left"):
        write_file({"a": torch.zeros(1)}, path)
    assert torch.equal(load_file(path)["model"]["a"], torch.ones(1))
    assert os.listdir(tmp_path) == ["x.pth"]


def test_models_without_a_published_form_are_named():
    state = detector().state_dict()
    state["transformer.reference_grid"] = torch.zeros(100, 2)
    with pytest.raises(
        CheckpointError, match=r"'transformer\.reference_grid' belongs to a part that the published"
    ):
        official_weights({"model": state}, "checkpoint 'x.pth'")
    with pytest.raises(
        CheckpointError, match="has no official layout: this file looks like no model known here"
    ):
        official_weights({"model": {"weight": torch.zeros(1)}}, "checkpoint 'x.pth'")


def test_help_shows_an_example(tool, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "python -m mokd_det convert vidt_tiny_150.pth vidt_tiny.pth" in printed
    assert "--keep-rows" in printed and "train.init_checkpoint=FILE" in printed
