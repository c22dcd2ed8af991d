from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from mokd_det.engine.seeded_rng import seeded_rng, step_seed
from mokd_det.guard.host_copy import HostCopy
from mokd_det.guard.module_state import frozen_buffers

CPU = torch.device("cpu")


def test_step_seeds_differ_in_every_coordinate():
    coordinates = [(s, i, m, r) for s in range(3) for i in range(5) for m in range(3) for r in range(3)]
    seeds = {step_seed(*where) for where in coordinates}
    assert len(seeds) == len(coordinates)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3, 4) == step_seed(1, 2, 3, 4)


def test_step_seed_is_the_same_in_every_version():
    # A resumed run may continue with another numpy: the value is fixed.
    assert step_seed(0, 0, 0, 0) == 7896617691693857887


def test_seeded_rng_repeats_and_restores_all_generators():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected_next = draw()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    with seeded_rng(7, CPU):
        first = draw()
    with seeded_rng(7, CPU):
        second = draw()
    with seeded_rng(8, CPU):
        third = draw()
    assert first == second
    assert all(a != b for a, b in zip(first, third, strict=True))
    assert draw() == expected_next


def test_frozen_buffers_undoes_changes_in_place_and_by_replacement():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("count", torch.zeros(1))
            self.register_buffer("replaced", torch.zeros(1))
            self.register_buffer("absent", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            self.replaced = self.replaced + 1
            return self.norm(x)

    model = Counting()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    identities = {name: id(buffer) for name, buffer in model.named_buffers()}
    with torch.no_grad(), frozen_buffers(model):
        model(torch.randn(4, 3))
        assert model.count.item() == 1
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
        assert id(buffer) == identities[name]
    model(torch.randn(4, 3))
    assert model.norm.num_batches_tracked == 1


def test_frozen_buffers_does_not_break_a_graph_made_before():
    model = nn.BatchNorm1d(3)
    output = model(torch.randn(4, 3, requires_grad=True)).square().sum()
    with torch.no_grad(), frozen_buffers(model):
        model(torch.randn(4, 3))
    output.backward()
    assert model.weight.grad is not None


def test_host_copy_is_a_copy():
    values = torch.tensor([1.0, 2.0])
    copy = HostCopy(values)
    values.fill_(0.0)
    assert copy.read().tolist() == [1.0, 2.0]
