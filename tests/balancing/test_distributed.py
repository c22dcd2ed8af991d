"""Two processes with different data must train exactly like one process with the joint batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mokd_det.balancing import ClosedForm, StepContext
from mokd_det.balancing.objective_gradients import ObjectiveGradients
from tests.balancing.toy import BALANCERS, Batch, ToyStudent, ToyTraining, joined, toy_batch
from tests.forks import spawn

STEPS = 4
MICRO_BATCHES = (1, 2)


def batches_of(rank: int, step: int, micro_batches: int) -> list[Batch]:
    """Images, labels and features of one rank; the second rank's are larger, so that means differ much."""
    batches = [toy_batch(1000 * rank + 10 * step + index) for index in range(micro_batches)]
    return [(images * (1 + rank), labels, features * (1 + 2 * rank)) for images, labels, features in batches]


def weights_of(training: ToyTraining, scalars: dict[str, float]) -> Tensor:
    return torch.tensor(
        [value for name, value in sorted(scalars.items()) if name.startswith(("pi/", "raw_weight/"))]
    )


def train(training: ToyTraining, ranks: list[int], micro_batches: int) -> dict[str, Tensor]:
    weights = []
    for step in range(STEPS):
        per_rank = [batches_of(rank, step, micro_batches) for rank in ranks]
        scalars = training.step([joined(batches) for batches in zip(*per_rank, strict=True)])
        weights.append(weights_of(training, scalars))
    return {"parameters": training.parameters(), "weights": torch.stack(weights)}


def half_used_gradients(rank: int) -> dict[str, Tensor | None]:
    """A parameter that only rank 0 reaches, one that all reach and one that nothing reaches."""
    first, second, third = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(3))

    def forward(*, sync: bool = True) -> Tensor:
        task = (second**2).sum() + (first.sum() if rank == 0 else 0)
        return torch.stack([task, 3 * second.sum()])

    gradients = ObjectiveGradients(StepContext([first, second, third]))
    losses = gradients.collect([forward])
    gram = gradients.gram()
    gradients.release(torch.ones(2, dtype=torch.float64))
    return {"first": first.grad, "second": second.grad, "third": third.grad, "gram": gram, "losses": losses}


def worker(rank: int, folder: str) -> None:
    results: dict[object, object] = {}
    for name, make in BALANCERS.items():
        for micro_batches in MICRO_BATCHES:
            torch.manual_seed(rank)
            student = ToyStudent()
            model = DistributedDataParallel(student, find_unused_parameters=True)
            results[name, micro_batches] = train(ToyTraining(make(), student, model), [rank], micro_batches)
    results["half_used"] = half_used_gradients(rank)
    torch.save(results, f"{folder}/rank{rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(worker, folder)
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("micro_batches", MICRO_BATCHES)
@pytest.mark.parametrize("name", BALANCERS)
def test_equals_one_process_with_the_joint_batch(
    two_processes: list[dict], name: str, micro_batches: int
) -> None:
    single = train(ToyTraining(BALANCERS[name](), ToyStudent()), [0, 1], micro_batches)
    assert not torch.equal(single["parameters"], ToyTraining(BALANCERS[name](), ToyStudent()).parameters())
    for results in two_processes:
        found = results[name, micro_batches]
        torch.testing.assert_close(found["parameters"], single["parameters"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found["weights"], single["weights"], rtol=0, atol=1e-6)
    first, second = (results[name, micro_batches] for results in two_processes)
    assert torch.equal(first["parameters"], second["parameters"]), "ranks must not drift apart"


def test_the_ranks_data_alone_would_give_something_else() -> None:
    """Otherwise the comparison above proves nothing."""
    joint = train(ToyTraining(ClosedForm(), ToyStudent()), [0, 1], 1)
    for rank in range(2):
        alone = train(ToyTraining(ClosedForm(), ToyStudent()), [rank], 1)
        assert (alone["weights"] - joint["weights"]).abs().max() > 1e-2
        assert (alone["parameters"] - joint["parameters"]).abs().max() > 1e-3


def test_gradients_that_only_one_rank_has(two_processes: list[dict]) -> None:
    for results in two_processes:
        found = results["half_used"]
        assert found["first"].tolist() == [0.5, 0.5]
        assert found["second"].tolist() == [5.0, 7.0]
        assert found["third"] is None
        # Rows: (½, ½, 2, 4) and (0, 0, 3, 3).
        assert found["gram"].tolist() == [[20.5, 18.0], [18.0, 18.0]]
        assert found["losses"].tolist() == [6.5, 9.0]
