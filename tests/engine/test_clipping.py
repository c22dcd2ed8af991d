"""Gradients are clipped as torch clips them, from norms that are known already."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mokd_det.engine.clipping import clip_gradients


def _parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((40, 30), (7,), (3, 5, 5), ())]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return [*made, nn.Parameter(torch.zeros(2))]  # the last is not reached


@pytest.mark.parametrize(
    "clip", [{"max_norm": 0.1}, {"max_norm": 1e3}, {"max_norm": 0.5, "norm_type": float("inf")}]
)
def test_to_the_bit_as_torch(clip: dict[str, float]) -> None:
    ours, theirs, blind = _parameters(), _parameters(), _parameters()
    norms = torch._foreach_norm([p.grad for p in ours if p.grad is not None])
    totals = [
        clip_gradients(ours, norms, **clip),
        nn.utils.clip_grad_norm_(theirs, **clip),
        clip_gradients(blind, None, **clip),
    ]
    assert torch.equal(totals[0], totals[1]) and torch.equal(totals[2], totals[1])
    for a, b, c in zip(ours, theirs, blind, strict=True):
        assert (a.grad is b.grad is c.grad is None) or (
            torch.equal(a.grad, b.grad) and torch.equal(c.grad, b.grad)
        )


@pytest.mark.skipif(
    not hasattr(nn.utils, "clip_grads_with_norm_"), reason="torch before 2.6 reads them again"
)
def test_the_known_norms_are_not_computed_again() -> None:
    parameters = _parameters()
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    doubled = clip_gradients(parameters, [2 * norm for norm in norms], 0.1)
    again = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    torch.testing.assert_close(again, torch.tensor(0.05), rtol=1e-4, atol=0)
    torch.testing.assert_close(doubled, 2 * torch.stack(list(norms)).norm())
