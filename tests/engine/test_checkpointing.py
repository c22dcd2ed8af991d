from __future__ import annotations

import os
import time

import pytest
import torch
from torch import nn

from mokd_det.checkpoint import load_file, load_into
from mokd_det.engine import AtomicCheckpointer
from mokd_det.errors import CheckpointError
from tests.engine.helpers import make_trainer
from tests.engine.toy import Recorder, ToyDetector


class Weights(nn.Module):
    def __init__(self, value: float = 0.0, size: int = 3, more: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 2)
        nn.init.constant_(self.layer.weight, value)
        if more:
            self.more = nn.Linear(1, 1)


class RunsCode:
    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def first_weight(model: nn.Module) -> float:
    return float(model.layer.weight[0, 0])


def damage(path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_a_failed_save_keeps_the_last_checkpoint_and_says_so(tmp_path, monkeypatch):
    model = Weights(1.0)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    real_save = torch.save

    def full_disk(content, handle):
        handle.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(
        CheckpointError, match=r"model_0000002\.pth.*No space left.*earlier checkpoints are untouched"
    ):
        checkpointer.save("model_0000002")
    monkeypatch.setattr(torch, "save", real_save)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    other = Weights(2.0)
    AtomicCheckpointer(other, str(tmp_path)).resume()
    assert first_weight(other) == 1.0


def test_leftovers_of_killed_writers_are_swept_and_never_read(tmp_path):
    (tmp_path / ".model_0000009.pth.partial-123").write_bytes(b"half")
    model = Weights(1.0)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    assert checkpointer.resume() is None
    checkpointer.save("model_0000001")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]


def test_resume_falls_back_to_the_newest_readable_file(tmp_path, caplog):
    model = Weights()
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    for number in (1, 2, 3):
        nn.init.constant_(model.layer.weight, float(number))
        checkpointer.save(f"model_000000{number}", iteration=number)
        time.sleep(0.01)
    damage(tmp_path / "model_0000003.pth")
    (tmp_path / "student_final.pth").write_bytes((tmp_path / "model_0000001.pth").read_bytes())
    other = Weights()
    assert AtomicCheckpointer(other, str(tmp_path)).resume() == {"iteration": 2}
    assert first_weight(other) == 2.0
    assert "model_0000003.pth" in caplog.text


def test_resume_without_a_readable_file_is_an_error(tmp_path):
    checkpointer = AtomicCheckpointer(Weights(), str(tmp_path))
    checkpointer.save("model_0000001")
    damage(tmp_path / "model_0000001.pth", 0.0)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is readable"):
        checkpointer.resume()


def test_resume_survives_an_empty_tag(tmp_path):
    checkpointer = AtomicCheckpointer(Weights(1.0), str(tmp_path))
    checkpointer.save("model_0000001")
    (tmp_path / "last_checkpoint").write_text("")
    other = Weights(0.0)
    AtomicCheckpointer(other, str(tmp_path)).resume()
    assert first_weight(other) == 1.0


def test_resume_passes_over_weights_without_a_trainer_state(tmp_path, caplog):
    trainer = make_trainer()
    trainer.train(0, 1)
    checkpointer = AtomicCheckpointer(trainer.module, str(tmp_path), trainer=trainer)
    checkpointer.save("model_0000000", iteration=0)
    torch.save({"model": trainer.module.state_dict()}, tmp_path / "model_copied.pth")
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.resume() == {"iteration": 0}
    assert "model_copied.pth' cannot be resumed: it has no 'trainer'" in caplog.text


def test_the_file_holds_the_plain_student(tmp_path):
    model = Recorder()
    trainer = make_trainer(model=model, patterns={"all": ["loss_*"]})
    checkpointer = AtomicCheckpointer(model.student, str(tmp_path), method=model.method, trainer=trainer)
    checkpointer.save("model_0000000", iteration=0)
    content = load_file(tmp_path / "model_0000000.pth")
    assert list(content["model"]) == list(ToyDetector().state_dict())
    assert list(content["method"]) == ["weight"]
    assert {"iteration", "optimizer", "balancer", "run"} <= set(content["trainer"])
    load_into(ToyDetector(), tmp_path / "model_0000000.pth")

    other = Recorder()
    assert not torch.equal(other.method.weight, model.method.weight)
    again = make_trainer(model=other, patterns={"all": ["loss_*"]})
    AtomicCheckpointer(other.student, str(tmp_path), method=other.method, trainer=again).resume()
    assert torch.equal(other.method.weight, model.method.weight)
    assert torch.equal(other.student.backbone.weight, model.student.backbone.weight)


def test_resume_runs_no_code_that_is_in_a_file(tmp_path, caplog):
    checkpointer = AtomicCheckpointer(Weights(1.0), str(tmp_path))
    checkpointer.save("model_0000001")
    content = {"model": Weights().state_dict(), "extra": RunsCode(tmp_path / "owned")}
    torch.save(content, tmp_path / "model_0000002.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    other = Weights(0.0)
    AtomicCheckpointer(other, str(tmp_path)).resume()
    assert first_weight(other) == 1.0
    assert "could run code when loaded" in caplog.text
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        ({"size": 4}, {}, r"1 of another shape \(layer\.weight \[2, 4\] instead of \[2, 3\]\)"),
        ({}, {"more": True}, r"2 missing from the file \(more\.weight, more\.bias\)"),
        ({"more": True}, {}, r"2 unknown to the model \(more\.weight, more\.bias\)"),
    ],
)
def test_a_checkpoint_of_another_model_changes_nothing(stored, wanted, message, tmp_path, caplog):
    AtomicCheckpointer(Weights(5.0, **stored), str(tmp_path)).save("model_0000001")
    model = Weights(1.0, **wanted)
    with pytest.raises(CheckpointError, match=message) as caught:
        AtomicCheckpointer(model, str(tmp_path)).resume()
    assert "\n" not in str(caught.value)
    assert first_weight(model) == 1.0
    assert "does not fit Weights" in caplog.text


def test_a_named_file_is_loaded_as_asked(tmp_path):
    trainer = make_trainer()
    trainer.train(0, 2)
    checkpointer = AtomicCheckpointer(trainer.module, str(tmp_path), trainer=trainer)
    checkpointer.save("mine", note="kept")
    path = str(tmp_path / "mine.pth")

    other = make_trainer(init_seed=5)
    loader = AtomicCheckpointer(other.module, str(tmp_path), trainer=other)
    assert set(loader.load(path, checkpointables=[])) == {"trainer", "note"}
    assert torch.equal(other.module.backbone.weight, trainer.module.backbone.weight)
    assert not other.optimizer.state
    assert loader.load(path) == {"note": "kept"}
    assert other.optimizer.state
    assert loader.load("") == {}
    torch.save({"model": trainer.module.state_dict()}, path)
    with pytest.raises(CheckpointError, match="has no 'trainer'"):
        loader.load(path, checkpointables=["trainer"])


def test_an_optimiser_of_other_groups_is_named(tmp_path):
    first = make_trainer()
    first.train(0, 1)
    AtomicCheckpointer(first.module, str(tmp_path), trainer=first).save("model_0000000", iteration=0)
    second = make_trainer()
    parameters = list(second.module.parameters())
    second.optimizer = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:]}])
    with pytest.raises(CheckpointError, match=r"'trainer' of checkpoint .*model_0000000\.pth' does not fit"):
        AtomicCheckpointer(second.module, str(tmp_path), trainer=second).resume()
