"""The distillation methods on tap values."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from mokd_det.distillation.cholesky_qr import householder_qr
from mokd_det.distillation.methods import Method, MoKD, NoDistillation, ProjectorMatching, TokenMatching, VkD
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapSpec

PAIRS = ("patch_stride8", "patch_stride16", "patch_stride32", "patch_stride64", "neck", "head")

VKD_AS_MOKD = {
    "high_dimensional": False,
    "learn_teacher_subspace": False,
    "loss": "regression",
    "norm": "standardize",
    "student_norm": "after",
    "bias": True,
    "eps": 0.0,
    "mask_padding": False,
}


def make_methods() -> list[Method]:
    return [
        TokenMatching(),
        VkD(),
        MoKD(),
        MoKD(task="classification", bias=True),
        MoKD(norm="standardize", student_norm="before"),
        ProjectorMatching("mlp"),
        ProjectorMatching("ensemble", options={"relu": False}),
        ProjectorMatching("linear", norm="standardize", student_norm="before"),
    ]


def golden_projections(method: Method, wave) -> Method:
    """Give the method the orthogonal matrices of the stored losses."""
    method.double()
    layers = {n: m for n, m in method.named_modules() if isinstance(m, StiefelLinear)}
    with torch.no_grad():
        for index, key in enumerate(PAIRS):
            (layer,) = (m for n, m in layers.items() if n.split(".")[1] == key)
            layer.weight.copy_(householder_qr(wave((8, 8), 3.0 + 0.2 * index)))
    return method


def set_gain_and_bias(method: Method, gain: float, bias: float) -> None:
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith(("gain", "metric")):
                parameter.fill_(gain)
            elif name.endswith("bias"):
                parameter.fill_(bias)


@pytest.mark.parametrize("make", [lambda: VkD(eps=0, mask_padding=False), lambda: MoKD(**VKD_AS_MOKD)])
def test_vkd_and_the_same_setting_of_mokd_reproduce_the_published_loss(
    make, goldens, golden_taps, golden_specs, wave
) -> None:
    method = make()
    method.setup(golden_specs, golden_specs)
    golden_projections(method, wave)
    stored = goldens["losses"]["vkd_detection"]
    student, teacher = golden_taps("student"), golden_taps("teacher")
    terms = method(student, teacher)
    assert terms["patch"].item() == pytest.approx(sum(stored["parts"]["patch"]), abs=1e-10)
    # The stored names are the published code's: its body tokens are our neck, its neck tokens our head.
    assert terms["neck"].item() == pytest.approx(stored["parts"]["body"], abs=1e-10)
    assert terms["head"].item() == pytest.approx(stored["parts"]["neck"], abs=1e-10)
    for gain, bias, expected in ((1, 0, "value"), (2, 0.3, "gain_2_bias_0p3"), (-1, 0, "gain_minus1")):
        set_gain_and_bias(method, gain, bias)
        total = sum(method(student, teacher).values())
        assert total.item() == pytest.approx(stored[expected], abs=1e-10)


def test_vkd_and_the_same_setting_of_mokd_have_equal_gradients(golden_taps, golden_specs, wave) -> None:
    gradients = []
    for method in (VkD(eps=0, mask_padding=False), MoKD(**VKD_AS_MOKD)):
        method.setup(golden_specs, golden_specs)
        golden_projections(method, wave)
        student = golden_taps("student")
        leaves = [level.tensor.requires_grad_() for level in student["patch"]]
        leaves += [student["neck"].requires_grad_(), student["head"].requires_grad_()]
        sum(method(student, golden_taps("teacher")).values()).backward()
        projections = [m.weight.grad for m in method.modules() if isinstance(m, StiefelLinear)]
        gradients.append([leaf.grad for leaf in leaves] + projections)
    assert len(gradients[0]) == 12
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_subspace_the_standardised_taps_are_compared(goldens, golden_taps, golden_specs) -> None:
    method = MoKD(subspace=False, **VKD_AS_MOKD)
    method.setup(golden_specs, golden_specs)
    total = sum(method(golden_taps("student"), golden_taps("teacher")).values())
    assert total.item() == pytest.approx(goldens["losses"]["vkd_detection"]["no_projection"], abs=1e-10)
    assert not list(method.parameters())


def test_token_matching_reproduces_the_published_loss(goldens, golden_taps, golden_specs) -> None:
    method = TokenMatching(mask_padding=False)
    method.setup(golden_specs, golden_specs)
    terms = method(golden_taps("student"), golden_taps("teacher"))
    assert terms["tokens"].item() == pytest.approx(goldens["losses"]["token_matching"]["value"], abs=1e-10)


def test_token_matching_on_tokens_of_vidts_size(goldens, noise) -> None:
    sizes = ((32, 36), (16, 18), (8, 9), (4, 5))

    def taps(who: str) -> dict:
        maps = [noise(f"distil.{who}.patch.{i}", (2, 256, *size)) for i, size in enumerate(sizes)]
        return {
            "patch": [FeatureMap(m.requires_grad_(), None, 8 * 2**i) for i, m in enumerate(maps)],
            "neck": noise(f"distil.{who}.body", (2, 100, 256)).requires_grad_(),
            "head": noise(f"distil.{who}.neck", (7, 2, 100, 256)).requires_grad_(),
        }

    specs = {
        "patch": TapSpec("maps", (256,) * 4, (8, 16, 32, 64)),
        "neck": TapSpec("tokens", (256,), num_tokens=100),
        "head": TapSpec("tokens", (256,), num_tokens=100, num_levels=7),
    }
    method = TokenMatching(mask_padding=False)
    method.setup(specs, specs)
    student, teacher = taps("student"), taps("teacher")
    loss = method(student, teacher)["tokens"]
    loss.backward()
    stored = goldens["distil"]["f64"]
    assert loss.item() == pytest.approx(stored["loss_distil"], rel=1e-12)
    norms = [level.tensor.grad.norm().item() for level in student["patch"]]
    assert norms == pytest.approx(stored["grad_norm"]["patch"], rel=1e-9)
    assert student["neck"].grad.norm().item() == pytest.approx(stored["grad_norm"]["body"], rel=1e-9)
    assert student["head"].grad.norm().item() == pytest.approx(stored["grad_norm"]["neck"], rel=1e-9)
    assert teacher["neck"].grad is None and teacher["patch"][0].tensor.grad is None


def test_token_matching_of_equal_tokens_is_zero_with_gradient_zero(golden_taps, golden_specs) -> None:
    method = TokenMatching()
    method.setup(golden_specs, golden_specs)
    student = golden_taps("teacher")
    student["neck"].requires_grad_()
    loss = method(student, golden_taps("teacher"))["tokens"]
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student["neck"].grad, torch.zeros_like(student["neck"]))


@pytest.mark.parametrize("index", range(8))
def test_padded_cells_carry_no_signal_and_get_no_gradient(index, golden_specs) -> None:
    method = make_methods()[index]
    specs = {"patch": TapSpec("maps", (8,), (8,))}
    method.setup(specs, specs)
    method.double()
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, :, 4:] = True
    mask[1, 3:] = True
    student, teacher = torch.randn(2, 2, 8, 4, 6, dtype=torch.float64)
    student.requires_grad_()

    def loss(garbage: float, masks: tuple) -> torch.Tensor:
        maps = [
            [FeatureMap(torch.where(mask[:, None], garbage, tensor), m, 8)]
            for tensor, m in zip((student, teacher), masks, strict=True)
        ]
        (term,) = method({"patch": maps[0]}, {"patch": maps[1]}).values()
        return term

    value = loss(0.0, (mask, mask))
    torch.testing.assert_close(loss(50.0, (mask, mask)), value)
    torch.testing.assert_close(loss(-3.0, (mask, None)), value)
    torch.testing.assert_close(loss(-3.0, (None, mask)), value)
    assert abs(loss(5.0, (None, None)) - value) > 1e-6
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient[0, :, :, 4:].abs().max() == 0
    assert gradient[0, :, :, :4].abs().max() > 0

    rows = [t.permute(0, 2, 3, 1)[~mask] for t in (student, teacher)]
    tokens = {"patch": [FeatureMap(r.mT.reshape(1, 8, 1, -1), None, 8) for r in rows[:1]]}
    (alone,) = method(tokens, {"patch": [FeatureMap(rows[1].mT.reshape(1, 8, 1, -1), None, 8)]}).values()
    torch.testing.assert_close(value, alone)
    method.mask_padding = False
    torch.testing.assert_close(loss(5.0, (mask, mask)), loss(5.0, (None, None)))


@pytest.mark.parametrize("index", range(8))
def test_losses_under_bfloat16_autocast_are_those_of_float32(index, golden_taps, golden_specs) -> None:
    method = make_methods()[index]
    method.setup(golden_specs, golden_specs)

    def half(taps: dict) -> dict:
        maps = [dataclasses.replace(m, tensor=m.tensor.bfloat16()) for m in taps["patch"]]
        return {"patch": maps, "neck": taps["neck"].bfloat16(), "head": taps["head"].bfloat16()}

    def single(taps: dict) -> dict:
        maps = [dataclasses.replace(m, tensor=m.tensor.float()) for m in taps["patch"]]
        return {"patch": maps, "neck": taps["neck"].float(), "head": taps["head"].float()}

    student, teacher = half(golden_taps("student")), half(golden_taps("teacher"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method(student, teacher)
    plain = method(single(student), single(teacher))
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, plain[name])


def test_maps_are_matched_by_stride_and_not_by_position(golden_taps, golden_specs) -> None:
    reverse = dataclasses.replace(golden_specs["patch"], strides=(64, 32, 16, 8))
    specs = {"patch": golden_specs["patch"]}
    method = TokenMatching()
    method.setup(specs, {"patch": reverse})
    student, teacher = {"patch": golden_taps("student")["patch"]}, golden_taps("teacher")["patch"]
    torch.testing.assert_close(method(student, {"patch": teacher[::-1]}), method(student, {"patch": teacher}))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "message"),
    [
        (
            "neck",
            TapSpec("tokens", (8,), num_tokens=100),
            TapSpec("tokens", (8,), num_tokens=300),
            r"'neck': student tokens \(B, 100, 8\), teacher tokens \(B, 300, 8\); query i",
        ),
        (
            "head",
            TapSpec("tokens", (8,), num_tokens=9, num_levels=7),
            TapSpec("tokens", (8,), num_tokens=9, num_levels=5),
            r"tokens \(7, B, 9, 8\), teacher tokens \(5, B, 9, 8\).*decoder levels",
        ),
        (
            "patch",
            TapSpec("maps", (8, 8), (8, 16)),
            TapSpec("maps", (8, 8), (16, 32)),
            r"\(B, 8, H/8, W/8\), \(B, 8, H/16, W/16\), teacher maps \(B, 8, H/16.*H/32.*same strides",
        ),
        (
            "patch",
            TapSpec("maps", (8, 8), (8, 8)),
            TapSpec("maps", (8,), (8,)),
            "the student has one twice",
        ),
        (
            "patch",
            TapSpec("maps", (8,), (8,)),
            TapSpec("tokens", (8,)),
            "both must deliver maps, or both tokens",
        ),
    ],
)
@pytest.mark.parametrize("make", [TokenMatching, VkD, MoKD])
def test_taps_that_cannot_be_compared_are_refused_at_set_up(make, name, student, teacher, message) -> None:
    with pytest.raises(IncompatibleModelsError, match=message):
        make().setup({name: student}, {name: teacher})


def test_methods_without_a_projection_need_equal_channels() -> None:
    student, teacher = ({"neck": TapSpec("tokens", (c,), num_tokens=5)} for c in (8, 12))
    for method in (TokenMatching(), MoKD(subspace=False, high_dimensional=False)):
        with pytest.raises(IncompatibleModelsError, match=r"\(B, 5, 8\).*\(B, 5, 12\).*equal channels"):
            method.setup(student, teacher)
    for method in (VkD(), MoKD(), ProjectorMatching("mlp")):
        method.setup(student, teacher)
        assert method({"neck": torch.randn(2, 5, 8)}, {"neck": torch.randn(2, 5, 12)})["neck"] > 0


def test_sizes_that_differ_in_a_batch_are_named(golden_taps, golden_specs) -> None:
    method = VkD()
    method.setup(golden_specs, golden_specs)
    student, teacher = golden_taps("student"), golden_taps("teacher")
    with pytest.raises(IncompatibleModelsError, match=r"\(2, 4, 8\) in the student and \(2, 5, 8\)"):
        method({**student, "neck": student["neck"][:, :4]}, teacher)
    cut = [dataclasses.replace(m, tensor=m.tensor[..., 1:]) for m in teacher["patch"]]
    with pytest.raises(
        IncompatibleModelsError, match=r"stride 8: map of shape \(2, 8, 6, 5\).*\(2, 8, 6, 4\)"
    ):
        method(student, {**teacher, "patch": cut})
    with pytest.raises(IncompatibleModelsError, match="one model delivers maps and the other does not"):
        method({**student, "neck": student["patch"]}, teacher)


def test_set_up_comes_once_and_first(golden_taps, golden_specs) -> None:
    method = MoKD()
    with pytest.raises(RuntimeError, match="setup comes before"):
        method(golden_taps("student"), golden_taps("teacher"))
    method.setup(golden_specs, golden_specs)
    with pytest.raises(RuntimeError, match="set up already"):
        method.setup(golden_specs, golden_specs)
    with pytest.raises(IncompatibleModelsError, match="none is given"):
        MoKD().setup({}, {})
    with pytest.raises(IncompatibleModelsError, match=r"tapped at \['neck'\], the teacher at \[\]"):
        MoKD().setup({"neck": golden_specs["neck"]}, {})


def test_no_distillation_adds_nothing() -> None:
    method = NoDistillation()
    method.setup({}, {})
    method.after_step()
    assert method({}, {}) == {} and not list(method.parameters()) and method.diagnostics() == {}


def test_common_dimension_of_mokd(golden_specs) -> None:
    def dimensions(**options) -> set[int]:
        method = MoKD(**options)
        method.setup(golden_specs, {**golden_specs, "neck": TapSpec("tokens", (20,), num_tokens=5)})
        return {head.n for head in method.heads.values()}

    assert dimensions() == {64}
    assert dimensions(n=128) == {128}
    assert dimensions(high_dimensional=False) == {8, 20}
    with pytest.raises(ConfigError, match="high_dimensional=False"):
        MoKD(subspace=False)
    with pytest.raises(ConfigError, match="n=64 contradicts"):
        MoKD(n=64, high_dimensional=False)
    with pytest.raises(ConfigError, match="task='segmentation'"):
        MoKD(task="segmentation")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="loss='l2'"):
        MoKD(loss="l2")  # type: ignore[arg-type]


def test_each_task_has_its_reading_and_neither_a_bias() -> None:
    detection, classification = MoKD().head_options, MoKD(task="classification").head_options
    assert (detection["loss"], classification["loss"]) == ("similarity", "regression")
    assert detection["norm"] == classification["norm"] == "layer_norm"
    assert not detection["bias"] and not classification["bias"]
    assert MoKD(task="classification", loss="normalized_l1").head_options["loss"] == "normalized_l1"


def test_one_subspace_per_tap_and_map_level(golden_specs) -> None:
    method = MoKD()
    method.setup(golden_specs, golden_specs)
    assert tuple(method.heads) == PAIRS


@pytest.mark.parametrize("index", range(8))
def test_weight_decay_spares_projections_gains_and_biases(index, golden_specs) -> None:
    method = make_methods()[index]
    method.setup(golden_specs, golden_specs)
    spared = {id(p) for p in method.no_weight_decay_parameters()}
    decayed = {n for n, p in method.named_parameters() if id(p) not in spared}
    expected = {
        n
        for n, p in method.named_parameters()
        if isinstance(method, ProjectorMatching) and method.projector != "orthogonal" and p.ndim == 2
    }
    assert decayed == expected


def train(method: Method, optimizer: torch.optim.Optimizer, taps: tuple, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        sum(method(*taps).values()).backward()
        optimizer.step()
        method.after_step()


def test_orthogonality_after_training_steps_and_bit_equal_continuation_from_a_checkpoint(
    golden_taps, golden_specs
) -> None:
    taps = tuple(golden_taps(who) for who in ("student", "teacher"))
    for value in taps:
        value["patch"] = [dataclasses.replace(m, tensor=m.tensor.float()) for m in value["patch"]]
        value["neck"], value["head"] = value["neck"].float(), value["head"].float()

    def make() -> tuple[Method, torch.optim.Optimizer]:
        method = MoKD()
        method.setup(golden_specs, golden_specs)
        return method, torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0)

    method, optimizer = make()
    train(method, optimizer, taps, 5)
    saved = {k: v.clone() for k, v in method.state_dict().items()}
    saved_optimizer = copy.deepcopy(optimizer.state_dict())
    train(method, optimizer, taps, 5)
    resumed, resumed_optimizer = make()
    resumed.load_state_dict(saved)
    resumed_optimizer.load_state_dict(saved_optimizer)
    train(resumed, resumed_optimizer, taps, 5)
    for a, b in zip(method.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    numbers = method.diagnostics()
    assert max(v for k, v in numbers.items() if k.endswith("orthogonality_error")) <= 1e-5
    assert {f"{key}/negative_metric" for key in PAIRS} <= set(numbers)
    assert {f"{key}/target_effective_rank" for key in PAIRS} <= set(numbers)
