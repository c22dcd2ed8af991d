"""Forwards that are repeated start from the numbers of the first one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mokd_det.balancing import Amortized
from mokd_det.guard.module_state import ModuleNumbers
from tests.engine.helpers import make_trainer, run_one_step
from tests.engine.toy import ToyDetector


class Normalised(ToyDetector):
    """Divides its losses by a running number that its first forward creates, as Detectron2's RetinaNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[float] = []

    def forward(self, batched_inputs):
        losses = super().forward(batched_inputs)
        if self.training:
            self.normalizer = 0.9 * getattr(self, "normalizer", 100) + 0.1 * 7
            self.used.append(self.normalizer)
            losses = {name: loss / self.normalizer for name, loss in losses.items()}
        return losses


def test_the_second_forward_of_a_step_divides_by_the_number_of_the_first() -> None:
    model = Normalised()
    trainer = make_trainer(Amortized(), model=model, lr=0.0)
    for iteration in range(3):
        storage = run_one_step(trainer, iteration)
        for name in ("cls", "box"):
            # The parameters stay, so the step has gained nothing.
            assert storage.latest()[f"log_gain/{name}"][0] == pytest.approx(0.0, abs=1e-6)
    first, second, third = 90.7, 82.33, 74.797
    assert model.used == pytest.approx([first, first, second, second, third, third])
    assert model.normalizer == pytest.approx(third)


def test_numbers_are_put_back_after_an_error_and_new_ones_taken_away() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.25))
    model.mean, model.count = 1.0, 3
    numbers = ModuleNumbers(model)
    model.mean, model.fresh = 2.0, 5.0
    with pytest.raises(ZeroDivisionError), numbers.restored():
        assert model.mean == 1.0 and not hasattr(model, "fresh")
        model.mean, model.inside, model.count = 9.0, 1.0, 4
        raise ZeroDivisionError
    assert (model.mean, model.fresh, model.count) == (2.0, 5.0, 4) and not hasattr(model, "inside")
    assert model[1].p == 0.25 and torch.is_tensor(model[0].weight)
