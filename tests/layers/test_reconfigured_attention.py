"""Reconfigured attention against attention written out token by token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mokd_det.layers import ReconfiguredAttention, masked_sine_encoding
from mokd_det.layers.reconfigured_attention import (
    attend_windows,
    merge_windows,
    partition_windows,
    shift_mask,
)


@pytest.fixture
def attention() -> ReconfiguredAttention:
    torch.manual_seed(0)
    module = ReconfiguredAttention(dim=8, num_heads=2, window_size=4).double()
    torch.nn.init.normal_(module.relative_position_bias_table)
    return module


def _attend(module: ReconfiguredAttention, query: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """One query (C,) against keys (K, C) that have been through the qkv layer's input, with bias (heads, K)."""
    dim, heads = len(query), module.num_heads
    q = (module.qkv.weight[:dim] @ query + module.qkv.bias[:dim]).view(heads, -1)
    k = (keys @ module.qkv.weight[dim : 2 * dim].T + module.qkv.bias[dim : 2 * dim]).view(
        len(keys), heads, -1
    )
    v = (keys @ module.qkv.weight[2 * dim :].T + module.qkv.bias[2 * dim :]).view(len(keys), heads, -1)
    scores = torch.einsum("hd,khd->hk", q, k) / (dim // heads) ** 0.5 + bias
    return torch.einsum("hk,khd->hd", scores.softmax(-1), v).flatten()


@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention(attention: ReconfiguredAttention, shift: int) -> None:
    """A 6x5 map in 4x4 windows: padding takes part, rolled cells from opposite edges are kept apart by -100."""
    height, width, size = 6, 5, 4
    patches = torch.randn(1, height, width, 8, dtype=torch.float64)
    out = attention.attend_windows(patches, shift)
    full = torch.zeros(8, 8, 8, dtype=torch.float64)
    full[:height, :width] = patches[0]
    rolled = full.roll((-shift, -shift), (0, 1))
    table = attention.relative_position_bias_table.view(2 * size - 1, 2 * size - 1, -1)

    def region(position: int) -> int:
        return 0 if position < 8 - size else (1 if position < 8 - shift else 2)

    for y in range(8):
        for x in range(8):
            window = [
                (r, c)
                for r in range(8)
                for c in range(8)
                if r // size == y // size and c // size == x // size
            ]
            bias = torch.stack([table[y - r + size - 1, x - c + size - 1] for r, c in window], -1)
            if shift:
                apart = [(region(y), region(x)) != (region(r), region(c)) for r, c in window]
                bias = bias - 100.0 * torch.tensor(apart, dtype=torch.float64)
            expected = _attend(attention, rolled[y, x], torch.stack([rolled[r, c] for r, c in window]), bias)
            row, column = (y + shift) % 8, (x + shift) % 8
            if row < height and column < width:
                torch.testing.assert_close(out[0, row, column], expected, rtol=1e-10, atol=1e-12)


def test_a_map_smaller_than_its_window() -> None:
    out = ReconfiguredAttention(dim=4, num_heads=1, window_size=4).attend_windows(torch.randn(1, 1, 1, 4), 2)
    assert out.shape == (1, 1, 1, 4) and torch.isfinite(out).all()


def test_products_are_pytorchs_attention() -> None:
    """With a bias that learns: outputs and gradients, which a GPU gets from PyTorch's; in bfloat16 closely."""
    torch.manual_seed(0)
    query, key, value, bias = leaves = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in [(4, 2, 5, 3)] * 3 + [(2, 5, 5)]
    ]
    results = []
    for attend in (attend_windows, lambda q, k, v, b: F.scaled_dot_product_attention(q, k, v, attn_mask=b)):
        out = attend(query, key, value, bias)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)
    half = attend_windows(*(leaf.bfloat16() for leaf in leaves))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), results[0][0], rtol=0.05, atol=0.05)


def test_det_attention_with_masked_patches(attention: ReconfiguredAttention) -> None:
    det = torch.randn(2, 3, 8, dtype=torch.float64)
    patches = torch.randn(2, 2, 3, 8, dtype=torch.float64)
    mask = torch.tensor([[[False, False, True], [False, False, True]], [[False] * 3] * 2])
    out = attention.attend_det(det, patches, mask)
    for image in range(2):
        keys = torch.cat((patches[image].flatten(0, 1), det[image]))
        bias = torch.cat((-100.0 * mask[image].flatten().double(), torch.zeros(3, dtype=torch.float64)))
        for token in range(3):
            expected = _attend(attention, det[image, token], keys, bias.expand(2, -1))
            torch.testing.assert_close(out[image, token], expected, rtol=1e-10, atol=1e-12)


def test_det_attention_alone_ignores_patches(attention: ReconfiguredAttention) -> None:
    det = torch.randn(1, 3, 8, dtype=torch.float64)
    one, other = torch.randn(2, 1, 4, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(attention(one, det)[1], attention(other, det)[1], rtol=0, atol=0)


def test_window_partition_round_trip() -> None:
    x = torch.arange(2 * 8 * 12 * 3).view(2, 8, 12, 3)
    windows = partition_windows(x, 4)
    assert windows.shape == (2 * 2 * 3, 16, 3)
    assert torch.equal(windows[1, 5], x[0, 1, 5])
    assert torch.equal(merge_windows(windows, 4, 8, 12), x)


def test_shift_mask_is_cached_and_trains_after_inference_mode() -> None:
    arguments = (8, 8, 4, 2, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        first = shift_mask(*arguments)
    assert shift_mask(*arguments) is first
    assert not first.is_inference()


def test_sine_encoding_spans_the_unpadded_part() -> None:
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[:, :, 4:] = True
    encoding = masked_sine_encoding(mask, 8)
    assert encoding.shape == (1, 4, 6, 8) and encoding.dtype == torch.float32
    angle = 2 * torch.pi * torch.arange(1, 5) / 4
    torch.testing.assert_close(
        encoding[0, :, 0, 0], angle.sin(), atol=1e-5, rtol=0
    )  # y: first half of the channels
    torch.testing.assert_close(encoding[0, :, 0, 1], angle.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        encoding[0, 0, :4, 4], angle.sin(), atol=1e-5, rtol=0
    )  # x over 4 unpadded columns
    torch.testing.assert_close(encoding[0, 0, 0, 6], (angle[0] / 100).sin(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        masked_sine_encoding(mask, 10)
