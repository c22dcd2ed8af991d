"""Values and gradients of the published methods, and the parts they have, as their official code gives them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mokd_det.distillation import (
    CRD,
    DKD,
    NKD,
    OFD,
    PKT,
    RKD,
    SRD,
    USKD,
    FitNet,
    Manifold,
    MaskedKD,
    NormDirection,
    ReviewKD,
)
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.crd import bank_scores
from mokd_det.distillation.methods.manifold import relation_distance
from mokd_det.distillation.methods.masked_kd import most_attended
from mokd_det.distillation.methods.ofd import negative_margin
from tests.classification.cifar.golden import draw, fill
from tests.distillation.method_goldens import (
    PAIRS,
    adapter,
    cases,
    gradient_norms,
    inputs,
    load,
    loss,
    maps,
    normal,
    number,
    numbers,
    set_up,
    stored,
)

EXACT = {"rel": 1e-9, "abs": 0.0}
LARGEST = "resnet50_mobilenetv2"  # its adapters have 28 million parameters
GRADIENT = {"rel": 1e-6, "abs": 0.0}


def logits(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    made = inputs(case)
    return {"logits": made["s_logits"]}, {"logits": made["t_logits"]}, made["labels"]


def pooled(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    made = inputs(case)
    return {"pooled": made["s"]}, {"pooled": made["t"]}


def test_dkd() -> None:
    student, teacher, labels = logits("dkd/a1_b8_T4")
    method = set_up(DKD(), student, teacher)
    terms = method(student, teacher, MethodContext(labels=labels))
    assert terms["tckd"].item() == pytest.approx(number("dkd/a1_b8_T4/tckd"), **EXACT)
    assert terms["nckd"].item() == pytest.approx(number("dkd/a1_b8_T4/nckd"), **EXACT)
    total = loss(method, student, teacher, {"tckd": 1.0, "nckd": 8.0}, targets=labels)
    assert total.item() == pytest.approx(number("dkd/a1_b8_T4/value"), **EXACT)
    assert gradient_norms(total, student["logits"]) == pytest.approx(
        numbers("dkd/a1_b8_T4/grad_norm"), **GRADIENT
    )


def test_nkd() -> None:
    student, teacher, labels = logits("nkd/T3_g3.5")
    method = set_up(NKD(temperature=3.0), student, teacher)
    total = loss(method, student, teacher, {"target": 1.0, "nontarget": 3.5}, labels=labels)
    assert total.item() == pytest.approx(number("nkd/T3_g3.5/value"), **EXACT)
    assert gradient_norms(total, student["logits"]) == pytest.approx(
        numbers("nkd/T3_g3.5/grad_norm"), **GRADIENT
    )


def test_uskd() -> None:
    made = inputs("uskd/hard_label")
    student = {"logits": made["s_logits"], "middle": made["mid"]}
    method = set_up(USKD(), student, {})
    state = adapter("uskd/hard_label")
    load(method, {key.replace("fc.", "weak_head."): value for key, value in state.items()})
    total = loss(
        method, student, {}, {"target": 1.0, "nontarget": 0.1, "weak": 0.005}, targets=made["labels"]
    )
    assert total.item() == pytest.approx(number("uskd/hard_label/value"), **EXACT)
    assert gradient_norms(total, made["s_logits"], made["mid"], method.weak_head.weight) == pytest.approx(
        numbers("uskd/hard_label/grad_norm"), **GRADIENT
    )


@pytest.mark.parametrize("case", ["same", "chan", "s_half", "s_double"])
def test_fitnet(case: str) -> None:
    case = f"fitnet/{case}"
    made = inputs(case)
    student, teacher = {"maps": maps(made["s"])}, {"maps": maps(made["t"])}
    method = set_up(FitNet(level=0), student, teacher)
    load(method, {f"adapter.{key}": value for key, value in adapter(case).items()})
    total = loss(method, student, teacher, {"hint": 1.0})
    assert total.item() == pytest.approx(number(f"{case}/value"), **EXACT)
    assert gradient_norms(total, made["s"], method.adapter.conv.weight) == pytest.approx(
        numbers(f"{case}/grad_norm"), **GRADIENT
    )
    adapted = method.adapter(made["s"])
    assert [adapted.mean().item(), adapted.std(correction=0).item()] == pytest.approx(
        numbers(f"{case}/adapter_mean_std"), rel=1e-8
    )


def test_rkd() -> None:
    student, teacher = pooled("rkd")
    method = set_up(RKD(), student, teacher)
    terms = method(student, teacher)
    assert terms["distance"].item() == pytest.approx(number("rkd/dist"), **EXACT)
    assert terms["angle"].item() == pytest.approx(number("rkd/angle"), **EXACT)
    total = loss(method, student, teacher, {"distance": 25.0, "angle": 50.0})
    assert total.item() == pytest.approx(number("rkd/value"), **EXACT)
    assert gradient_norms(total, student["pooled"]) == pytest.approx(numbers("rkd/grad_norm"), **GRADIENT)


def test_pkt() -> None:
    student, teacher = pooled("pkt")
    total = loss(set_up(PKT(), student, teacher), student, teacher, {"pkt": 1.0})
    assert total.item() == pytest.approx(number("pkt/value"), **EXACT)
    assert gradient_norms(total, student["pooled"]) == pytest.approx(numbers("pkt/grad_norm"), **GRADIENT)


def test_srd() -> None:
    made = inputs("srd/log_corr4")
    student = {"pooled": made["s_tokens"].mean(1)}
    teacher = {"pooled": made["t_map"].mean((2, 3))}
    method = set_up(SRD(), student, teacher)
    load(method, adapter("srd/log_corr4"))
    total = loss(method, student, teacher, {"srd": 1.0})
    assert total.item() == pytest.approx(number("srd/log_corr4/value"), **EXACT)
    assert gradient_norms(total, made["s_tokens"], method.embed.weight) == pytest.approx(
        numbers("srd/log_corr4/grad_norm"), **GRADIENT
    )


def test_manifold() -> None:
    made = inputs("manifold/layer")
    student, teacher = {"tokens": made["s"]}, {"tokens": made["t"]}
    method = set_up(Manifold(), student, teacher)
    terms = method(student, teacher)
    for name, golden in (("patch", "patch"), ("sample", "sample"), ("random", "rand_K_all")):
        assert terms[name].item() == pytest.approx(number(f"manifold/layer/{golden}"), **EXACT)
    assert gradient_norms(terms["patch"], made["s"]) == pytest.approx(
        numbers("manifold/layer/grad_norm"), **GRADIENT
    )


@pytest.mark.parametrize("pair", ["resnet56_resnet20", "wrn402_wrn401", "resnet32x4_shufflev2"])
def test_ofd(pair: str) -> None:
    case = f"ofd/{pair}"
    made = inputs(case)
    student = {"pre": maps(*(made[f"s{i}"] for i in range(3)))}
    teacher = {"pre": maps(*(made[f"t{i}"] for i in range(3)))}

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(level.tensor.shape[1]) for level in teacher["pre"])

    model = Teacher()
    for index, norm in enumerate(model.norms):
        fill(norm, f"{case}/tbn{index}.")
    method = OFD(norms=["norms.0", "norms.1", "norms.2"])
    method.inspect(nn.Identity(), model)
    set_up(method, student, teacher)
    load(method, adapter(case, f"{case}/"))
    margins = [float(method.get_buffer(f"margin{i}").mean()) for i in range(3)]
    assert margins == pytest.approx(numbers(f"{case}/margin_mean"), rel=1e-6)
    total = loss(method, student, teacher, {"ofd": 1.0})
    assert total.item() == pytest.approx(number(f"{case}/value"), **EXACT)
    assert gradient_norms(total, made["s0"], made["s2"]) == pytest.approx(
        numbers(f"{case}/grad_norm"), **GRADIENT
    )


def test_margin_of_ofd_with_rare_negatives() -> None:
    scale, shift, expected = (
        torch.from_numpy(stored()[f"ofd/margin/{n}"]) for n in ("weight", "bias", "value")
    )
    margin = negative_margin(scale, shift)
    assert margin.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert bool((margin == (-3 * scale.abs()).float()).any()), "no channel of the goldens is rarely negative"


def test_crd() -> None:
    made = inputs("crd/step1")
    student, teacher = {"pooled": made["s"]}, {"pooled": made["t"]}
    method = set_up(CRD(num_samples=64), student, teacher).double()
    fill(method.embed_s, "crd/embed_s.linear.")
    fill(method.embed_t, "crd/embed_t.linear.")
    for name, bank in (("crd/memory_v1", method.bank_s), ("crd/memory_v2", method.bank_t)):
        bank.copy_(normal(name, (64, 128), 1 / 128**0.5))
    index = torch.from_numpy(stored()["crd/step1/idx"])
    context = {"indices": index, "negatives": made["neg"]}
    assert torch.equal(made["neg"], torch.from_numpy(stored()["crd/step1/neg"]))
    for step in (1, 2):
        total = loss(method, student, teacher, {"crd": 1.0}, **context)
        assert total.item() == pytest.approx(number(f"crd/step{step}/value"), **EXACT)
        assert method.normalizer.tolist() == pytest.approx(numbers("crd/step1/Z"), **EXACT)
        assert gradient_norms(total, made["s"], method.embed_t.weight) == pytest.approx(
            numbers(f"crd/step{step}/grad_norm"), **GRADIENT
        )
        method.after_step()
        if step == 1:
            for name, bank in (("v1", method.bank_s), ("v2", method.bank_t)):
                rows = torch.from_numpy(stored()[f"crd/step1/memory_{name}_rows"])
                torch.testing.assert_close(bank[index], rows, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("size", "count"), [(500, 3), (20, 7)])
def test_scores_of_crd_whichever_way(size: int, count: int) -> None:
    bank, vectors = torch.randn(size, 8).double(), torch.randn(4, 8).double().requires_grad_()
    rows = torch.randint(0, size, (4, count))
    scores = bank_scores(bank, vectors, rows)
    torch.testing.assert_close(scores, torch.stack([bank[r] @ v for r, v in zip(rows, vectors)]))
    (gradient,) = torch.autograd.grad(scores.square().sum(), vectors)
    expected = torch.stack([2 * bank[r].T @ (bank[r] @ v) for r, v in zip(rows, vectors)])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    "pair", [p if p != LARGEST else pytest.param(p, marks=pytest.mark.slow) for p in PAIRS]
)
def test_review_kd(pair: str) -> None:
    case = f"reviewkd/{pair}"
    made = inputs(case)
    levels = range(sum(name[1:].isdigit() for name in made if name[0] == "s"))
    student = {"maps": maps(*(made[f"s{i}"] for i in levels)), "pooled": made["s_pool"]}
    teacher = {"maps": maps(*(made[f"t{i}"] for i in levels)), "pooled": made["t_pool"]}
    method = set_up(ReviewKD(), student, teacher)
    assert sum(p.numel() for p in method.parameters()) == cases()[case]["modules"]["adapter_params"]
    load(method, {f"units.{key}": value for key, value in adapter(case, f"{case}/abfs.").items()})
    assert [d.item() for d in method.distances(student, teacher)] == pytest.approx(
        numbers(f"{case}/per_level"), **EXACT
    )
    total = loss(method, student, teacher, {"review": 1.0})
    assert total.item() == pytest.approx(number(f"{case}/value"), **EXACT)
    assert gradient_norms(total, made["s0"], made["s_pool"]) == pytest.approx(
        numbers(f"{case}/grad_norm"), **GRADIENT
    )


@pytest.mark.parametrize("case", [*(f"reviewkdpp/{pair}/nd" for pair in PAIRS), "nd/plain"])
def test_norm_direction(case: str) -> None:
    made = inputs(case)
    student, teacher = {"pooled": made["s_emb"]}, {"pooled": made["t_emb"]}
    method = set_up(NormDirection(100, dropout=0.0), student, teacher)
    if method.embed is None:
        method.double()
    else:
        load(method, {key.replace("fc1.", "embed."): value for key, value in adapter(case).items()})
    method.centers.copy_(made["centers"])
    total = loss(method, student, teacher, {"nd": 1.0}, labels=made["labels"])
    assert total.item() == pytest.approx(number(f"{case}/value"), **EXACT)
    assert gradient_norms(total, made["s_emb"]) == pytest.approx(numbers(f"{case}/grad_norm"), **GRADIENT)


def test_masked_kd() -> None:
    student, teacher, labels = logits("maskedkd/soft")
    attention = normal("masked/attn", (8, 3, 17, 17), 2.0).softmax(-1)
    kept = most_attended(attention[:, :, 0, 1:], 8)
    assert kept.tolist() == stored()["maskedkd/soft/keep_sorted"].tolist()
    method = set_up(MaskedKD(keep=8), {**student, "attention": attention.flatten(1, 2)}, teacher)
    (kl,) = method(student, teacher).values()
    total = 0.5 * kl + 0.5 * nn.functional.cross_entropy(student["logits"], labels)
    assert total.item() == pytest.approx(number("maskedkd/soft/value"), **EXACT)
    assert gradient_norms(total, student["logits"]) == pytest.approx(
        numbers("maskedkd/soft/grad_norm"), **GRADIENT
    )


def test_relation_distance_of_one_pair() -> None:
    rows = torch.from_numpy(draw("pair", (2, 4)))
    angle = float(torch.nn.functional.cosine_similarity(rows[:1], rows[1:]))
    unit = torch.nn.functional.normalize(rows, dim=1)
    same = torch.ones(2, 1).double()
    assert float(relation_distance(unit, same)) == pytest.approx((1 - angle) ** 2 / 2)
