"""Averages over ranks, with the partner's share of every exchange written down beforehand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mokd_det.balancing import collectives, objective_gradients
from mokd_det.balancing.base import StepContext
from mokd_det.balancing.collectives import all_reduce_max, all_reduce_mean, all_reduce_sum, world_size
from mokd_det.balancing.objective_gradients import ObjectiveGradients


class Partner:
    """The other one of two ranks: what it brings to each exchange, in order."""

    def __init__(self, brings: list[Tensor]) -> None:
        self.brings = iter(brings)
        self.exchanged: list[Tensor] = []

    def all_reduce(self, tensor: Tensor, op: object = dist.ReduceOp.SUM) -> None:
        other = next(self.brings)
        assert other.shape == tensor.shape and other.dtype == tensor.dtype
        self.exchanged.append(tensor.clone())
        tensor.copy_(tensor + other if op == dist.ReduceOp.SUM else torch.maximum(tensor, other))


@pytest.fixture
def with_partner(monkeypatch):
    def begin(*brings: Tensor) -> Partner:
        partner = Partner(list(brings))
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", partner.all_reduce)
        return partner

    return begin


@pytest.mark.parametrize("reduce", [all_reduce_sum, all_reduce_mean, all_reduce_max])
def test_one_process_exchanges_nothing(reduce, monkeypatch):
    tensor = torch.tensor([1.0, -2.0])
    assert world_size() == 1
    assert reduce(tensor) is tensor
    assert tensor.tolist() == [1.0, -2.0]
    # A group of one is not asked either.
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("exchanged"))
    assert reduce(tensor).tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [(all_reduce_sum, [4.0, -6.0]), (all_reduce_mean, [2.0, -3.0]), (all_reduce_max, [3.0, -2.0])],
)
def test_two_processes(with_partner, reduce, expected):
    with_partner(torch.tensor([3.0, -4.0]))
    tensor = torch.tensor([1.0, -2.0])
    assert collectives.world_size() == 2
    assert reduce(tensor) is tensor
    assert tensor.tolist() == expected


def parameters(*dtypes: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in dtypes]


def gathered(
    shared: list[nn.Parameter],
    private: list[nn.Parameter],
    *objectives: dict[int, list[float]],
    scale: float = 1.0,
) -> tuple[ObjectiveGradients, Tensor]:
    """The gradients of linear objectives, Σ ⟨c_p, p⟩ over the parameters p that each of them names by position."""
    everything = [*shared, *private]
    context = StepContext(shared, private, loss_scale=scale)

    def forward(sync: bool = True) -> Tensor:
        assert not sync
        return torch.stack(
            [
                sum(
                    (everything[place] * torch.tensor(c, dtype=everything[place].dtype)).sum().float()
                    for place, c in objective.items()
                )
                for objective in objectives
            ]
        )

    gradients = ObjectiveGradients(context)
    return gradients, gradients.collect([forward])


@pytest.fixture(params=[None, 2, 3, 4])
def bucket(request, monkeypatch) -> Iterator[None]:
    """The bucket as it is, and so small that one, or two, parameters fill it."""
    if request.param is not None:
        monkeypatch.setattr(objective_gradients, "_BUCKET", request.param)
        monkeypatch.setattr(objective_gradients, "_WIDE", max(1, request.param // 2))


def test_gram_of_mixed_types_is_that_of_the_whole_vectors(bucket):
    shared = parameters(torch.float32, torch.float32, torch.float64, torch.float32, torch.float32)
    first = {0: [1.0, 2.0], 2: [3.0, -1.0], 3: [0.5, 0.0]}
    second = {0: [-1.0, 1.0], 1: [4.0, 0.0], 2: [2.0, 2.0]}
    gradients, _ = gathered(shared, [], first, second, scale=8.0)
    expected = [[15.25, 5.0], [5.0, 26.0]]
    assert gradients.gram().tolist() == expected
    assert gradients.partial_gram([0, 4]).tolist() == [[5.0, 1.0], [1.0, 2.0]]
    assert gradients.partial_gram([4]).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    further = [[torch.tensor([8.0, 8.0]), None, None, None, None]]
    assert gradients.partial_gram([0], further).tolist() == [[5, 1, 3], [1, 2, 0], [3, 0, 2]]


def test_gradients_are_averaged_and_a_rank_without_one_counts_as_zero(with_partner, monkeypatch):
    """Shared 0: both ranks; 1: only the partner; 2: only this rank; 3: nobody."""
    monkeypatch.setattr(objective_gradients, "_BUCKET", 4)
    partner = with_partner(
        torch.tensor([1.0, 1.0, 0.0, 0.0]),  # where the partner has a gradient
        torch.tensor([3.0, 4.0, 5.0, 6.0]),  # its first bucket: parameters 0 and 1
        torch.tensor([0.0, 0.0]),  # its second one: parameter 2
        torch.tensor([7.0], dtype=torch.float64),  # its objective
    )
    shared = parameters(*[torch.float32] * 4)
    gradients, objectives = gathered(shared, [], {0: [1.0, 2.0], 2: [10.0, 20.0]})
    assert [tensor.tolist() for tensor in partner.exchanged] == [[1, 0, 1, 0], [1, 2, 0, 0], [10, 20], [0]]
    assert objectives.tolist() == [3.5]
    gradients.release(torch.tensor([2.0]))
    assert [None if p.grad is None else p.grad.tolist() for p in shared] == [[4, 6], [5, 6], [10, 20], None]


def test_private_gradients_are_averaged_after_weighting(with_partner):
    partner = with_partner(
        torch.tensor([1.0]),
        torch.tensor([0.0, 0.0]),  # the shared parameter
        torch.tensor([0.0], dtype=torch.float64),
        torch.tensor([1.0]),
        torch.tensor([6.0, 6.0]),  # the private one, weighted by the partner too
    )
    (shared,), (private,) = parameters(torch.float32), parameters(torch.float32)
    private.grad = torch.tensor([100.0, 100.0])
    gradients, _ = gathered([shared], [private], {0: [1.0, 1.0], 1: [1.0, 2.0]})
    gradients.release(torch.tensor([4.0]))
    assert partner.exchanged[-1].tolist() == [4.0, 8.0]
    assert shared.grad is not None and shared.grad.tolist() == [2.0, 2.0]
    assert private.grad.tolist() == [105.0, 107.0], "what was there before is added to"


def test_restore_puts_the_very_same_tensors_back():
    (shared,) = parameters(torch.float32)
    before = shared.grad = torch.tensor([1.0, 1.0])
    gradients, _ = gathered([shared], [], {0: [1.0, 2.0]}, {0: [0.0, 1.0]})
    assert shared.grad is None
    gradients.restore()
    assert shared.grad is before
    assert gradients.gram().tolist() == [[5.0, 2.0], [2.0, 1.0]]
