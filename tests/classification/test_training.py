"""Classifiers in the one trainer: mixed precision, accumulation, resuming, broken images, precision of the teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mokd_det.balancing import Amortized, ClosedForm, FixedWeights
from mokd_det.classification import ImageClassifier
from mokd_det.contract.parameter_parts import split_by_part
from mokd_det.distillation import Combined, Distiller, LogitDistillation, MoKD
from mokd_det.engine import AtomicCheckpointer, MoKDTrainer
from mokd_det.errors import ConfigError, MoKDError
from tests.classification.toy import ToyClassificationLoader, ToyCnn, toy_batch, toy_vit
from tests.engine.helpers import differences, make_trainer, run_one_step, snapshot
from tests.engine.toy import toy_item

PATTERNS = {"distill": ["loss_distill_*"], "task": ["loss_cls"]}


def distiller(drop_path_rate: float = 0.3, seed: int = 0, **options) -> Distiller:
    torch.manual_seed(seed)
    student = ImageClassifier(toy_vit(drop_path_rate=drop_path_rate), num_classes=5)
    torch.manual_seed(1)
    teacher = ImageClassifier(ToyCnn(), num_classes=5)
    method = Combined({"kd": MoKD(), "kl": LogitDistillation()}, {"kd": ["pooled"], "kl": ["logits"]})
    taps = {"logits": {"student": "dist_logits", "teacher": "logits"}, "pooled": "pooled"}
    return Distiller(student, teacher, method, taps, **options)


def trainer(model: nn.Module, balancer=None, **options) -> MoKDTrainer:
    options = {"loader": ToyClassificationLoader(), "lr": 1e-3, "patterns": PATTERNS, **options}
    return make_trainer(Amortized() if balancer is None else balancer, model=model, **options)


def test_every_parameter_of_student_and_method_learns():
    model = distiller(drop_path_rate=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    storage = run_one_step(trainer(model))
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    latest = storage.latest()
    assert (
        latest["loss_cls"][0] > 0
        and latest["loss_distill_kd_pooled"][0] > 0
        and latest["loss_distill_kl_kl"][0] > 0
    )
    assert latest["pi/distill"][0] + latest["pi/task"][0] == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_is_close_to_full_precision(dtype):
    seen = []
    model = distiller(drop_path_rate=0.0)
    model.student.network.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trained = trainer(model, amp={"enabled": True, "dtype": dtype})
    losses = [run_one_step(trained, iteration).latest() for iteration in range(3)]
    assert set(seen) == {getattr(torch, dtype)}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    reference = run_one_step(trainer(distiller(drop_path_rate=0.0))).latest()
    for name in ("loss_cls", "loss_distill_kd_pooled"):
        assert losses[0][name][0] == pytest.approx(reference[name][0], rel=1e-2), name
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_accumulation_equals_one_big_batch():
    """Of the losses that are means over images; with SGD, because AdamW blows rounding errors up."""

    def trained(total_batch_size: int, accumulate: int) -> nn.Module:
        model = distiller(drop_path_rate=0.0)
        built = trainer(
            model, ClosedForm(), loader=ToyClassificationLoader(total_batch_size), accumulate=accumulate
        )
        built.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        built.train(0, 3)
        return model

    whole, parts = trained(8, 1), trained(4, 2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert differences(dict(whole.state_dict()), dict(distiller(drop_path_rate=0.0).state_dict()))


@pytest.mark.parametrize("balancer", [Amortized, ClosedForm, FixedWeights])
@pytest.mark.parametrize("amp", [None, {"enabled": True, "dtype": "float16"}])
def test_resuming_in_process_is_bit_exact(balancer, amp, tmp_path):
    def made(seed: int = 0) -> tuple[MoKDTrainer, AtomicCheckpointer]:
        model = distiller(seed=seed)
        built = trainer(model, balancer(), amp=amp)
        return built, AtomicCheckpointer(model.student, str(tmp_path), method=model.method, trainer=built)

    whole, _ = made()
    whole.train(0, 5)
    first, checkpointer = made()
    first.train(0, 2)
    first.iter = 1
    checkpointer.save("model_0000001", iteration=1)
    second, checkpointer = made(seed=7)
    assert checkpointer.resume() == {"iteration": 1}
    second.train(2, 5)
    assert differences(snapshot(whole), snapshot(second)) == []


def test_a_broken_image_is_named():
    loader = ToyClassificationLoader(poison={6: {}})
    built = trainer(distiller(), loader=loader)
    run_one_step(built, 0)
    with pytest.raises(MoKDError, match=r"iteration 1; images: .*'toy_6\.png'"):
        run_one_step(built, 1)


def test_conflict_is_measured_per_part_of_the_network():
    student = distiller().student
    groups = split_by_part(student, list(student.parameters()))
    assert list(groups)[:4] == ["cls_token", "pos_embed", "dist_token", "patch_embed"]
    assert {"blocks", "norm", "head", "head_dist"} <= set(groups)
    assert list(split_by_part(nn.Sequential(nn.Linear(2, 2)), [])) == []


def test_an_odd_batch_trains():
    built = trainer(distiller(), loader=ToyClassificationLoader(total_batch_size=3))
    assert run_one_step(built).latest()["total_loss"][0] > 0


@pytest.mark.parametrize(
    ("precision", "training", "wanted"),
    [
        ("as_student", None, torch.float32),
        ("as_student", torch.bfloat16, torch.bfloat16),
        ("float32", torch.bfloat16, torch.float32),
        ("bfloat16", None, torch.bfloat16),
        ("float16", torch.bfloat16, torch.float16),
    ],
)
def test_the_teacher_has_a_precision_of_its_own(precision, training, wanted):
    model = distiller(teacher_precision=precision).train()
    batch = toy_batch([toy_item(index) for index in range(4)])
    with torch.autocast("cpu", dtype=training, enabled=training is not None):
        prepared = model.prepare_batch(batch)
        losses = model(prepared)
    assert prepared.teacher_taps["logits"].dtype == wanted
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert all(parameter.dtype == torch.float32 for parameter in model.teacher.parameters())
    assert not prepared.teacher_taps["pooled"].requires_grad


def test_an_unknown_precision_is_named():
    with pytest.raises(ConfigError, match="teacher_precision='half' is not one of 'as_student', 'float32'"):
        distiller(teacher_precision="half")
