"""Tests of the Triton kernels, for a GPU or for Triton's interpreter on a CPU: `test_triton_kernel.py` runs them."""

from __future__ import annotations

import logging
import os
import warnings

import pytest
import torch

from mokd_det.layers import KERNELS, MultiScaleDeformableAttention
from mokd_det.layers.kernel_choice import kernel_problem
from tests.layers.sampling_cases import CASES, compare, make_inputs, outputs_and_gradients

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
LEVELS = [(3, 4), (2, 2)]
SIZES = (1, 2, 2, 4, 2)


@pytest.fixture(autouse=True)
def _numpy_divides_silently() -> None:
    # The interpreter computes with NumPy, which warns where the GPU does not.
    warnings.simplefilter("ignore", RuntimeWarning)


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(case: str) -> None:
    sizes, shapes = CASES[case]
    compare("triton", shapes, make_inputs(sizes, shapes), DEVICE, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spread", [0.1, 3.0, 1e6])
def test_near_and_far_points(spread: float) -> None:
    inputs = make_inputs(SIZES, LEVELS, spread, torch.float32)
    compare("triton", LEVELS, inputs, DEVICE, rtol=1e-5, atol=1e-5 * (1 + spread * 1e-6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_add_up_in_float32(dtype: torch.dtype) -> None:
    value, locations, weights = make_inputs((1, 2, 2, 8, 4), LEVELS, dtype=torch.float32)
    inputs = (value.to(dtype), locations, weights)
    step = torch.finfo(dtype).eps
    found = outputs_and_gradients("triton", LEVELS, [tensor.to(DEVICE) for tensor in inputs])
    exact = outputs_and_gradients("grid_sample", LEVELS, [tensor.double() for tensor in inputs])
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32, torch.float32]
    # One rounding of the result and one of the gradient that comes in, whatever number of terms.
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=2 * step, atol=8 * step)


def test_on_the_borders() -> None:
    """Exactly on cells, on the edges and half a cell outside: of both derivatives, the reference's."""
    value, _, weights = make_inputs((1, 5, 1, 3, 5), LEVELS, dtype=torch.float64)
    steps = torch.tensor([-0.125, 0.0, 0.125, 1.0, 1.125], dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)  # (Q, P, 2)
    locations = grid[None, :, None, None].expand(1, 5, 1, 2, 5, 2)
    compare("triton", LEVELS, (value, locations, weights), DEVICE, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("far", [float("inf"), float("-inf"), 1e30, -1e30])
def test_the_infinitely_far_reads_zero(far: float) -> None:
    value, locations, weights = make_inputs(SIZES, LEVELS, dtype=torch.float32)
    locations[..., 0] = far
    for tensor in outputs_and_gradients(
        "triton", LEVELS, [t.to(DEVICE) for t in (value, locations, weights)]
    ):
        assert not tensor.any()


def test_what_is_no_number_shows() -> None:
    value, locations, weights = make_inputs(SIZES, LEVELS, 0.1, torch.float32)
    locations[0, 0, 1, 0, 0, 1] = float("nan")
    output, *_ = outputs_and_gradients("triton", LEVELS, [t.to(DEVICE) for t in (value, locations, weights)])
    broken = output.view(1, 2, 2, 4).isnan()
    assert bool(broken[0, 0, 1].all()) and int(broken.sum()) == 4


def test_any_strides() -> None:
    value, locations, weights = make_inputs((2, 2, 2, 4, 2), LEVELS, dtype=torch.float32)
    expected = outputs_and_gradients("triton", LEVELS, [t.to(DEVICE) for t in (value, locations, weights)])
    strided = [
        value.to(DEVICE).permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        locations.to(DEVICE).permute(5, 1, 0, 2, 3, 4).contiguous().permute(2, 1, 3, 4, 5, 0),
        weights.to(DEVICE).transpose(0, 4).contiguous().transpose(0, 4),
    ]
    wide = torch.zeros(2, value.shape[1], 2, 8, device=DEVICE)
    wide[..., :4] = value.to(DEVICE)
    for values in (strided[0], wide[..., :4]):
        assert not values.is_contiguous()
        leaves = [values.detach().requires_grad_(), *(t.detach().requires_grad_() for t in strided[1:])]
        output = KERNELS["triton"](leaves[0], LEVELS, *leaves[1:])
        torch.testing.assert_close(output.detach(), expected[0])
        # A gradient of any strides comes in too.
        upstream = (0.37 * torch.arange(output.numel(), device=DEVICE).view(output.shape)).cos()
        gradients = torch.autograd.grad(output, leaves, upstream.transpose(0, 1).contiguous().transpose(0, 1))
        torch.testing.assert_close(list(gradients), expected[1:], rtol=1e-5, atol=1e-5)


def test_gradients_by_differences() -> None:
    sizes, shapes = (1, 1, 1, 3, 2), [(3, 4), (1, 1)]
    leaves = [t.to(DEVICE).requires_grad_() for t in make_inputs(sizes, shapes, 0.4)]
    assert torch.autograd.gradcheck(
        lambda v, p, w: KERNELS["triton"](v, shapes, p, w),
        leaves,
        atol=1e-7,
        fast_mode=True,
        nondet_tol=1e-12,
    )


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_is_asked_for(wanted: int) -> None:
    inputs = [t.to(DEVICE) for t in make_inputs(SIZES, LEVELS)]
    expected = outputs_and_gradients("triton", LEVELS, inputs)
    leaf = inputs[wanted].requires_grad_()
    output = KERNELS["triton"](inputs[0], LEVELS, *inputs[1:])
    steps = torch.arange(output.numel(), dtype=torch.float64, device=DEVICE).view(output.shape)
    (gradient,) = torch.autograd.grad(output, leaf, (0.37 * steps).cos())
    torch.testing.assert_close(gradient, expected[1 + wanted])


def test_deterministic_algorithms(caplog: pytest.LogCaptureFixture) -> None:
    from mokd_det.layers import triton_kernel

    triton_kernel._tell_determinism.cache_clear()
    # Many points read the same cells: sums of many terms.
    inputs = [t.to(DEVICE) for t in make_inputs((1, 3, 1, 3, 4), LEVELS, 0.1, torch.float32)]
    torch.use_deterministic_algorithms(True)
    try:
        with caplog.at_level(logging.INFO, logger="mokd_det"):
            first = outputs_and_gradients("triton", LEVELS, inputs)
            second = outputs_and_gradients("triton", LEVELS, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert [record.message for record in caplog.records if "deterministic" in record.message] == [
        "torch.use_deterministic_algorithms: deformable attention sorts the rows of its value's gradient and adds them "
        "in order, which takes longer than atomic operations"
    ]
    compare("triton", LEVELS, inputs, DEVICE, rtol=1e-5, atol=1e-5)


def test_the_trial_passes() -> None:
    assert kernel_problem("triton", torch.device(DEVICE)) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(8, num_heads=2, num_levels=2, num_points=2, kernel="triton").to(
        DEVICE
    )
    reference = torch.rand(1, 3, 2, 4, device=DEVICE)
    query, value = torch.randn(1, 3, 8, device=DEVICE), torch.randn(1, 16, 8, device=DEVICE)
    exact = module(query, reference, value, LEVELS)
    with torch.autocast(DEVICE, dtype=dtype):
        rounded = module(query, reference, value, LEVELS)
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.03)
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
