"""Two processes with half a batch each keep the banks of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mokd_det.distillation import CRD
from mokd_det.distillation.context import MethodContext
from tests.distillation.method_goldens import vectors
from tests.forks import spawn

IMAGES, STEPS = 12, 2


def train(rank: int, processes: int) -> dict[str, Tensor]:
    """State of the method after some steps on the images of one of several processes; nothing is learned."""
    torch.manual_seed(0)
    method = CRD(IMAGES, dim=4)
    method.setup({"pooled": vectors(3)}, {"pooled": vectors(5)})
    student, teacher = torch.randn(IMAGES, 3), torch.randn(IMAGES, 5)
    for step in range(STEPS):
        batch = (torch.arange(4) + 4 * step)[rank::processes]
        negatives = (batch[:, None] + torch.arange(1, 6)) % IMAGES
        context = MethodContext(indices=batch, negatives=negatives)
        method({"pooled": student[batch]}, {"pooled": teacher[batch]}, context)
        method.after_step()
    return method.state_dict()


def worker(rank: int, folder: str) -> None:
    torch.save(train(rank, 2), f"{folder}/rank{rank}.pt")


@pytest.mark.slow
def test_processes_share_their_banks(tmp_path: Path) -> None:
    spawn(worker, tmp_path)
    alone = train(0, 1)
    assert not torch.equal(alone["bank_s"], CRD(IMAGES, dim=4).bank_s)
    for rank in range(2):
        state = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value)
