"""Methods on logits, VkD's classification loss, and several methods at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mokd_det.distillation import (
    DKD,
    Combined,
    HardDistillation,
    LogitDistillation,
    Method,
    MoKD,
    NoDistillation,
    VkD,
)
from mokd_det.distillation.cholesky_qr import householder_qr
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import TapSpec


def vectors(channels: int) -> TapSpec:
    return TapSpec("vectors", (channels,))


def on_logits(method: Method, classes: int = 6) -> Method:
    method.setup({"logits": vectors(classes)}, {"logits": vectors(classes)})
    return method


def logits(seed: int, rows: int = 4, classes: int = 6) -> torch.Tensor:
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_vkds_classification_losses_equal_the_stored_ones(goldens, wave) -> None:
    stored = goldens["losses"]["vkd_classification"]
    taps = []
    for who, reduced in (("s", (1,)), ("t", (2, 3))):
        z, y = (dict(stored[f"{kind}_{who}"]) for kind in ("z", "y"))
        pooled = wave(z["shape"], z["phase"], z["scale"], z["offset"]).mean(reduced)
        taps.append({"pooled": pooled, "logits": wave(y["shape"], y["phase"], y["scale"], y["offset"])})
    method = Combined(
        {"kd": VkD(task="classification"), "kl": LogitDistillation()}, {"kd": ["pooled"], "kl": ["logits"]}
    )
    method.setup(*({name: vectors(value.shape[1]) for name, value in side.items()} for side in taps))
    method.double()
    (projection,) = (m for m in method.modules() if isinstance(m, StiefelLinear))
    assert [name for name, _ in method.named_parameters()] == ["parts.kd.projectors.pooled.linear.weight"]
    with torch.no_grad():
        projection.weight.copy_(householder_qr(wave((7, 4), 2.2, 1.0, 0.0)))
    terms = method(*taps)
    assert terms["kd_pooled"].item() == pytest.approx(stored["repr_smooth_l1"], abs=1e-10)
    assert terms["kl_kl"].item() == pytest.approx(stored["kl_batchmean_T1"], abs=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_torchs(temperature: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    loss = on_logits(LogitDistillation(temperature))({"logits": student}, {"logits": teacher})["kl"]
    log_s, log_t = (F.log_softmax(values / temperature, 1) for values in (student, teacher))
    wanted = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2
    torch.testing.assert_close(loss, wanted)
    by_numel = on_logits(LogitDistillation(temperature, reduction="numel"))
    deit = F.kl_div(log_s, log_t, reduction="sum", log_target=True) * temperature**2 / log_s.numel()
    torch.testing.assert_close(by_numel({"logits": student}, {"logits": teacher})["kl"], deit)
    # d/dz_s of T² KL is T (p_s - p_t) / rows
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, temperature * (log_s.exp() - log_t.exp()) / 4)


def test_the_divergence_is_never_negative() -> None:
    method = on_logits(LogitDistillation(), classes=1000)
    for seed in range(20):
        same = logits(seed, 64, 1000).float() * 5
        loss = method({"logits": same.half()}, {"logits": same.half()})["kl"]
        assert loss.dtype == torch.float32 and 0 <= loss < 1e-6


def test_hard_distillation_is_cross_entropy_with_the_teachers_decision() -> None:
    student, teacher = logits(0), logits(1)
    loss = on_logits(HardDistillation())({"logits": student}, {"logits": teacher})["hard"]
    torch.testing.assert_close(loss, F.cross_entropy(student, teacher.argmax(1)))


@pytest.mark.parametrize("method", [LogitDistillation, HardDistillation])
def test_the_queries_of_a_detector_are_rows(method: type[Method]) -> None:
    spec = TapSpec("tokens", (6,), num_tokens=2)
    tokens = method()
    tokens.setup({"logits": spec}, {"logits": spec})
    student, teacher = logits(0), logits(1)
    flat = on_logits(method())({"logits": student}, {"logits": teacher})
    shaped = tokens({"logits": student.view(2, 2, 6)}, {"logits": teacher.view(2, 2, 6)})
    for name, value in flat.items():
        torch.testing.assert_close(shaped[name], value)


@pytest.mark.parametrize("method", [LogitDistillation, HardDistillation])
def test_other_classes_are_refused_with_both_counts(method: type[Method]) -> None:
    with pytest.raises(IncompatibleModelsError, match="the student predicts 10 classes and the teacher 1000"):
        method().setup({"logits": vectors(10)}, {"logits": vectors(1000)})
    with pytest.raises(
        IncompatibleModelsError, match=r"reads the tap 'logits', which model\.taps does not name"
    ):
        method().setup({"pooled": vectors(10)}, {"pooled": vectors(10)})
    both = {"logits": vectors(10), "pooled": vectors(4)}
    with pytest.raises(IncompatibleModelsError, match="'pooled' is given too; Combined"):
        method().setup(both, both)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="temperature=0 must be above 0"):
        LogitDistillation(temperature=0)
    with pytest.raises(ConfigError, match="reduction='mean' is not one of 'batchmean', 'numel'"):
        LogitDistillation(reduction="mean")
    with pytest.raises(ConfigError, match="task='segmentation' is not one of 'detection', 'classification'"):
        VkD(task="segmentation")


class Adapting(Method):
    """Reads one tap of the student alone, and runs the teacher in its own way."""

    student_only_taps = ("extra",)
    teacher_after_student = True
    needs_preparation = True
    signed_terms = frozenset({"x"})

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def teacher_pass(self, teacher, student):
        self.calls.append(f"teacher {sorted(student)}")
        return super().teacher_pass(teacher, student)

    def inspect(self, student, teacher):
        self.calls.append("inspect")

    def prepare(self, batches):
        self.calls += [f"prepare {sorted(taps)}" for taps, _ in batches]

    def after_step(self):
        self.calls.append("after_step")

    def compare_taps(self, student, teacher, context):
        self.calls.append(f"compare {sorted(student)} {sorted(teacher)} {context.epoch}")
        return {"x": student["extra"].sum()}

    def diagnostics(self):
        return {"number": 1.0}


def test_parts_see_their_own_taps_and_nothing_else() -> None:
    adapting, kd = Adapting(), MoKD()
    method = Combined({"a": adapting, "kd": kd}, {"a": ["extra", "logits"], "kd": ["pooled"]})
    assert method.student_only_taps == ("extra",)
    assert method.teacher_after_student and method.needs_teacher and method.needs_preparation
    assert method.signed_terms == {"a_x"}
    student = {"extra": vectors(3), "logits": vectors(4), "pooled": vectors(5)}
    teacher = {"logits": vectors(4), "pooled": vectors(7)}
    method.inspect(nn.Identity(), nn.Identity())
    method.setup(student, teacher)
    values = [
        {name: torch.randn(2, spec.channels[0]) for name, spec in side.items()} for side in (student, teacher)
    ]
    with method.teacher_pass(nn.Identity(), values[0]):
        pass
    terms = method(*values)
    assert list(terms) == ["a_x", "kd_pooled"]
    torch.testing.assert_close(
        terms["kd_pooled"], kd({"pooled": values[0]["pooled"]}, {"pooled": values[1]["pooled"]})["pooled"]
    )
    method.prepare([(values[1], None)])
    method.after_step()
    assert adapting.calls == [
        "inspect",
        "teacher ['extra', 'logits']",
        "compare ['extra', 'logits'] ['logits'] 0.0",
        "prepare ['logits']",
        "after_step",
    ]
    assert {"a/number", "kd/pooled/orthogonality_error"} <= set(method.diagnostics())
    assert len(method.no_weight_decay_parameters()) == 3
    # A tap that another part compares is read from both.
    assert Combined({"a": Adapting(), "kd": MoKD()}).student_only_taps == ()


def test_parts_are_retracted() -> None:
    method = Combined({"kd": MoKD()})
    method.setup({"pooled": vectors(3)}, {"pooled": vectors(4)})
    stiefel = [m for m in method.modules() if isinstance(m, StiefelLinear)]
    with torch.no_grad():
        for layer in stiefel:
            layer.weight.mul_(1.1).add_(0.05 * torch.randn_like(layer.weight))
    method.after_step()
    assert len(stiefel) == 2 and max(float(layer.orthogonality_error()) for layer in stiefel) < 1e-5


def test_several_parts_that_need_preparation_share_one_pass() -> None:
    parts = {"a": Adapting(), "b": Adapting()}
    method = Combined(parts, {"a": ["logits"], "b": ["pooled"]})
    passes = iter([({"logits": torch.ones(1, 1), "pooled": torch.ones(1, 1)}, None)] * 2)
    method.prepare(passes)
    assert parts["a"].calls == ["prepare ['logits']"] * 2 and parts["b"].calls == ["prepare ['pooled']"] * 2


def test_parts_without_a_teacher() -> None:
    method = Combined({"none": NoDistillation()})
    assert not method.needs_teacher and not method.needs_preparation
    method.setup({}, {})
    assert method({}, {}) == {}


def test_wrong_combinations_are_named() -> None:
    with pytest.raises(ConfigError, match="Combined has no parts"):
        Combined({})
    with pytest.raises(ConfigError, match=r"part 'kd' of Combined is of type str"):
        Combined({"kd": "MoKD"})
    with pytest.raises(ConfigError, match="gives taps to 'kl', but its parts are 'kd'"):
        Combined({"kd": MoKD()}, {"kl": ["logits"]})
    specs = {"pooled": vectors(3), "logits": vectors(3)}
    with pytest.raises(
        IncompatibleModelsError,
        match=r"part 'kd' of Combined reads the tap 'maps'.* names 'pooled', 'logits'",
    ):
        Combined({"kd": MoKD()}, {"kd": ["maps"]}).setup(specs, specs)
    with pytest.raises(IncompatibleModelsError, match="no part of Combined reads the tap 'logits'"):
        Combined({"kd": MoKD()}, {"kd": ["pooled"]}).setup(specs, specs)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_dkd_without_labels_takes_the_teachers_first_class(head: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    specs = {"logits": TapSpec("vectors", (5,))}
    found = []
    for target, labels in (("teacher", None), ("label", teacher.argmax(1)), ("label", teacher.argmin(1))):
        method = DKD(target=target, head=head)
        method.setup(specs, specs)
        losses = method(
            {"logits": student}, {"logits": teacher}, MethodContext(labels=labels, targets=labels)
        )
        found.append({name: float(loss) for name, loss in losses.items()})
    assert found[0] == found[1] != found[2]
