"""Every method under every kind of balancer, two steps of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

import mokd_det.distillation
from mokd_det.balancing import Amortized, Balancer, ClosedForm, FixedWeights, Objectives, UncertaintyWeighting
from mokd_det.config import TrainSettings
from mokd_det.distillation import Combined, Method
from mokd_det.engine import MoKDTrainer
from mokd_det.engine.build import build_trainer
from mokd_det.errors import ConfigError
from tests.distillation.small_classifiers import IMAGES, RECIPES, Loader, batch, build

BALANCERS: dict[str, Callable[[], Balancer]] = {
    "fixed": FixedWeights,
    "amortized": Amortized,
    "closed_form": ClosedForm,
}
SIGNED = {"srd"}
# a normalisation follows, which a constant does not change
WITHOUT_EFFECT = {"adapter.conv.bias", "embed.bias"}


def trained(name: str, balancer: Balancer, steps: int = 2) -> tuple[MoKDTrainer, dict[str, float]]:
    model = build(name)
    groups = {"task": ["loss_cls"]}
    if name != "none":
        groups["distill"] = ["loss_distill_*"]
    trainer = MoKDTrainer(
        model,
        Loader(),
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02),
        objectives=Objectives(groups),
        balancer=balancer,
    )
    with EventStorage() as storage:
        trainer.storage = storage
        for trainer.iter in range(steps):
            trainer.run_step()
            storage.step()
        return trainer, {key: value for key, (value, _) in storage.latest().items()}


def test_every_method_is_tried() -> None:
    exported = (getattr(mokd_det.distillation, name) for name in mokd_det.distillation.__all__)
    methods = {m for m in exported if isinstance(m, type) and issubclass(m, Method) and m is not Method}
    classifiers = {type(recipe.method()) for recipe in RECIPES.values()}
    # test_map_methods, test_query_methods, test_cross_kd and test_transformers_pairs train those of detectors.
    detectors = {"CrossKD", "DETRDistill", "FGD", "FoundationFeatures", "KDDETR", "LD", "MGD", "PKD"}
    assert {method.__name__ for method in methods - classifiers} == detectors


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in SIGNED])
def test_two_steps(name: str, balancer: str) -> None:
    trainer, latest = trained(name, BALANCERS[balancer]())
    losses = {key: value for key, value in latest.items() if key.startswith("loss_")}
    assert losses.keys() >= {"loss_cls"} and (name == "none" or len(losses) > 1)
    assert all(0 <= value < float("inf") for value in losses.values()), losses
    model, start = trainer.module, build(name)
    moved = {k for k, v in model.named_parameters() if not torch.equal(v, start.get_parameter(k))}
    own = {k for k, v in model.method.named_parameters() if v.requires_grad} - WITHOUT_EFFECT
    assert {f"method.{key}" for key in own} <= moved
    assert any(key.startswith("student.") for key in moved)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    if model.teacher is not None:
        teacher = start.teacher.state_dict()
        assert all(torch.equal(v, teacher[k]) for k, v in model.teacher.state_dict().items())


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "none"])
def test_the_losses_of_a_batch_fall(name: str) -> None:
    """A step along the gradient, so small that a hundredth of the loss should go."""
    model = build(name)
    prepared = model.prepare_batch(batch(torch.arange(8)))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def total() -> torch.Tensor:
        torch.manual_seed(0)
        losses = model(prepared)
        return sum(value for key, value in losses.items() if key.startswith("loss_distill_"))

    before = total()
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    square = sum(float(g.square().sum()) for g in gradients if g is not None)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= 0.01 * before.abs() / square * gradient
        assert total() < before


def test_a_signed_term_works_with_fixed_weights() -> None:
    _, latest = trained("srd", FixedWeights())
    assert latest["loss_distill_srd"] < float("inf")


def config(name: str, balancer: Callable[[], Balancer]) -> tuple[OmegaConf, TrainSettings]:
    cfg = OmegaConf.create({}, flags={"allow_objects": True})
    cfg.model = L(build)(name=name)
    cfg.optimizer = L(torch.optim.SGD)(params=L(_parameters)(), lr=0.01)
    cfg.dataloader = {"train": L(Loader)()}
    cfg.objectives = {"task": ["loss_cls"], "distill": ["loss_distill_*"]}
    cfg.balancer = L(balancer)()
    cfg.train = {"output_dir": "unused", "max_iter": 1, "device": "cpu"}
    return cfg, TrainSettings.from_config(cfg.train)


def _parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return list(model.parameters())


@pytest.mark.parametrize("balancer", [Amortized, ClosedForm, UncertaintyWeighting])
def test_balancers_of_logarithms_refuse_a_signed_term_before_training(balancer: type[Balancer]) -> None:
    with pytest.raises(ConfigError, match=rf"{balancer.__name__}.*'loss_distill_srd' can be 0 or negative"):
        build_trainer(*config("srd", balancer))
    assert build_trainer(*config("srd_sum", balancer)).module.signed_losses == ()


def test_signed_terms_of_parts_are_found() -> None:
    parts = {"a": RECIPES["srd"].method(), "b": RECIPES["kd"].method()}
    assert Combined(parts).signed_terms == {"a_srd"}


def test_banks_move_once_per_step() -> None:
    """… although the amortised balancer runs the forward twice."""
    start = build("crd")
    trainer, _ = trained("crd", Amortized(), steps=1)
    method, before = trainer.module.method, start.method
    seen, rest = slice(0, 8), slice(8, IMAGES)
    for bank in ("bank_s", "bank_t"):
        now, then = method.get_buffer(bank), before.get_buffer(bank)
        assert torch.equal(now[rest], then[rest])
        assert not torch.isclose(now[seen], then[seen]).all(1).any()
        torch.testing.assert_close(now[seen].norm(dim=1), torch.ones(8))
    student, teacher = start.student, start.teacher
    losses_of_first_forward = start(batch(torch.arange(8)))
    assert losses_of_first_forward["loss_distill_crd"] > 0
    start.after_step()
    torch.testing.assert_close(start.method.bank_s, method.bank_s)
    assert student.training and not teacher.training


def test_the_constant_of_crd_is_that_of_the_first_batch() -> None:
    model = build("crd")
    model(batch(torch.arange(8)))
    first = model.method.normalizer.clone()
    assert bool((first > 0).all())
    model.after_step()
    model(batch(torch.arange(8, 16)))
    assert torch.equal(model.method.normalizer, first)


def test_banks_and_centres_are_in_the_checkpoint() -> None:
    for name, keys in {"crd": {"bank_s", "bank_t", "normalizer"}, "nd": {"centers"}}.items():
        model, other = build(name), build(name, seed=1)
        state = copy.deepcopy(model.method.state_dict())
        assert keys <= set(state)
        other.method.load_state_dict(state)
        assert all(torch.equal(other.method.get_buffer(key), state[key]) for key in keys)


def test_the_masked_teacher_runs_once_per_step() -> None:
    model = build("masked_kd")
    calls = []
    model.teacher.network.blocks[0].register_forward_hook(lambda m, i, o: calls.append(o.shape[1]))
    prepared = model.prepare_batch(batch(torch.arange(8)))
    assert not calls
    first = model(prepared)["loss_distill_kl"]
    assert calls == [1 + 6]
    with torch.no_grad():
        again = model(prepared)["loss_distill_kl"]
    assert calls == [1 + 6] and torch.equal(first, again)
    model(batch(torch.arange(8)))
    assert calls == [7, 7]
    assert not model.teacher.network.patch_drop._forward_hooks


def test_the_masked_teacher_sees_the_most_attended_patches_in_their_places() -> None:
    model = build("masked_kd")
    attentions = []
    attention = model.student.network.blocks[-1].attn
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda m, i, o: attentions.append(o))
    images = batch(torch.arange(8))
    seen = []
    model.teacher.network.norm_pre.register_forward_hook(lambda m, i, o: seen.append(o))
    model(images)
    teacher = model.teacher.network
    with torch.no_grad():
        tokens = teacher._pos_embed(teacher.patch_embed(images.images))
    kept = attentions[0].mean(1)[:, 0, 1:].argsort(dim=1, descending=True)[:, :6].sort(1).values
    expected = torch.stack([torch.cat((t[:1], t[1:][k])) for t, k in zip(tokens, kept, strict=True)])
    torch.testing.assert_close(seen[0], expected)


def test_attention_may_be_tapped_itself() -> None:
    torch.manual_seed(0)
    model = build("masked_kd")
    by_queries = model(batch(torch.arange(8)))
    attention = model.student.network.blocks[-1].attn
    attention.fused_attn = False
    method = RECIPES["masked_kd"].method()
    tap = {"path": "network.blocks.1.attn.attn_drop", "strides": [1], "channels": [2]}
    other = mokd_det.distillation.Distiller(
        model.student, model.teacher, method, taps={"logits": "logits", "attention": tap}
    )
    torch.testing.assert_close(other(batch(torch.arange(8))), by_queries)


def test_a_teacher_with_batch_statistics_keeps_its_own() -> None:
    model, plain = build("ofd_batch_statistics"), build("ofd")
    before = copy.deepcopy(model.teacher.state_dict())
    images = batch(torch.arange(8))
    with_batch, without = (m.prepare_batch(images).teacher_taps["pre"] for m in (model, plain))
    assert not torch.allclose(with_batch[-1].tensor, without[-1].tensor)
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.state_dict().items())
    assert not any(module.training for module in model.teacher.modules())
    network = copy.deepcopy(model.teacher).train()
    with torch.no_grad(), mokd_det.distillation.TapRecorder(network, {"pre": "pre"}) as recorder:
        network(images)
    torch.testing.assert_close(with_batch[-1].tensor, recorder.values["pre"][-1].tensor)


def test_preparation_is_the_mean_of_each_class() -> None:
    model = build("nd")
    everything = model.prepare_batch(batch(torch.arange(IMAGES)))
    vectors, labels = everything.teacher_taps["pooled"], torch.arange(IMAGES) % 5
    expected = torch.stack([vectors[labels == c].mean(0) for c in range(5)])
    torch.testing.assert_close(model.method.centers, expected)
