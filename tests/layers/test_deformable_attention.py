"""Deformable attention against a scalar-by-scalar formulation, and its gradients."""

from __future__ import annotations

import importlib
import math
import re
import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mokd_det.errors import ConfigError
from mokd_det.layers import (
    KERNELS,
    MultiScaleDeformableAttention,
    choose_kernel,
    kernel_choice,
    register_kernel,
)
from mokd_det.layers.fused_kernel import fused_sampling
from mokd_det.layers.optional_kernels import PACKAGES, torch_ms_deform_attn_kernel
from tests.layers.sampling_cases import CASES, compare, make_inputs, outputs_and_gradients

# Those for a CPU; Triton's are in test_triton_kernel.py.
ON_CPU = ["fused", "gather", "grid_sample", *({"torch_ms_deform_attn"} & set(KERNELS))]

SHAPES = [(5, 7), (3, 2), (1, 1)]


def _inputs(spread: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    cells = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, cells, 2, 3, generator=generator, dtype=torch.float64)
    locations = 0.5 + spread * torch.randn(
        2, 4, 2, len(SHAPES), 3, 2, generator=generator, dtype=torch.float64
    )
    weights = torch.rand(2, 4, 2, len(SHAPES), 3, generator=generator, dtype=torch.float64)
    return value, locations, weights


def _by_hand(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels and points of weight times the bilinear read, one number at a time."""
    batch, queries, heads, levels, points, _ = locations.shape
    channels = value.shape[-1]
    out = torch.zeros(batch, queries, heads, channels, dtype=value.dtype)
    for index in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, queries, heads, levels, points))
    ).tolist():
        b, q, m, level, p = index
        height, width = SHAPES[level]
        start = sum(h * w for h, w in SHAPES[:level])
        x = locations[b, q, m, level, p, 0].item() * width - 0.5
        y = locations[b, q, m, level, p, 1].item() * height - 0.5
        for dy in (0, 1):
            for dx in (0, 1):
                column, row = math.floor(x) + dx, math.floor(y) + dy
                if 0 <= column < width and 0 <= row < height:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, m, level, p]
                    out[b, q, m] += share * value[b, start + row * width + column, m]
    return out.flatten(2)


@pytest.mark.parametrize("kernel", ON_CPU)
@pytest.mark.parametrize("spread", [0.1, 0.6, 100.0], ids=["inside", "across the border", "far outside"])
def test_kernel_equals_the_definition(kernel: str, spread: float) -> None:
    inputs = _inputs(spread)
    value, locations, weights = inputs
    torch.testing.assert_close(
        KERNELS[kernel](value, SHAPES, locations, weights), _by_hand(*inputs), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kernel", ON_CPU)
def test_kernel_gradients(kernel: str) -> None:
    value, locations, weights = (x[:1, : 43 if i == 0 else 2].clone() for i, x in enumerate(_inputs()))
    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: KERNELS[kernel](v, SHAPES, p, w), tensors, atol=1e-7)


def test_initial_offsets_point_in_a_direction_per_head_and_grow_with_the_point() -> None:
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    offsets = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        torch.testing.assert_close(offsets[:, 0, point], expected * (point + 1), atol=1e-6, rtol=0)
        torch.testing.assert_close(offsets[:, 1, point], offsets[:, 0, point])
    assert not module.sampling_offsets.weight.any() and not module.attention_weights.weight.any()


def test_padding_reads_as_zero_and_points_stay_finite() -> None:
    module = MultiScaleDeformableAttention(8, num_heads=2, num_levels=3, num_points=2).double()
    cells = sum(h * w for h, w in SHAPES)
    query, value = torch.randn(1, 4, 8, dtype=torch.float64), torch.randn(1, cells, 8, dtype=torch.float64)
    reference = torch.rand(1, 4, 3, 2, dtype=torch.float64)
    everything = torch.ones(1, cells, dtype=torch.bool)
    out = module(query, reference, value, SHAPES, everything)
    torch.testing.assert_close(out, module.output_proj.bias.expand_as(out))
    garbage = value.clone().masked_fill(everything[..., None], 1e6)
    torch.testing.assert_close(module(query, reference, garbage, SHAPES, everything), out)


@pytest.mark.parametrize("kernel", ["auto", *ON_CPU])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_samples_in_float32(kernel: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(8, num_heads=2, num_levels=3, num_points=2, kernel=kernel)
    cells = sum(h * w for h, w in SHAPES)
    query, value, reference = torch.randn(1, 4, 8), torch.randn(1, cells, 8), torch.rand(1, 4, 3, 4)
    exact = module(query, reference, value, SHAPES)
    with torch.autocast("cpu", dtype=dtype):
        rounded = module(query, reference, value, SHAPES)
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


@pytest.mark.parametrize("kernel", ON_CPU)
@pytest.mark.parametrize("case", CASES)
def test_odd_sizes(kernel: str, case: str) -> None:
    sizes, shapes = CASES[case]
    compare(kernel, shapes, make_inputs(sizes, shapes), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", ON_CPU)
def test_gradients_on_the_borders(kernel: str) -> None:
    """On cells, on edges, half a cell outside: of the two derivatives there, all kernels have the same."""
    shapes = [(4, 4), (2, 2)]
    value, _, weights = make_inputs((1, 5, 1, 3, 5), shapes)
    steps = torch.tensor([-0.125, 0.0, 0.125, 1.0, 1.125], dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)  # (Q, P, 2)
    locations = grid[None, :, None, None].expand(1, 5, 1, 2, 5, 2)
    compare(kernel, shapes, (value, locations, weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("far", [math.inf, -math.inf, 1e30, -1e30])
def test_fused_reads_zero_infinitely_far(far: float) -> None:
    value, locations, weights = make_inputs((1, 2, 2, 4, 2), [(3, 4), (2, 2)], dtype=torch.float32)
    locations[..., 0] = far
    for tensor in outputs_and_gradients("fused", [(3, 4), (2, 2)], (value, locations, weights)):
        assert not tensor.any()


@pytest.mark.parametrize("kernel", ["fused", "gather", "grid_sample"])
def test_a_location_that_is_no_number_shows(kernel: str) -> None:
    value, locations, weights = make_inputs((1, 2, 2, 4, 2), [(3, 4), (2, 2)], 0.1, torch.float32)
    locations[0, 0, 1, 0, 0, 1] = math.nan
    output, *_ = outputs_and_gradients(kernel, [(3, 4), (2, 2)], (value, locations, weights))
    broken = output.view(1, 2, 2, 4).isnan()
    assert bool(broken[0, 0, 1].all()) and int(broken.sum()) == 4


def test_fused_takes_any_strides() -> None:
    shapes = [(3, 4), (2, 2)]
    inputs = make_inputs((2, 3, 2, 4, 2), shapes)
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in inputs]
    assert not any(t.is_contiguous() for t in strided)
    for one, other in zip(
        outputs_and_gradients("fused", shapes, strided), outputs_and_gradients("fused", shapes, inputs)
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_fused_gradients_alone(wanted: int) -> None:
    shapes = [(3, 4), (2, 2)]
    inputs = list(make_inputs((2, 3, 2, 4, 2), shapes))
    expected = outputs_and_gradients("fused", shapes, inputs)[1 + wanted]
    inputs[wanted].requires_grad_()
    output = KERNELS["fused"](inputs[0], shapes, *inputs[1:])
    steps = torch.arange(output.numel(), dtype=torch.float64).view(output.shape)
    (gradient,) = torch.autograd.grad(output, inputs[wanted], (0.37 * steps).cos())
    assert torch.equal(gradient, expected)


def test_fused_reads_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(3, 4), (2, 2)]
    inputs = make_inputs((2, 5, 2, 4, 2), shapes)
    whole = outputs_and_gradients("fused", shapes, inputs)
    # one query and head at a time, and three
    for count in (1, 3 * 4 * 4 * 4):
        monkeypatch.setattr(importlib.import_module("mokd_det.layers.fused_kernel"), "_READ_AT_ONCE", count)
        for one, other in zip(whole, outputs_and_gradients("fused", shapes, inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_fused_sums_do_not_depend_on_the_threads() -> None:
    shapes = [(24, 32), (12, 16), (6, 8), (3, 4)]
    inputs = make_inputs((2, 60, 8, 32, 4), shapes, 0.3, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients("fused", shapes, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_fused_with_padding_and_its_total() -> None:
    shapes = [(3, 4), (2, 2)]
    tensors = [t.requires_grad_() for t in make_inputs((2, 2, 2, 3, 2), shapes, 0.4)]
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3::4] = mask[1, 10:] = True
    assert torch.autograd.gradcheck(lambda *x: fused_sampling(x[0], shapes, *x[1:], mask), tensors, atol=1e-7)
    output, total = fused_sampling(tensors[0], shapes, *tensors[1:], mask)
    zeroed = tensors[0].masked_fill(mask[..., None, None], 0.0)
    torch.testing.assert_close(output, KERNELS["grid_sample"](zeroed, shapes, *tensors[1:]))
    ones = torch.ones_like(tensors[0][..., :1]).masked_fill(mask[..., None, None], 0.0)
    torch.testing.assert_close(total, KERNELS["grid_sample"](ones, shapes, *tensors[1:]))
    # the total alone
    (gradient,) = torch.autograd.grad(
        fused_sampling(tensors[0], shapes, *tensors[1:], mask)[1].sum(), tensors[2]
    )
    assert gradient.shape == tensors[2].shape and bool(gradient.any())


@pytest.mark.parametrize("coordinates", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize("masked", [False, True])
def test_sampling_and_projection_commute(coordinates: int, masked: bool) -> None:
    """With few queries and many cells "auto" projects last: the same numbers, for every gradient."""
    torch.manual_seed(0)
    shapes = [(24, 30), (12, 15)]
    cells = sum(h * w for h, w in shapes)
    modules = [
        MultiScaleDeformableAttention(16, 2, 2, 3, kernel=name).double() for name in ("auto", "grid_sample")
    ]
    with torch.no_grad():
        for parameter in modules[0].parameters():
            parameter.normal_(std=0.3)
    modules[1].load_state_dict(modules[0].state_dict())
    reference = torch.rand(2, 3, 2, coordinates, dtype=torch.float64)
    query, value = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, cells, 16, dtype=torch.float64)
    mask = torch.rand(2, cells) < 0.3 if masked else None
    results = []
    for module in modules:
        leaves = [query.clone().requires_grad_(), value.clone().requires_grad_(), *module.parameters()]
        assert module.kernel != "auto" or module._is_projected_last(query, value)
        output = module(leaves[0], reference, leaves[1], shapes, mask)
        results.append([output, *torch.autograd.grad(output.sin().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_watched_projection_is_at_work() -> None:
    module = MultiScaleDeformableAttention(16, 2, 1, 1)
    query, value = torch.randn(1, 2, 16), torch.randn(1, 900, 16)
    reference, shapes = torch.rand(1, 2, 1, 2), [(30, 30)]
    expected = module(query, reference, value, shapes)
    seen = []
    handle = module.value_proj.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    torch.testing.assert_close(module(query, reference, value, shapes), expected)
    assert seen == [(1, 900, 16)]
    handle.remove()
    module(query, reference, value, shapes)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_where_the_projection_comes_last(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(16, 2, 1, 2)
    query, value, reference = torch.randn(1, 2, 16), torch.randn(1, 2000, 16), torch.rand(1, 2, 1, 4)
    exact = module(query, reference, value, [(40, 50)])
    with torch.autocast("cpu", dtype=dtype):
        assert module._is_projected_last(query, value)
        rounded = module(query, reference, value, [(40, 50)])
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)
    module.to(dtype)
    rounded = module(query.to(dtype), reference, value.to(dtype), [(40, 50)])
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.filterwarnings("ignore")  # what tracing says of itself
def test_auto_is_the_fused_kernel_on_a_cpu_and_grid_sample_in_a_graph() -> None:
    torch.manual_seed(0)
    modules = {
        name: MultiScaleDeformableAttention(8, num_heads=2, num_levels=3, num_points=2, kernel=name)
        for name in ("auto", "fused", "grid_sample")
    }
    assert MultiScaleDeformableAttention(8, num_heads=2).kernel == "auto"
    for module in modules.values():
        module.load_state_dict(modules["auto"].state_dict())
    query, reference = torch.randn(1, 4, 8), torch.rand(1, 4, 3, 4)
    value = torch.randn(1, sum(h * w for h, w in SHAPES), 8)
    outputs = {name: module(query, reference, value, SHAPES) for name, module in modules.items()}
    assert torch.equal(outputs["auto"], outputs["fused"])
    torch.testing.assert_close(outputs["auto"], outputs["grid_sample"])
    traced = torch.jit.trace(
        modules["auto"], (query, reference, value, torch.tensor(SHAPES)), check_trace=False, strict=False
    )
    assert "aten::grid_sampler" in str(traced.inlined_graph)


CUDA = torch.device("cuda", 0)


@pytest.fixture()
def choice(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which kernels have which problem on a GPU."""

    def problems(**found: str | None) -> None:
        monkeypatch.setattr(kernel_choice, "kernel_problem", lambda name, device: found[name])
        kernel_choice._choose_on_cuda.cache_clear()

    yield problems
    kernel_choice._choose_on_cuda.cache_clear()


def test_cuda_takes_triton(choice: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    choice(triton=None)
    assert choose_kernel(CUDA) == "triton" and not caplog.records


def test_cuda_without_triton_says_why_once(
    choice: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    choice(triton="RuntimeError: no C compiler", torch_ms_deform_attn="the package is not installed")
    assert [choose_kernel(CUDA) for _ in range(3)] == ["grid_sample"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "Deformable attention on cuda:0 samples by 'grid_sample' (triton: RuntimeError: no C compiler; "
        "torch_ms_deform_attn: the package is not installed)"
    ]
    choice(triton="RuntimeError: no C compiler", torch_ms_deform_attn=None)
    assert choose_kernel(CUDA) == "torch_ms_deform_attn" and len(caplog.records) == 2


def test_cuda_stays_deterministic(choice: Callable[..., None]) -> None:
    choice(triton="not here", torch_ms_deform_attn=None)
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_kernel(CUDA) == "fused"
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_trial_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    problem = kernel_choice.kernel_problem.__wrapped__

    def broken(*_: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease set CC")

    monkeypatch.setitem(KERNELS, "broken", broken)
    monkeypatch.setitem(KERNELS, "wrong", lambda *inputs: KERNELS["fused"](*inputs) * 1.01)
    generator = torch.random.get_rng_state()
    assert problem("fused", cpu) is None
    with torch.inference_mode():
        assert problem("gather", cpu) is None
    assert problem("broken", cpu) == "RuntimeError: Failed to find C compiler."
    assert re.fullmatch(r"wrong by 0\.\d+ in a trial", problem("wrong", cpu))
    assert torch.equal(torch.random.get_rng_state(), generator)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KERNELS, name, raising=False)
    package = PACKAGES[name]
    with pytest.raises(
        ConfigError, match=f"kernel '{name}' needs the package {package}: pip install {package}"
    ):
        MultiScaleDeformableAttention(kernel=name)
    assert kernel_choice.kernel_problem.__wrapped__(name, CUDA) == f"the package {package} is not installed"


def test_a_cuda_kernel_refuses_a_cpu() -> None:
    inputs = make_inputs((1, 2, 1, 4, 2), [(3, 4)], dtype=torch.float32)
    with pytest.raises(ConfigError, match='kernel "triton" needs tensors on CUDA, not on cpu; "auto" runs'):
        KERNELS["triton"](inputs[0], [(3, 4)], *inputs[1:])


def test_what_the_compiled_operator_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that has the signature of torch-ms-deform-attn 0.1.1."""
    shapes = [(3, 4), (2, 2)]
    value, locations, weights = make_inputs((2, 3, 2, 4, 2), shapes)

    def operator(value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        assert sizes.dtype == starts.dtype == torch.int64 and starts.tolist() == [0, 12]
        assert value.is_contiguous() and locations.is_contiguous() and weights.is_contiguous()
        return KERNELS["grid_sample"](value, [(h, w) for h, w in sizes.tolist()], locations, weights)

    monkeypatch.setitem(sys.modules, "torch_ms_deform_attn", types.SimpleNamespace(ms_deform_attn=operator))
    monkeypatch.setitem(KERNELS, "stand-in", torch_ms_deform_attn_kernel)
    compare(
        "stand-in", shapes, (value, locations.transpose(0, 1).contiguous().transpose(0, 1), weights), **EXACT
    )
    compare("stand-in", shapes, make_inputs((2, 0, 2, 4, 2), shapes), **EXACT)


EXACT = {"rtol": 1e-12, "atol": 1e-12}


def test_unknown_and_duplicate_kernels() -> None:
    with pytest.raises(
        ConfigError, match="unknown deformable attention kernel 'cuda'; there are auto, fused, gather"
    ):
        MultiScaleDeformableAttention(kernel="cuda")
    with pytest.raises(ValueError, match="exists already"):
        register_kernel("grid_sample")(KERNELS["grid_sample"])
