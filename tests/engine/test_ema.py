"""The moving average of the student's weights."""

from __future__ import annotations

import pytest
import torch
from detectron2.engine.train_loop import HookBase

from mokd_det.checkpoint import load_file
from mokd_det.config import TrainSettings
from mokd_det.engine import AtomicCheckpointer
from mokd_det.engine.ema import StudentEma
from mokd_det.errors import CheckpointError, ConfigError
from tests.engine.helpers import differences, make_trainer, snapshot


def averaged_run(ema_decay: float, iterations: int, warmup: bool = False):
    """A short training with its average, and the student's state after each step."""
    trainer = make_trainer()
    ema = StudentEma(trainer.module, ema_decay, warmup)
    states = [snapshot(trainer)["model"]]

    class Watch(HookBase):
        def after_step(self) -> None:
            states.append(snapshot(trainer)["model"])

    trainer.register_hooks([ema, Watch()])
    trainer.train(0, iterations)
    return trainer, ema, states


def test_it_is_the_moving_average_from_the_initial_weights() -> None:
    _, ema, states = averaged_run(0.75, 4)
    wanted = {name: value.clone() for name, value in states[0].items()}
    for state in states[1:]:
        for name, value in state.items():
            wanted[name] = 0.75 * wanted[name] + 0.25 * value if value.is_floating_point() else value
    found = ema.model.state_dict()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    assert differences(dict(found), states[-1])


def test_a_warm_up_forgets_the_start_sooner() -> None:
    _, slow, states = averaged_run(0.9999, 4)
    _, fast, _ = averaged_run(0.9999, 4, warmup=True)
    last, first = states[-1]["backbone.weight"], states[0]["backbone.weight"]
    far, near = ((model.model.state_dict()["backbone.weight"] - last).norm() for model in (slow, fast))
    assert near < 0.5 * far and far == pytest.approx(float((first - last).norm()), rel=1e-2)


def test_restart_takes_the_students_weights() -> None:
    trainer, ema, _ = averaged_run(0.9, 2)
    ema.restart()
    assert differences(dict(ema.model.state_dict()), dict(trainer.module.state_dict())) == []


def test_a_checkpoint_without_the_average_is_no_start(tmp_path) -> None:
    trainer = make_trainer()
    trainer.train(0, 1)
    AtomicCheckpointer(trainer.module, str(tmp_path), trainer=trainer).save("model_0000000", iteration=0)
    ema = StudentEma(trainer.module, 0.9)
    checkpointer = AtomicCheckpointer(trainer.module, str(tmp_path), trainer=trainer, ema=ema.model)
    with pytest.raises(CheckpointError, match="cannot be resumed: it has no 'ema'"):
        checkpointer.resume()
    checkpointer.save("model_0000001", iteration=1)
    content = load_file(tmp_path / "model_0000001.pth")
    assert list(content["ema"]) == list(content["model"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"decay": 1.0}, r"train\.ema\.decay is 1\.0; it must be from 0 to below 1"),
        ({"decay": "slow"}, r"train\.ema\.decay is 'slow'"),
        ({"warmup": "late"}, r"train\.ema\.warmup is 'late'; it must be of type bool"),
        ({"decays": 0.9}, r"'train\.ema\.decays'; did you mean 'train\.ema\.decay'"),
    ],
)
def test_wrong_settings_are_named(section, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings.from_config({"max_iter": 1, "ema": section})


def test_it_is_off_by_default() -> None:
    assert TrainSettings.from_config({"max_iter": 1}).ema is None
    assert TrainSettings.from_config({"max_iter": 1, "ema": {}}).ema.decay == 0.99996
