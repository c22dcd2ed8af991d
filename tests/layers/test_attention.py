"""Attention by products against PyTorch's own, its gradients, and the layouts it takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mokd_det.layers import attend
from mokd_det.layers.attention import attend_packed
from mokd_det.layers.reconfigured_attention import (
    ReconfiguredAttention,
    build_shift_mask,
    window_index,
)


def reference(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if bias is not None:
        logits = logits + bias
    return (logits.softmax(-1) @ value).transpose(1, 2)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("mask_shape", [None, (2, 1, 1, 7), (2, 3, 5, 7)])
def test_attend(mask_shape: tuple[int, ...] | None) -> None:
    """Five queries of other strides than their seven keys and values."""
    packed, key, value = tensors((2, 5, 3, 2, 4), (2, 7, 3, 4), (2, 7, 3, 4))
    query = packed[:, :, :, 1]
    mask = None if mask_shape is None else torch.randn(mask_shape, dtype=torch.float64)
    out, expected = attend(query, key, value, mask=mask), reference(query, key, value, mask)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    direction = torch.randn_like(out)
    found = torch.autograd.grad(out, (packed, key, value), direction)
    wanted = torch.autograd.grad(expected, (packed, key, value), direction)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("windows", [None, 2])
def test_attend_packed(biased: bool, windows: int | None) -> None:
    """Two images of two windows."""
    packed, bias = tensors((4, 5, 3, 2, 3), (2, 5, 5))
    mask = None if windows is None else torch.randn(windows, 5, 5, dtype=torch.float64)
    out = attend_packed(packed, bias if biased else None, mask)
    total = bias if biased else torch.zeros_like(bias)
    if mask is not None:
        total = total + mask[:, None].repeat(2, 1, 1, 1)
    expected = reference(*packed.unbind(2), total)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    direction = torch.randn_like(out)
    leaves = (packed, bias) if biased else (packed,)
    found = torch.autograd.grad(out, leaves, direction)
    wanted = torch.autograd.grad(expected, leaves, direction)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_and_float32_agree(masked: bool) -> None:
    """bfloat16 goes through PyTorch's attention, float32 does not."""
    packed, bias = (x.detach().float() for x in tensors((4, 5, 3, 2, 8), (2, 5, 5)))
    mask = torch.zeros(2, 5, 5).masked_fill(torch.rand(2, 5, 5) < 0.3, -100.0) if masked else None
    full = attend_packed(packed, bias, mask)
    half = attend_packed(packed.bfloat16(), bias.bfloat16(), None if mask is None else mask.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.03, atol=0.03)
    query, key, value = packed.unbind(2)
    half = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    torch.testing.assert_close(half.float(), attend(query, key, value), rtol=0.03, atol=0.03)


def test_gradients_with_dropped_weights() -> None:
    """The same seed draws the same mask, so finite differences see a smooth function."""
    query, key, value = tensors((1, 3, 2, 2), (1, 4, 2, 2), (1, 4, 2, 2))

    def run(*inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend(*inputs, dropout=0.4)

    assert torch.autograd.gradcheck(run, (query, key, value))
    assert not torch.equal(run(query, key, value), attend(query, key, value))


def test_dropped_weights_keep_their_mean() -> None:
    query, key = (x.detach() for x in tensors((1, 2, 1, 4), (1, 3, 1, 4)))
    value = torch.eye(3, dtype=torch.float64)[None, :, None]
    many = attend(*(x.expand(20000, -1, -1, -1) for x in (query, key, value)), dropout=0.25)
    torch.testing.assert_close(many.mean(0, keepdim=True), attend(query, key, value), rtol=0.03, atol=0.0)
    torch.testing.assert_close((many == 0).double().mean(), torch.tensor(0.25).double(), rtol=0, atol=0.01)


def test_a_second_derivative_is_refused() -> None:
    """And not silently wrong: the backward keeps weights that have no graph."""
    query, key, value = tensors((1, 2, 1, 2), (1, 2, 1, 2), (1, 2, 1, 2))
    (first,) = torch.autograd.grad(attend(query, key, value).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("height", "width", "shift"), [(8, 12, 0), (8, 12, 2), (6, 5, 0), (6, 5, 2), (3, 9, 1)]
)
def test_windows_by_index_are_those_by_padding_and_rolling(height: int, width: int, shift: int) -> None:
    torch.manual_seed(0)
    module = ReconfiguredAttention(dim=8, num_heads=2, window_size=4).double()
    torch.nn.init.normal_(module.relative_position_bias_table)
    patches = torch.randn(2, height, width, 8, dtype=torch.float64, requires_grad=True)
    leaves = (patches, module.relative_position_bias_table, module.qkv.weight, module.qkv.bias)
    direction = torch.randn(2, height, width, 8, dtype=torch.float64)
    results = []
    for path in (module.attend_windows, module._attend_rolled):
        out = path(patches, shift)
        results.append((out, *torch.autograd.grad(out, leaves, direction)))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


def test_window_index_is_kept_and_trains_after_inference_mode() -> None:
    arguments = (2, 6, 5, 4, 2, torch.device("cpu"))
    with torch.inference_mode():
        first = window_index(*arguments)
    assert window_index(*arguments) is first
    assert not any(x.is_inference() for x in first)
    assert len(first.cells) == 2 * 8 * 8 and len(first.padding) == 2 * (64 - 30)
    assert torch.equal(first.cells[first.places], torch.arange(60))


def test_one_query_and_one_window() -> None:
    """Sizes of 1, and a map smaller than its window."""
    query, key, value = tensors((1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1))
    torch.testing.assert_close(attend(query, key, value), value, rtol=0, atol=0)
    module = ReconfiguredAttention(dim=4, num_heads=1, window_size=4)
    out = module.attend_windows(torch.randn(1, 1, 1, 4), shift=2)
    assert out.shape == (1, 1, 1, 4) and torch.isfinite(out).all()
    assert build_shift_mask(4, 4, 4, 2, torch.device("cpu"), torch.float32).shape == (1, 16, 16)


def test_bias_of_pytorch() -> None:
    """A bias is added before the softmax as PyTorch adds it."""
    packed, bias = tensors((2, 5, 3, 2, 4), (2, 5, 5))
    query, key, value = (x.transpose(1, 2) for x in packed.unbind(2))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(attend_packed(packed, bias), expected.transpose(1, 2), rtol=1e-12, atol=1e-14)
