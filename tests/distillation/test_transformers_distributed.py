"""Two processes with one and more images each train a Hugging Face student as one process with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mokd_det.balancing import Amortized, FixedWeights, Objectives
from mokd_det.distillation import Distiller, HungarianTokenMatching, MoKD
from mokd_det.engine import MoKDTrainer
from tests.distillation.test_transformers_pairs import OBJECTIVES, batch, hf
from tests.forks import spawn

pytest.importorskip("transformers")

STEPS = 3


def items(name: str) -> list[list[dict]]:
    """Per rank. RT-DETR's losses divide by each process's own objects, so both get two; LW-DETR's by all, 2 and 1."""
    first, second = batch()
    if name == "distilled":
        second["instances"] = first["instances"]
    return [[first], [second]]


def train(name: str, ranks: list[int], parallel: bool = False) -> dict[str, Tensor]:
    """The student's parameters after some steps of plain gradient descent, which hides no scale."""
    if name == "distilled":
        # Denoising draws its noise per process; live BatchNorms have each process's statistics.
        student = hf("RTDetrV2", config={"num_denoising": 0}, freeze_batch_norm=True)
        model = Distiller(
            student, hf("DFine").eval(), MoKD(), token_matching=HungarianTokenMatching(), tap_pairing="common"
        )
        objectives, balancer = OBJECTIVES, Amortized()
    else:
        model = student = hf("LwDetr", freeze_batch_norm=True)
        objectives, balancer = {"task": OBJECTIVES["task"]}, FixedWeights()
    model.train()
    wrapped = DistributedDataParallel(model) if parallel else model  # no search for unused parameters
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    data = [item for rank in ranks for item in items(name)[rank]]
    trainer = MoKDTrainer(
        wrapped, [data] * STEPS, optimizer, objectives=Objectives(objectives), balancer=balancer
    )
    trainer.train(0, STEPS)
    return {key: value.detach().clone() for key, value in student.named_parameters()}


def worker(rank: int, folder: str) -> None:
    torch.save({name: train(name, [rank], parallel=True) for name in NAMES}, f"{folder}/rank{rank}.pt")


NAMES = ("distilled", "alone")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(worker, folder)
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one(ranks: list[dict], name: str) -> None:
    joint, start = train(name, [0, 1]), train_nothing(name)
    moved = max(float((joint[key] - start[key]).abs().max()) for key in joint)
    own = train(name, [0])
    apart = max(float((own[key] - joint[key]).abs().max()) for key in joint)
    for found in ranks:
        for key, value in joint.items():
            torch.testing.assert_close(
                found[name][key], value, rtol=0, atol=min(moved, apart) * 1e-3, msg=key
            )
    assert all(torch.equal(ranks[0][name][key], ranks[1][name][key]) for key in joint), "ranks must not drift"


def train_nothing(name: str) -> dict[str, Tensor]:
    student = hf("RTDetrV2", config={"num_denoising": 0}) if name == "distilled" else hf("LwDetr")
    return {key: value.detach().clone() for key, value in student.named_parameters()}
