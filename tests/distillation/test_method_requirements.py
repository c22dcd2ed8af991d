"""What methods ask for, and how they say that it is missing."""

from __future__ import annotations

import dataclasses

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
    Distiller,
    FitNet,
    Manifold,
    MaskedKD,
    Method,
    NormDirection,
    ReviewKD,
)
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.dkd import drop_class, sigmoid_split, softmax_split
from mokd_det.distillation.methods.fitnet import HintAdapter
from mokd_det.distillation.warmup import WarmUp
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapSpec
from tests.distillation.method_goldens import vectors
from tests.distillation.small_classifiers import RECIPES, batch, build, convolutional, transformer

MAPS = TapSpec("maps", (4, 8), (1, 2))
TOKENS = TapSpec("tokens", (4,), num_tokens=3)


# --- taps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "tap"),
    [
        (DKD(), "logits"),
        (NKD(), "logits"),
        (USKD(), "logits"),
        (FitNet(), "maps"),
        (RKD(), "pooled"),
        (PKT(), "pooled"),
        (OFD(), "pre"),
        (CRD(9), "pooled"),
        (ReviewKD(), "maps"),
        (NormDirection(5), "pooled"),
        (SRD(), "pooled"),
        (Manifold(), "tokens"),
        (MaskedKD(), "logits"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else value,
)
def test_a_missing_tap_is_named(method: Method, tap: str) -> None:
    other = {"other": TOKENS} if method.needs_teacher else {}
    with pytest.raises(IncompatibleModelsError, match=f"{type(method).__name__} reads the tap '{tap}'"):
        method.setup(other, other)


@pytest.mark.parametrize(
    ("method", "taps"),
    [
        (NKD(), {"logits": TOKENS}),
        (USKD(), {"logits": TOKENS, "middle": MAPS}),
        (FitNet(), {"maps": TOKENS}),
        (RKD(), {"pooled": MAPS}),
        (PKT(), {"pooled": TOKENS}),
        (OFD(), {"pre": TOKENS}),
        (CRD(9), {"pooled": TOKENS}),
        (ReviewKD(), {"maps": TOKENS, "pooled": vectors(3)}),
        (NormDirection(5), {"pooled": TOKENS}),
        (SRD(), {"pooled": TOKENS}),
        (Manifold(), {"tokens": MAPS}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_a_tap_of_another_kind_is_refused(method: Method, taps: dict[str, TapSpec]) -> None:
    with pytest.raises(
        IncompatibleModelsError,
        match=rf"{type(method).__name__} reads \w+ at the tap.*student (tokens|maps) \(",
    ):
        method.setup(taps, taps if method.needs_teacher else {})


@pytest.mark.parametrize("method", [DKD(), NKD()], ids=["DKD", "NKD"])
def test_other_numbers_of_classes_are_named(method: Method) -> None:
    named, other = nn.Identity(), nn.Identity()
    named.class_names = ["bolt", "nut", "washer"]
    method.inspect(named, other)
    with pytest.raises(
        IncompatibleModelsError, match=r"the student has 3 classes \(bolt, nut, washer\) and the teacher 100;"
    ):
        method.setup({"logits": vectors(3)}, {"logits": vectors(100)})


def test_classes_of_other_names_are_named() -> None:
    student, teacher, method = nn.Identity(), nn.Identity(), DKD()
    student.class_names, teacher.class_names = ["cat", "dog"], ["cat", "cow"]
    method.inspect(student, teacher)
    with pytest.raises(IncompatibleModelsError, match="class 1 of 2 is 'dog' for the student and 'cow'"):
        method.setup({"logits": vectors(2)}, {"logits": vectors(2)})
    method = DKD()
    method.inspect(student, student)
    method.setup({"logits": vectors(2)}, {"logits": vectors(2)})


def test_long_lists_of_names_are_cut() -> None:
    student, method = nn.Identity(), DKD()
    student.class_names = [f"c{i}" for i in range(80)]
    method.inspect(student, nn.Identity())
    with pytest.raises(IncompatibleModelsError, match=r"80 classes \(c0, c1, c2, c3, c4, … 75 more\)"):
        method.setup({"logits": vectors(80)}, {"logits": vectors(3)})


def test_dkd_of_tokens_has_no_labels() -> None:
    with pytest.raises(ConfigError, match=r"use DKD\(target='teacher'\)"):
        DKD().setup({"logits": TOKENS}, {"logits": TOKENS})
    with pytest.raises(IncompatibleModelsError, match="found maps"):
        DKD().setup({"logits": MAPS}, {"logits": MAPS})
    one = {"logits": vectors(1)}
    with pytest.raises(IncompatibleModelsError, match=r"use DKD\(head='sigmoid'\)"):
        DKD().setup(one, one)
    DKD(head="sigmoid").setup(one, one)


def test_fitnet_needs_levels_that_fit() -> None:
    with pytest.raises(ConfigError, match="level 2 of the student's maps does not exist; it has 2"):
        FitNet().setup({"maps": MAPS}, {"maps": MAPS})
    far = TapSpec("maps", (4, 8), (1, 8))
    with pytest.raises(ConfigError, match=r"strides 2 \(student\) and 8 \(teacher\).*sides=\(student's"):
        FitNet(level=-1).setup({"maps": MAPS}, {"maps": far})
    with pytest.raises(IncompatibleModelsError, match="side 3 cannot be brought to the teacher's 8"):
        HintAdapter((4, 4), (3, 8))


def test_fitnet_takes_sides_where_strides_do_not_tell() -> None:
    method = FitNet(level=0, teacher_level=1, sides=(9, 6))
    method.setup({"maps": MAPS}, {"maps": TapSpec("maps", (4, 5), (1, 3))})
    assert method.adapter.conv.kernel_size == (4, 4)
    student = {"maps": [FeatureMap(torch.randn(2, 4, 9, 9), None, 1)] * 2}
    good, bad = ({"maps": [FeatureMap(torch.randn(2, 5, n, n), None, 3)] * 2} for n in (6, 5))
    assert method(student, good)["hint"] > 0
    with pytest.raises(
        IncompatibleModelsError, match=r"adapted to \(2, 5, 6, 6\), but the teacher's is \(2, 5, 5, 5\)"
    ):
        method(student, bad)


def test_ofd_needs_the_teachers_norms() -> None:
    student, teacher = convolutional(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))
    with pytest.raises(IncompatibleModelsError, match=r"give their module paths, OFD\(norms="):
        OFD().inspect(student, teacher)
    with pytest.raises(IncompatibleModelsError, match="weight and bias, but the teacher has Conv2d"):
        OFD(["0"]).inspect(student, teacher)
    with pytest.raises(IncompatibleModelsError, match="affine=False"):
        OFD(["1"]).inspect(student, teacher)
    method = OFD(["network.bn1"])
    method.inspect(student, convolutional())
    with pytest.raises(IncompatibleModelsError, match=r"have \[4, 8\] channels, its BatchNorms \[4\]"):
        method.setup({"pre": MAPS}, {"pre": MAPS})


def test_ofd_does_not_enlarge_the_teacher() -> None:
    teacher = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(8))
    method = OFD(["0", "1"])
    method.inspect(nn.Identity(), teacher)
    with pytest.raises(IncompatibleModelsError, match="the student has stride 1 and the teacher 2"):
        method.setup({"pre": MAPS}, {"pre": TapSpec("maps", (4, 8), (2, 4))})


def test_manifold_needs_layers_and_patches_that_fit() -> None:
    stack = {"tokens": TapSpec("tokens", (4,), num_tokens=5, num_levels=3)}
    with pytest.raises(ConfigError, match="layer 3 of the teacher does not exist; it has 3"):
        Manifold([0], [3]).setup(stack, stack)
    with pytest.raises(ConfigError, match="1 of the student are chosen and 3 of the teacher"):
        Manifold([0]).setup(stack, stack)
    more = {"tokens": TapSpec("tokens", (4,), num_tokens=7, num_levels=3)}
    with pytest.raises(
        IncompatibleModelsError, match="5 tokens and the teacher 7 with 1 that are no patches"
    ):
        Manifold(teacher_prefix=1).setup(stack, more)
    with pytest.raises(ConfigError, match="num_random=0"):
        Manifold(num_random=0)


def test_manifold_drops_tokens_that_are_no_patches() -> None:
    student, teacher = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 6, 8)
    method = Manifold([0, -1], [2, 0], teacher_prefix=2)
    method.setup(
        {"tokens": TapSpec("tokens", (4,), num_tokens=5, num_levels=3)},
        {"tokens": TapSpec("tokens", (8,), num_tokens=6, num_levels=3)},
    )
    plain = Manifold()
    specs = [{"tokens": TapSpec("tokens", (c,), num_tokens=4, num_levels=2)} for c in (4, 8)]
    plain.setup(*specs)
    torch.manual_seed(0)
    found = method({"tokens": student}, {"tokens": teacher})
    torch.manual_seed(0)
    expected = plain({"tokens": student[[0, 2], :, 1:]}, {"tokens": teacher[[2, 0], :, 2:]})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_masked_kd_needs_transformers_of_equal_patches() -> None:
    with pytest.raises(IncompatibleModelsError, match="the student is a CifarResNet"):
        MaskedKD().inspect(convolutional(), transformer())
    with pytest.raises(ConfigError, match="keep=98 of 16 patches"):
        MaskedKD().inspect(transformer(), transformer())
    other = transformer()
    other.network.patch_embed.num_patches = 4
    with pytest.raises(IncompatibleModelsError, match="the student has 4 patches and the teacher 16"):
        MaskedKD(4).inspect(other, transformer())
    with pytest.raises(ConfigError, match="keep=0"):
        MaskedKD(0)


def test_stages_meet_from_the_deepest_up() -> None:
    """A student that delivers its stem too."""
    method = ReviewKD()
    method.setup(
        {"maps": TapSpec("maps", (3, 4, 8), (1, 1, 2)), "pooled": vectors(8)},
        {"maps": TapSpec("maps", (16, 32), (1, 2)), "pooled": vectors(32)},
    )
    shapes = [(unit.conv1[0].in_channels, unit.conv2[0].out_channels) for unit in method.units]
    assert shapes == [(8, 32), (8, 32), (4, 16)]


# --- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lacking", "field"),
    [
        ("dkd", ("labels", "targets"), "labels"),
        ("nkd", ("labels", "targets"), "labels"),
        ("uskd", ("labels", "targets"), "labels"),
        ("nd", ("labels", "targets"), "labels"),
        ("crd", ("indices",), "indices"),
        ("crd", ("negatives",), "negatives"),
    ],
)
def test_what_a_batch_lacks_is_named(name: str, lacking: tuple[str, ...], field: str) -> None:
    model = build(name)
    images = batch(torch.arange(8))
    student = {n: torch.randn(8, s.channels[-1]) for n, s in specs_of(name, "student").items()}
    teacher = {n: torch.randn(8, s.channels[-1]) for n, s in specs_of(name, "teacher").items()}
    context = dataclasses.replace(images.method_context(), **dict.fromkeys(lacking))
    with pytest.raises(ConfigError, match=rf"needs each batch's {field} \(.*carry none"):
        model.method(student, teacher, context)


def specs_of(name: str, who: str) -> dict[str, TapSpec]:
    width = 4 if who == "student" else 8
    known = {"logits": vectors(5), "pooled": vectors(4 * width), "middle": vectors(2 * width)}
    return {tap: known[tap] for tap in RECIPES[name].taps}


@pytest.mark.parametrize("name", ["rkd", "pkt", "srd"])
def test_relations_need_two_images(name: str) -> None:
    method = build(name).method
    with pytest.raises(ConfigError, match=r"but this batch has 1; use at least 2"):
        method({"pooled": torch.randn(1, 16)}, {"pooled": torch.randn(1, 32)})


def test_crd_names_a_position_out_of_range() -> None:
    model = build("crd")
    images = dataclasses.replace(batch(torch.arange(8)), indices=torch.arange(20, 28))
    with pytest.raises(ConfigError, match="num_samples=24, but a batch has position 27"):
        model(images)


def test_vectors_of_another_batch_are_named() -> None:
    method = build("rkd").method
    with pytest.raises(
        IncompatibleModelsError, match=r"\(3, 16\) in the student and \(2, 32\) in the teacher"
    ):
        method({"pooled": torch.randn(3, 16)}, {"pooled": torch.randn(2, 32)})


def test_preparation_needs_every_class() -> None:
    method = NormDirection(3)
    method.setup({"pooled": vectors(2)}, {"pooled": vectors(2)})
    rows = {"pooled": torch.randn(2, 2)}
    with pytest.raises(ConfigError, match="no training image of class 2"):
        method.prepare([(rows, MethodContext(labels=torch.tensor([0, 1])))])
    with pytest.raises(ConfigError, match="num_classes=3, but an image has class 7"):
        method.prepare([(rows, MethodContext(labels=torch.tensor([0, 7])))])
    with pytest.raises(RuntimeError, match="prepare comes before the first forward"):
        method(rows, rows, MethodContext(labels=torch.tensor([0, 1])))


def test_mixed_labels_need_their_switch() -> None:
    student = {"logits": torch.randn(4, 5), "middle": torch.randn(4, 3)}
    specs = {"logits": vectors(5), "middle": vectors(3)}
    mixed = torch.tensor([[0.7, 0.3, 0, 0, 0]] * 4)
    method = USKD()
    method.setup(specs, {})
    assert not method.signed_terms
    with pytest.raises(ConfigError, match=r"use USKD\(mixed_labels=True\)"):
        method(student, {}, MethodContext(targets=mixed))
    method = USKD(mixed_labels=True)
    method.setup(specs, {})
    assert method.signed_terms == {"target"}
    terms = method(student, {}, MethodContext(targets=mixed))
    log_p = student["logits"].log_softmax(1)[:, :2]
    squares = log_p.exp().square()
    weights = squares + mixed[:, :2] - squares.mean(0)
    torch.testing.assert_close(terms["target"], -(weights * log_p).sum(1).mean())


def test_uskd_with_hard_labels_in_both_spellings() -> None:
    student = {"logits": torch.randn(4, 5), "middle": torch.randn(4, 6, 3)}
    specs = {"logits": vectors(5), "middle": TapSpec("tokens", (3,), num_tokens=6)}
    plain, mixed = USKD(), USKD(mixed_labels=True)
    for method in (plain, mixed):
        method.setup(specs, {})
    mixed.load_state_dict(plain.state_dict())
    targets = torch.tensor([0, 1, 2, 4])
    first, second = (method(student, {}, MethodContext(targets=targets)) for method in (plain, mixed))
    for name in ("target", "weak"):
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize("method", [DKD, NKD])
def test_mixed_targets_count_as_their_heaviest_class(method: type[Method]) -> None:
    compared = method()
    compared.setup({"logits": vectors(4)}, {"logits": vectors(4)})
    student, teacher = {"logits": torch.randn(2, 4)}, {"logits": torch.randn(2, 4)}
    mixed = torch.tensor([[0.1, 0.6, 0.3, 0.0], [0.4, 0.2, 0.2, 0.2]])
    first = compared(student, teacher, MethodContext(targets=mixed, labels=torch.tensor([2, 3])))
    second = compared(student, teacher, MethodContext(labels=torch.tensor([1, 0])))
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DKD(temperature=0), "temperature=0"),
        (lambda: DKD(head="tanh"), "'softmax', 'sigmoid'|softmax"),
        (lambda: DKD(target="none"), "label"),
        (lambda: NKD(temperature=-1), "temperature=-1"),
        (lambda: CRD(1), "num_samples=1"),
        (lambda: CRD(9, temperature=0), "temperature=0"),
        (lambda: CRD(9, momentum=1.0), r"momentum=1.0 in \[0, 1\)"),
        (lambda: NormDirection(0), "num_classes=0"),
        (lambda: ReviewKD(warmup_epochs=-1), "warmup_epochs=-1"),
    ],
)
def test_settings_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0.0, 0.05), (0.99, 0.05), (1.0, 0.1), (18.5, 0.95), (19.0, 1.0), (200.0, 1.0)]
)
def test_warm_up_grows_by_epochs_from_above_0(epoch: float, expected: float) -> None:
    assert WarmUp(20).factor(epoch) == pytest.approx(expected)
    assert WarmUp(0).factor(epoch) == 1.0


@pytest.mark.parametrize(
    "method", [DKD(warmup_epochs=4), DKD(warmup_epochs=4, target="teacher", head="sigmoid")]
)
def test_the_batch_tells_the_epoch(method: Method) -> None:
    method.setup({"logits": vectors(4)}, {"logits": vectors(4)})
    student, teacher = {"logits": torch.randn(2, 4)}, {"logits": torch.randn(2, 4)}
    labels = torch.tensor([1, 2])
    early, late = (method(student, teacher, MethodContext(labels=labels, epoch=e)) for e in (1.0, 9.0))
    for name in late:
        torch.testing.assert_close(early[name], late[name] / 2)


# --- the two readings of DKD ------------------------------------------------------------------------------------


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def test_the_softmax_splits_as_the_paper_says() -> None:
    student, teacher, target = torch.randn(6, 5).double(), torch.randn(6, 5).double(), torch.randint(5, (6,))
    tckd, nckd = softmax_split(student, teacher, target)
    whole = kl(teacher.softmax(1), student.softmax(1))
    of_target = teacher.softmax(1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(tckd + (1 - of_target) * nckd, whole)


def test_binary_classifiers_split_into_a_plain_sum() -> None:
    student, teacher, target = torch.randn(6, 5).double(), torch.randn(6, 5).double(), torch.randint(5, (6,))
    tckd, nckd = sigmoid_split(student, teacher, target)
    pairs = [torch.stack((logits.sigmoid(), 1 - logits.sigmoid()), -1) for logits in (teacher, student)]
    each = kl(*pairs)
    torch.testing.assert_close(tckd, each.gather(1, target[:, None]).squeeze(1))
    torch.testing.assert_close(tckd + nckd, each.sum(1))


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_dkd_of_equal_logits_is_0_and_never_below(head: str) -> None:
    method = DKD(target="teacher", head=head)
    spec = {"logits": TapSpec("tokens", (7,), num_tokens=4, num_levels=3)}
    method.setup(spec, spec)
    logits = 9 * torch.randn(3, 2, 4, 7)
    terms = method({"logits": logits + 1e-4}, {"logits": logits})
    for value in method({"logits": logits}, {"logits": logits}).values():
        assert 0 <= value < 1e-5
    assert all(value >= 0 for value in terms.values())


def test_drop_class() -> None:
    rows = torch.arange(12).reshape(3, 4)
    assert drop_class(rows, torch.tensor([0, 2, 3])).tolist() == [[1, 2, 3], [4, 5, 7], [8, 9, 10]]


# --- the distiller ----------------------------------------------------------------------------------------------


def test_a_method_without_a_teacher_reads_the_student() -> None:
    model = Distiller(
        convolutional(), convolutional(), USKD(), taps={"logits": "logits", "middle": "pooled", "pre": "pre"}
    )
    teacher_calls = []
    model.teacher.register_forward_hook(lambda *a: teacher_calls.append(1))
    losses = model(batch(torch.arange(8)))
    assert {"loss_cls", "loss_distill_target", "loss_distill_nontarget", "loss_distill_weak"} == set(losses)
    assert not teacher_calls


def test_a_tap_of_the_student_alone_may_be_spelled_for_both() -> None:
    taps = {
        "logits": "logits",
        "attention": {"student": RECIPES["masked_kd"].taps["attention"], "teacher": "nowhere"},
    }
    Distiller(transformer(), transformer(16), MaskedKD(4), taps=taps)
