"""The feed-forward layer in pieces against its three operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mokd_det.layers import feed_forward


def layers(dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 7).to(dtype), nn.Linear(7, 5).to(dtype)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 40, 3), (2, 512, 3), (5, 7, 61, 3), (0, 3)])
def test_output_and_gradients(shape: tuple[int, ...]) -> None:
    """One piece, exactly one, two whole ones and a part, and no rows at all."""
    first, second = layers()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    leaves = (x, *first.parameters(), *second.parameters())
    out, expected = feed_forward(x, first, second), second(F.gelu(first(x)))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    direction = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, direction)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, leaves, direction), rtol=1e-11, atol=1e-12
    )
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(x, first, second), expected, rtol=1e-12, atol=1e-14)


def test_rows_that_are_not_contiguous() -> None:
    first, second = layers()
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    turned = x.transpose(0, 2)[:, :, :]
    direction = torch.randn(6, 5, 4, dtype=torch.float64).transpose(1, 2)
    results = []
    for out in (feed_forward(turned, first, second), second(F.gelu(first(turned)))):
        results.append((out, *torch.autograd.grad(out, x, direction)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


def test_autocast_and_half_precision_go_through_the_layers() -> None:
    first, second = layers(torch.float32)
    x = torch.randn(4, 3)
    exact = feed_forward(x, first, second)
    with torch.autocast("cpu", torch.bfloat16):
        cast = feed_forward(x, first, second)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), exact, rtol=0.03, atol=0.03)
    half = feed_forward(x.bfloat16(), first.bfloat16(), second.bfloat16())
    torch.testing.assert_close(half.float(), exact, rtol=0.03, atol=0.03)


def test_a_layer_that_is_watched_or_replaced_is_called() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    first, second = layers()
    seen: list[str] = []
    removable = [
        first.register_forward_hook(lambda *_: seen.append("first")),
        second.register_full_backward_hook(lambda *_: seen.append("second, backwards")),
    ]
    feed_forward(x, first, second).sum().backward()
    assert seen == ["first", "second, backwards"]
    for handle in removable:
        handle.remove()
    feed_forward(x, first, second)
    assert len(seen) == 2

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    other = Doubled(7, 5).double()
    torch.testing.assert_close(feed_forward(x, first, other), other(F.gelu(first(x))))
