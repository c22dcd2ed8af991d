from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mokd_det.balancing import Amortized, Balancer, ClosedForm, FixedWeights
from mokd_det.engine import AtomicCheckpointer, MoKDTrainer
from mokd_det.engine.hooks import Evaluation
from mokd_det.errors import ConfigError, InvalidLossError
from tests.engine.helpers import differences, make_trainer, run_one_step, snapshot
from tests.engine.toy import Recorder, ToyDetector, ToyLoader


class Probe(Balancer):
    """Calls the forward again at unchanged parameters and keeps the values."""

    def backward(self, forwards, context):
        losses = forwards[0]()
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.no_grad():
            self.again = forwards[0]()
        self.buffers_kept = not differences(buffers, dict(self.model.named_buffers()))
        self.values = losses.detach()
        (losses.sum() * context.loss_scale).backward()
        return {}


def test_fixed_weights_equal_a_hand_written_loop():
    torch.manual_seed(0)
    model = ToyDetector(dropout=0.0)
    trainer = make_trainer(model=ToyDetector(dropout=0.0), clip_grad={"max_norm": 0.5, "norm_type": 2.0})
    trainer.module.load_state_dict(model.state_dict())
    trainer.train(0, 4)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = iter(ToyLoader())
    model.train()
    for _ in range(4):
        optimizer.zero_grad()
        sum(model(next(batches)).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.module.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_repeated_forward_has_the_same_masks_and_touches_no_buffer():
    probe = Probe()
    trainer = make_trainer(probe)
    probe.model = trainer.module
    run_one_step(trainer, 0)
    assert torch.equal(probe.values, probe.again)
    assert probe.buffers_kept
    assert trainer.module.norm.num_batches_tracked == 1


def test_masks_change_with_iteration_micro_batch_and_seed_and_repeat_with_them():
    class SameBatch:
        def __iter__(self):
            batch = next(iter(ToyLoader()))
            while True:
                yield batch

    def values(seed: int, iteration: int, accumulate: int = 1) -> list[float]:
        class Values(Balancer):
            def backward(self, forwards, context):
                objectives = torch.stack([forward() for forward in forwards])
                objectives.sum().backward()
                self.seen = objectives.sum(1).tolist()
                return {}

        balancer = Values()
        run_one_step(make_trainer(balancer, loader=SameBatch(), seed=seed, accumulate=accumulate), iteration)
        return balancer.seen

    assert values(0, 0) == values(0, 0)
    assert values(0, 0) != values(0, 1)
    assert values(0, 0) != values(1, 0)
    first, second = values(0, 0, accumulate=2)
    assert first != second


def test_outer_generators_are_left_alone():
    trainer = make_trainer(Amortized())
    state = torch.get_rng_state()
    run_one_step(trainer)
    assert torch.equal(state, torch.get_rng_state())


def test_accumulation_equals_one_big_batch():
    def trained(total_batch_size: int, accumulate: int) -> nn.Module:
        torch.manual_seed(0)
        model = ToyDetector(dropout=0.0, norm=False)
        loader = ToyLoader(total_batch_size)
        trainer = make_trainer(Amortized(), model=model, loader=loader, accumulate=accumulate)
        trainer.train(0, 4)
        return trainer.module

    for name, value in trained(8, 1).state_dict().items():
        torch.testing.assert_close(trained(4, 2).state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_optional_methods_are_called_once_and_in_order():
    torch.manual_seed(0)
    model = Recorder()
    patterns = {"distill": ["loss_distill_*"], "task": ["loss_ce", "loss_bbox", "loss_extra"]}
    trainer = make_trainer(Amortized(), model=model, patterns=patterns, accumulate=2)
    run_one_step(trainer)
    kinds = [call for index, call in enumerate(model.calls) if index == 0 or call != model.calls[index - 1]]
    assert model.calls.count("prepare") == 2, "the teacher runs once per micro-batch"
    assert model.calls.count("forward") == 2
    assert model.calls.count("after_step") == 1
    assert kinds[0] == "prepare"
    assert model.calls.index("after_step") > len(model.calls) - 1 - model.calls[::-1].index("forward")
    assert model.calls[-1] == "repeat", "the balancer looks at the losses after the step"


@pytest.mark.parametrize("balancer", [Amortized, ClosedForm, FixedWeights])
@pytest.mark.parametrize("amp", [None, {"enabled": True, "dtype": "float16"}])
def test_resuming_in_process_is_bit_exact(balancer, amp, tmp_path):
    whole = make_trainer(balancer(), amp=amp)
    whole.train(0, 7)

    first = make_trainer(balancer(), amp=amp)
    first.train(0, 3)
    first.iter = 2
    AtomicCheckpointer(first.module, str(tmp_path), trainer=first).save("model_0000002", iteration=2)

    second = make_trainer(balancer(), amp=amp, init_seed=99)
    torch.manual_seed(1234)
    assert AtomicCheckpointer(second.module, str(tmp_path), trainer=second).resume() == {"iteration": 2}
    second.train(second.iter + 1, 7)
    assert differences(snapshot(whole), snapshot(second)) == []


def test_resuming_with_other_settings_says_so(tmp_path, caplog):
    first = make_trainer(Amortized(), seed=1)
    first.train(0, 2)
    state = first.state_dict()
    second = make_trainer(ClosedForm(), seed=2)
    fresh = second.balancer.state_dict()
    second.load_state_dict(state)
    assert "balancer starts afresh" in caplog.text
    assert "seed was 1 and is now 2" in caplog.text
    assert differences(fresh, second.balancer.state_dict()) == []


def test_a_skipped_step_changes_neither_parameters_nor_balancer():
    torch.manual_seed(0)
    model = ToyDetector(norm=False)
    stepped: list[int] = []
    trainer = make_trainer(Amortized(), model=model, amp={"enabled": True, "dtype": "float16"})
    trainer.task.after_step = lambda: stepped.append(trainer.iter)

    def set_scale(scale: float) -> None:
        scaler = trainer.precision.scaler
        trainer.load_state_dict(
            {**trainer.state_dict(), "grad_scaler": {**scaler.state_dict(), "scale": scale}}
        )

    set_scale(128.0)
    for iteration in range(2):
        run_one_step(trainer, iteration)
    set_scale(2.0**40)  # the loss is finite, but its gradient times this in float16 is not
    before = snapshot(trainer)
    storage = run_one_step(trainer, 2)
    after = snapshot(trainer)
    assert before.pop("grad_scaler")["scale"] == 2 * after.pop("grad_scaler")["scale"]
    assert differences(before, after) == []
    assert stepped == [0, 1]
    assert math.isfinite(storage.latest()["loss_bbox"][0])
    set_scale(128.0)
    run_one_step(trainer, 3)
    assert stepped == [0, 1, 3]
    assert differences(after["model"], snapshot(trainer)["model"])


def test_the_scale_is_read_once_a_step(monkeypatch):
    """On a GPU each reading is a wait; what is logged is the scale that the step had."""
    trainer = make_trainer(Amortized(), amp={"enabled": True, "dtype": "float16"}, lr=1e-3)
    asked, get_scale = [], trainer.precision.scaler.get_scale
    monkeypatch.setattr(trainer.precision.scaler, "get_scale", lambda: asked.append(None) or get_scale())
    for iteration, readings in enumerate((2, 1, 1)):
        scale = get_scale()
        storage = run_one_step(trainer, iteration)
        assert len(asked) == readings and storage.latest()["grad_scale"][0] == scale
        asked.clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reaches_the_model_and_losses_stay_float32(dtype):
    seen = []
    torch.manual_seed(0)
    model = ToyDetector()
    model.heads["ce"].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    amp = {"enabled": True, "dtype": str(dtype).removeprefix("torch.")}
    trainer = make_trainer(Amortized(), model=model, amp=amp, lr=1e-3)
    losses = [run_one_step(trainer, iteration).latest()["total_loss"][0] for iteration in range(4)]
    assert set(seen) == {dtype}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    reference = make_trainer(Amortized(), lr=1e-3)
    expected = [run_one_step(reference, iteration).latest()["total_loss"][0] for iteration in range(4)]
    # The GradScaler skips some of the first steps, hence the loose tolerance after the first.
    assert losses[0] == pytest.approx(expected[0], rel=5e-3)
    assert losses == pytest.approx(expected, rel=3e-2)
    assert losses != expected


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1.0])
def test_a_bad_loss_stops_before_anything_is_stepped(factor):
    loader = ToyLoader(poison={9: {"loss_bbox": factor * 1e4}})
    trainer = make_trainer(Amortized(), loader=loader)
    for iteration in range(2):
        run_one_step(trainer, iteration)
    before = snapshot(trainer)
    with pytest.raises(InvalidLossError) as caught:
        run_one_step(trainer, 2)
    message = str(caught.value)
    assert "loss 'loss_bbox'" in message
    assert "iteration 2" in message
    assert "id 9 'toy_9.png'" in message
    assert "id 7" not in message, "only the images of this micro-batch"
    after = snapshot(trainer)
    # BatchNorm has seen the batch in the forward; nothing else may have changed.
    assert all("norm.running" in path or "num_batches" in path for path in differences(before, after))


def test_a_bad_loss_names_the_images_of_its_micro_batch():
    loader = ToyLoader(poison={2: {"loss_ce": math.nan, "loss_extra": math.nan}})
    trainer = make_trainer(loader=loader, accumulate=2)
    with pytest.raises(
        InvalidLossError, match=r"loss_ce.* \(also loss_extra\) at iteration 0; images: id 0 .* id 3 "
    ):
        run_one_step(trainer, 0)


def test_negative_losses_are_fine_without_a_logarithm():
    trainer = make_trainer(FixedWeights(), loader=ToyLoader(poison={0: {"loss_bbox": -100.0}}))
    storage = run_one_step(trainer)
    assert storage.latest()["loss_bbox"][0] < 0


def test_scalars_of_a_step():
    trainer = make_trainer(Amortized(), clip_grad={"max_norm": 0.1, "norm_type": 2.0})
    latest = {name: value for name, (value, _) in run_one_step(trainer).latest().items()}
    losses = [latest[name] for name in ("loss_ce", "loss_bbox", "loss_extra")]
    assert latest["total_loss"] == pytest.approx(sum(losses))
    assert latest["pi/cls"] + latest["pi/box"] == pytest.approx(1.0)
    assert latest["grad_norm"] > 0.1, "the norm before clipping"
    for part in ("data", "teacher", "student", "balance"):
        assert latest[f"{part}_time"] >= 0.0
    assert latest["student_time"] > 0.0


def test_losses_are_means_over_micro_batches():
    torch.manual_seed(0)
    model = ToyDetector(dropout=0.0, norm=False)
    trainer = make_trainer(model=model, accumulate=2)
    batches = iter(ToyLoader())
    with torch.no_grad():
        expected = sum(model(next(batches))["loss_ce"].item() for _ in range(2)) / 2
    assert run_one_step(trainer).latest()["loss_ce"][0] == pytest.approx(expected, rel=1e-6)


def test_a_loader_that_ends_is_named():
    trainer = make_trainer(loader=[next(iter(ToyLoader()))])
    with pytest.raises(ConfigError, match=r"ended at iteration 1; dataloader\.train must be endless"):
        trainer.train(0, 3)


def test_a_model_left_in_evaluation_mode_is_refused():
    trainer = make_trainer()
    trainer.module.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        run_one_step(trainer)


def test_a_single_tensor_is_a_loss():
    class OneLoss(ToyDetector):
        def forward(self, batched_inputs):
            return sum(super().forward(batched_inputs).values())

    torch.manual_seed(0)
    trainer = make_trainer(model=OneLoss(), patterns={"all": ["loss"]})
    assert run_one_step(trainer).latest()["loss"][0] > 0


def test_a_loss_that_is_no_scalar_is_named():
    class Vector(ToyDetector):
        def forward(self, batched_inputs):
            return {**super().forward(batched_inputs), "loss_extra": torch.ones(2)}

    with pytest.raises(TypeError, match=r"'loss_extra' has shape \(2,\)"):
        run_one_step(make_trainer(model=Vector()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp": {"dtype": "float8"}}, "train.amp.dtype is 'float8'"),
        ({"accumulate": 0}, "train.accumulate is 0"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(**options)


def test_hooks_do_not_take_a_failed_training_for_a_finished_one():
    evaluated = []
    trainer = make_trainer(loader=ToyLoader(poison={8: {"loss_ce": math.nan}}))
    trainer.register_hooks([Evaluation(0, lambda: evaluated.append(trainer.iter) or {})])
    with pytest.raises(InvalidLossError):
        trainer.train(0, 3)
    assert not trainer.completed
    assert evaluated == []


def test_models_that_log_from_their_forward_log_once():
    from detectron2.utils.events import get_event_storage

    class Logging(ToyDetector):
        def forward(self, batched_inputs):
            get_event_storage().put_scalar("seen", len(batched_inputs))
            return super().forward(batched_inputs)

    torch.manual_seed(0)
    storage = run_one_step(make_trainer(Amortized(), model=Logging()))
    assert len(storage.history("seen").values()) == 1


def test_state_is_plain():
    def kinds(value) -> set[type]:
        if isinstance(value, dict):
            return {kind for item in value.values() for kind in kinds(item)}
        if isinstance(value, (list, tuple)):
            return {kind for item in value for kind in kinds(item)}
        return {type(value)}

    trainer: MoKDTrainer = make_trainer(Amortized(), amp={"enabled": True, "dtype": "float16"})
    trainer.train(0, 1)
    assert kinds(trainer.state_dict()) <= {int, float, bool, str, type(None), torch.Tensor}
