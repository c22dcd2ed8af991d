"""NaN and infinity, wherever they come from: named, nothing stepped, the batch kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import nn

from mokd_det.balancing import Amortized
from mokd_det.checkpoint import load_file
from mokd_det.classification import ClassificationBatch
from mokd_det.contract import PreparedBatch
from mokd_det.distillation import Distiller
from mokd_det.distillation.methods.pkt import PKT
from mokd_det.errors import CheckpointError, InvalidLossError, InvalidNumberError
from mokd_det.guard.batch_numbers import bad_positions, number_sums
from mokd_det.guard.plain_batch import from_plain, to_plain
from mokd_det.guard.policy import NonFinitePolicy, kept_file
from mokd_det.layers.tap_point import FeatureMap
from mokd_det.tools import replay_batch as replay_batch_tool
from tests.engine.helpers import differences, make_trainer, run_one_step, snapshot
from tests.engine.test_train_net import ROOT, metrics, run_here
from tests.engine.toy import ToyDetector, ToyLoader, toy_item
from tests.forks import launch
from tests.reliability.toys import BadForward, BadGradient, Blind, PixelSum, Poisoned


def distiller(student: nn.Module) -> Distiller:
    torch.manual_seed(0)
    vectors = {"kind": "vectors", "channels": 8}
    taps = {"pooled": {"student": {"path": "backbone", **vectors}, "teacher": {"path": "body", **vectors}}}
    return Distiller(student, PixelSum(), PKT(), taps=taps)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_image_is_named_though_no_loss_shows_it(value):
    trainer = make_trainer(model=Blind(dropout=0.0), loader=Poisoned(images={2: value}))
    before = snapshot(trainer)
    with pytest.raises(InvalidNumberError) as caught:
        run_one_step(trainer)
    assert str(caught.value) == (
        "an input image holds numbers that are NaN or infinite, at iteration 0; images: id 2 'toy_2.png'. "
        "Nothing was stepped: parameters and optimiser are those of the iteration before."
    )
    after = {name: value for name, value in snapshot(trainer).items() if name != "model"}
    assert differences({name: value for name, value in before.items() if name != "model"}, after) == []
    for name, parameter in trainer.module.named_parameters():
        assert torch.equal(parameter, before["model"][name])


def test_a_tap_of_the_teacher_is_named_with_its_images():
    model = distiller(Blind(dropout=0.0))
    patterns = {"task": ["loss_ce", "loss_bbox", "loss_extra"], "distill": ["loss_distill_*"]}
    loader = ToyLoader()
    trainer = make_trainer(model=model, loader=loader, patterns=patterns)
    run_one_step(trainer)
    with torch.no_grad():
        model.teacher.body.bias[3] = math.nan
    with pytest.raises(
        InvalidNumberError, match=r"^the teacher's tap 'pooled' holds .* at iteration 1; images: id 4 "
    ):
        run_one_step(trainer, 1)


def test_the_gradient_of_a_group_is_named():
    trainer = make_trainer(model=BadGradient(), loader=ToyLoader())
    trainer.train(0, 1)
    before = snapshot(trainer)
    with pytest.raises(InvalidNumberError) as caught:
        run_one_step(trainer, 1)
    assert str(caught.value).startswith(
        "the gradient of parameter group 'heads' is NaN or infinite in 1 of its 6 tensors, the first is "
        "'heads.extra.weight', at iteration 1, while every loss is finite; images: id 4 'toy_4.png', id 5 "
    )
    trained = set(dict(trainer.module.named_parameters()))
    changed = [path for path in differences(before, snapshot(trainer)) if path.split(".", 2)[-1] in trained]
    assert changed == []


def test_gradients_may_be_left_unchecked():
    policy = NonFinitePolicy(check_gradients=False)
    trainer = make_trainer(model=BadGradient(), loader=ToyLoader(), non_finite=policy)
    run_one_step(trainer, 0)
    run_one_step(trainer, 1)
    assert trainer.module.heads["extra"].weight.isnan().all()


@pytest.mark.parametrize("clip", [None, {"max_norm": 1.0}])
def test_clipping_does_not_hide_the_name(clip):
    trainer = make_trainer(model=BadGradient(), loader=ToyLoader(), clip_grad=clip)
    trainer.train(0, 1)
    with pytest.raises(InvalidNumberError, match="group 'heads' is NaN or infinite in 1 of its 6"):
        run_one_step(trainer, 1)


def test_a_forward_that_fails_over_such_numbers_is_explained():
    trainer = make_trainer(model=BadForward(limit=0.0, raises=True))
    with pytest.raises(
        InvalidLossError, match=r"the forward failed at iteration 0 \(Predicted boxes .*id 0 'toy_0"
    ):
        run_one_step(trainer)
    trainer = make_trainer(model=BadForward(limit=1e9, raises=True), loader=Poisoned(images={3: math.nan}))
    with pytest.raises(
        InvalidNumberError, match=r"an input image holds .*images: id 3 'toy_3\.png'\. The forward"
    ):
        run_one_step(trainer)


def test_bugs_keep_their_traceback():
    model = ToyDetector()
    model.features = lambda inputs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run_one_step(make_trainer(model=model))


def skipping(tmp_path: Path, max_skips: int = 10, **options: Any) -> NonFinitePolicy:
    return NonFinitePolicy("skip", max_skips=max_skips, directory=str(tmp_path), **options)


@pytest.mark.parametrize("amp", [None, {"enabled": True, "dtype": "float16"}], ids=["float32", "float16"])
def test_a_step_left_out_leaves_no_mark(amp, tmp_path, caplog):
    loader = ToyLoader(poison={5: {"loss_ce": math.nan}})
    trainer = make_trainer(Amortized(), loader=loader, non_finite=skipping(tmp_path), amp=amp)
    run_one_step(trainer, 0)
    before = snapshot(trainer)
    storage = run_one_step(trainer, 1)
    after = snapshot(trainer)
    assert differences(before, after) == [".skipped_steps"] and after["skipped_steps"] == 1
    assert set(storage.latest()) == {"skipped_steps"}
    assert "Step left out (1 of 10): loss 'loss_ce' is nan at iteration 1" in caplog.text
    run_one_step(trainer, 2)
    assert differences(after["model"], snapshot(trainer)["model"])
    assert kept_file(str(tmp_path), 1, 0).exists()


def test_an_image_left_out_does_not_reach_the_running_statistics(tmp_path):
    trainer = make_trainer(loader=Poisoned(images={1: math.inf}), non_finite=skipping(tmp_path))
    trainer.train(0, 3)
    assert trainer.guard.skipped_steps == 1
    assert all(value.isfinite().all() for value in trainer.module.state_dict().values())


def test_too_many_steps_end_the_run_and_a_resume_remembers_them(tmp_path):
    poison = {index: {"loss_ce": math.inf} for index in (1, 5, 9)}
    trainer = make_trainer(
        loader=ToyLoader(poison=poison), non_finite=skipping(tmp_path, max_skips=2, max_kept=1)
    )
    with pytest.raises(
        InvalidLossError, match=r"at iteration 2.* 2 steps were left out before \(train\.non_finite"
    ):
        trainer.train(0, 6)
    assert [file.name for file in tmp_path.iterdir()] == ["iteration_0000000_rank0.pth"]
    other = make_trainer(loader=ToyLoader(poison=poison), non_finite=skipping(tmp_path, max_skips=2))
    other.load_state_dict(trainer.state_dict())
    assert other.guard.skipped_steps == 2


def test_negative_losses_are_never_left_out(tmp_path):
    loader = ToyLoader(poison={1: {"loss_ce": -1e6}})
    trainer = make_trainer(Amortized(), loader=loader, non_finite=skipping(tmp_path))
    with pytest.raises(InvalidLossError, match="losses must not be negative"):
        run_one_step(trainer)


def test_what_cannot_be_kept_does_not_hide_the_error(tmp_path):
    class Odd(ToyLoader):
        def __iter__(self):
            for items in super().__iter__():
                yield [{**item, "odd": object()} for item in items]

    loader = Odd(poison={1: {"loss_ce": math.nan}})
    trainer = make_trainer(loader=loader, non_finite=NonFinitePolicy(directory=str(tmp_path / "kept")))
    with pytest.raises(
        InvalidLossError, match=r"'loss_ce' is nan.*could not be kept \(a batch with an object of type"
    ):
        run_one_step(trainer)
    assert not (tmp_path / "kept").exists()


def test_sums_that_overflow_are_no_infinities():
    big = {"image": torch.full((3, 4, 4), 3e38), "image_id": 1}
    assert number_sums([big]) == {"an input image": 0.0}
    assert number_sums([{"image": torch.zeros(3, 2, 2, dtype=torch.uint8)}]) == {"an input image": 0.0}


def test_positions_in_every_kind_of_tap():
    good = torch.zeros(3, 5, 4)
    bad = good.clone()
    bad[1, 2, 3] = math.nan
    maps = [FeatureMap(torch.zeros(3, 2, 4, 4), None, 8), FeatureMap(bad[:, :, None], None, 16)]
    stack = torch.stack([good, bad])
    inputs = [{"image": torch.zeros(3, 2, 2)} for _ in range(3)]
    batch = PreparedBatch(inputs, {"good": good, "maps": maps, "stack": stack, "vectors": bad[:, 2]})
    sums = number_sums(batch)
    assert [name for name, value in sums.items() if not math.isfinite(value)] == [
        f"the teacher's tap '{name}'" for name in ("maps", "stack", "vectors")
    ]
    for name in ("maps", "stack", "vectors"):
        assert bad_positions(batch, f"the teacher's tap '{name}'") == [1]


def test_batches_survive_the_file(tmp_path):
    instances = Instances((6, 5), gt_boxes=Boxes(torch.ones(1, 4)), gt_classes=torch.tensor([3]))
    instances.gt_masks = PolygonMasks([[torch.arange(6.0).double().numpy()]])
    masks = Instances((6, 5), gt_masks=BitMasks(torch.ones(1, 6, 5, dtype=torch.bool)))
    numbers = torch.tensor([0, 1])
    images = ClassificationBatch(torch.ones(2, 3, 4, 4), numbers, numbers, numbers + 7, ["a", "b"], 0.5)
    batch = [{**toy_item(1), "instances": instances, "other": (1, None, masks)}, images]
    torch.save({"model": {"weight": torch.ones(1)}, "batches": to_plain(batch)}, tmp_path / "batch.pth")
    first, second = from_plain(load_file(tmp_path / "batch.pth")["batches"])
    assert torch.equal(first["image"], batch[0]["image"]) and first["file_name"] == "toy_1.png"
    assert first["instances"].image_size == (6, 5)
    assert torch.equal(first["instances"].gt_boxes.tensor, torch.ones(1, 4))
    assert first["instances"].gt_masks.polygons[0][0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert first["other"][2].gt_masks.tensor.all()
    assert second.names == ["a", "b"] and second.epoch == 0.5 and torch.equal(second.indices, images.indices)
    with pytest.raises(CheckpointError, match=r"unknown kind 'os\.system'"):
        from_plain({"__kind__": "os.system"})


def test_the_tool_replays_a_refused_step(tmp_path, capsys):
    arguments = ("train.max_iter=4", "train.eval_period=0", "dataloader.train.poison={5: {loss_bbox: inf}}")
    with pytest.raises(InvalidLossError) as caught:
        run_here(tmp_path, *arguments)
    file = tmp_path / "bad_batches" / "iteration_0000001_rank0.pth"
    assert str(caught.value).endswith(f"To look into it: python tools/replay_batch.py {file}")
    tool = replay_batch_tool
    assert tool.main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert "iteration 1, rank 0: loss 'loss_bbox' is inf at iteration 1" in shown
    assert "micro-batch 0: id 4 'toy_4.png', id 5 'toy_5.png', id 6 'toy_6.png', id 7 'toy_7.png'" in shown
    assert "an input image: finite" in shown
    assert (
        "first module with an output that is not finite: the model itself (ToyDetector), whose inputs were"
        in shown
    )
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  loss_")}
    assert lines["loss_ce"].endswith("gradient finite")
    assert "inf" in lines["loss_bbox"] and "gradient NOT FINITE in" in lines["loss_bbox"]
    assert tool.main([str(tmp_path / "none.pth")]) == 2
    assert "error: config file" in capsys.readouterr().err
    assert tool.main([str(file), "--config-file", str(tmp_path / "config.yaml"), "model.width=4"]) == 2
    assert "does not fit the model ToyDetector" in capsys.readouterr().err


def test_the_replay_names_the_module_and_the_operation(tmp_path, capsys):
    tool = replay_batch_tool
    for name, file, wanted in (
        (
            "BadForward",
            "iteration_0000000_rank0.pth",
            ["norm.1 (BadLayer), whose inputs were finite", "gradient NOT FINITE"],
        ),
        (
            "BadGradient",
            "iteration_0000001_rank0.pth",
            ["output that is not finite: none", "first 'heads.extra.weight'", "'MulBackward0' returned nan"],
        ),
    ):
        config = tmp_path / f"{name}.py"
        text = (ROOT / "tests" / "engine" / "toy_config.py").read_text()
        text = text.replace("L(ToyDetector)(width=8, dropout=0.3)", f"L({name})()")
        config.write_text(f"from tests.reliability.toys import {name}\n{text}")
        with pytest.raises(InvalidNumberError):
            run_here(tmp_path / name, "--config-file", str(config), "train.eval_period=0")
        assert tool.main([str(tmp_path / name / "bad_batches" / file)]) == 0
        shown = capsys.readouterr().out
        for text in wanted:
            assert text in shown, shown


def test_ranks_leave_out_the_same_steps(tmp_path):
    # Image 7 is in the second half of batch 1: it is rank 1 that sees it.
    arguments = (
        "train.non_finite.policy=skip",
        "train.eval_period=0",
        "train.max_iter=4",
        "dataloader.train={_target_: tests.reliability.toys.Poisoned, images: {7: nan}}",
    )
    assert launch(run_here, 2, args=(tmp_path, *arguments)) == 0
    assert load_file(tmp_path / "model_final.pth")["trainer"]["skipped_steps"] == 1
    assert [file.name for file in (tmp_path / "bad_batches").iterdir()] == ["iteration_0000001_rank1.pth"]
    assert max(line.get("skipped_steps", 0) for line in metrics(tmp_path)) == 1
    log = (tmp_path / "log.txt").read_text()
    assert (
        "an input image holds numbers that are NaN or infinite, at iteration 1 on rank 1; images: id 7" in log
    )
