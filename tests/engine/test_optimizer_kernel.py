"""Adam and AdamW with one kernel for all tensors: which they take, and that they remain the same optimisers."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from mokd_det.engine.optimizer import with_fast_kernel


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,), (2, 2, 2))]


def groups(tensors: list[nn.Parameter]) -> list[dict]:
    return [
        {"name": "decay", "params": tensors[:1], "weight_decay": 0.1, "lr": 3e-3},
        {"name": "no_decay", "params": tensors[1:], "weight_decay": 0.0},
    ]


def set_gradients(tensors: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.grad = torch.randn(tensor.shape, generator=generator)


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [
        value.clone()
        for state in optimizer.state.values()
        for value in (*state.values(),)
        if value is not None
    ]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_steps_are_those_of_the_plain_loop(kind) -> None:
    ours, theirs = parameters(), parameters()
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6}
    fast = with_fast_kernel(kind(groups(ours), **options))
    plain = kind(groups(theirs), **options, fused=False, foreach=False)
    assert type(fast) is kind
    assert [group["name"] for group in fast.param_groups] == ["decay", "no_decay"]
    assert all(group["fused"] for group in fast.param_groups)
    for key in ("lr", "betas", "eps", "weight_decay"):
        assert [g[key] for g in fast.param_groups] == [g[key] for g in plain.param_groups]
    for step in range(20):
        for optimizer, tensors in ((fast, ours), (plain, theirs)):
            set_gradients(tensors, step)
            if step == 7:
                tensors[1].grad = None
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


LAYOUTS = {
    "transposed gradient": lambda p, g: (p, g.mT.contiguous().mT),
    "expanded gradient": lambda p, g: (p, g[:1].expand_as(g)),
    "transposed parameter": lambda p, g: (p.mT.contiguous().mT, g),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_are_paired_by_place_and_not_by_memory(layout) -> None:
    """The fused kernel does the latter, silently: balancers set gradients whose strides are not the parameter's."""

    def made(fast: bool) -> nn.Parameter:
        generator = torch.Generator().manual_seed(0)
        start, gradient = LAYOUTS[layout](
            torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
        )
        parameter = nn.Parameter(start)
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        optimizer = with_fast_kernel(optimizer) if fast else optimizer
        for factor in (1.0, -2.0, 3.0):
            parameter.grad = gradient if "expanded" in layout else gradient * factor
            optimizer.step()
        return parameter

    torch.testing.assert_close(made(fast=True), made(fast=False), rtol=1e-5, atol=1e-6)


def test_moments_of_a_file_are_paired_by_place_too() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 5, 3, generator=generator)
    turned = nn.Parameter(start.mT.contiguous().mT)
    first = torch.optim.AdamW([turned], lr=0.1)
    turned.grad = gradient.clone()
    first.step()
    assert first.state[turned]["exp_avg"].stride() == (1, 5)
    straight = nn.Parameter(turned.detach().contiguous())
    second = with_fast_kernel(torch.optim.AdamW([straight], lr=0.1))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for parameter, optimizer in ((turned, first), (straight, second)):
        parameter.grad = 2 * gradient
        optimizer.step()
    torch.testing.assert_close(straight, turned, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "chosen", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"capturable": True}]
)
def test_a_choice_of_the_configuration_stands(chosen) -> None:
    optimizer = torch.optim.AdamW(parameters(), **chosen)
    assert with_fast_kernel(optimizer) is optimizer


def test_other_optimizers_stay_as_they_are() -> None:
    class Mine(torch.optim.AdamW):
        pass

    for optimizer in (torch.optim.SGD(parameters(), lr=0.1), Mine(parameters())):
        assert with_fast_kernel(optimizer) is optimizer


def test_without_a_fused_kernel_it_is_foreach_and_says_so(monkeypatch) -> None:
    real = torch.optim.AdamW.__init__

    def without_fused(self, params, *args, fused=None, **options):
        if fused:
            raise RuntimeError("`fused=True` requires another device")
        real(self, params, *args, **options)

    said: list[tuple[int, str]] = []
    monkeypatch.setattr(torch.optim.AdamW, "__init__", without_fused)
    # Not by the log: what else a process has done decides whether a line is written there, and heard.
    monkeypatch.setattr(
        "mokd_det.engine.optimizer.log_first_n", lambda level, text, **_: said.append((level, text))
    )
    optimizer = with_fast_kernel(torch.optim.AdamW(parameters()))
    assert all(group["foreach"] and not group["fused"] for group in optimizer.param_groups)
    ((level, text),) = said
    assert level == logging.INFO and "requires another device" in text


def test_a_loaded_state_brings_the_moments_and_not_its_kernel() -> None:
    ours, theirs = parameters(), parameters()
    plain = torch.optim.AdamW(groups(theirs), lr=1e-2)
    set_gradients(theirs, 0)
    plain.step()
    fast = with_fast_kernel(torch.optim.AdamW(groups(ours), lr=1.0))
    state = plain.state_dict()
    fast.load_state_dict(state)
    assert all(group["fused"] and not group["foreach"] for group in fast.param_groups)
    assert [group["lr"] for group in fast.param_groups] == [3e-3, 1e-2]
    assert state["param_groups"][0]["fused"] is None, "the caller's state is not ours to change"
    assert all(torch.equal(a, b) for a, b in zip(moments(plain), moments(fast), strict=True))


def test_a_step_that_the_grad_scaler_skips_leaves_no_mark() -> None:
    tensors = parameters()
    optimizer = with_fast_kernel(torch.optim.AdamW(groups(tensors), lr=1e-2))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    def step(seed: int, broken: bool) -> None:
        set_gradients(tensors, seed)
        for tensor in tensors:
            assert tensor.grad is not None
            tensor.grad.mul_(16.0)
        if broken:
            assert tensors[2].grad is not None
            tensors[2].grad[0, 0, 0] = float("inf")
        scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(tensors, 1.0)
        scaler.step(optimizer)
        scaler.update()

    step(0, broken=False)
    before, values = moments(optimizer), [tensor.detach().clone() for tensor in tensors]
    step(1, broken=True)
    assert scaler.get_scale() == 8.0
    assert all(torch.equal(a, b) for a, b in zip(before, moments(optimizer), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(values, tensors, strict=True))
    scaler.update(16.0)
    step(2, broken=False)
    assert not any(torch.equal(a, b) for a, b in zip(values, tensors, strict=True))
    assert optimizer.state[tensors[0]]["step"] == 2
