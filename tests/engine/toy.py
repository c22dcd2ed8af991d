"""A detector small enough to train in a test, with everything that makes resuming hard: dropout and
BatchNorm."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor, nn

from mokd_det.contract import TrainingLoader, TrainingTask
from mokd_det.errors import DatasetError

SIZE = 6


class ToyDetector(nn.Module):
    """Three positive losses in training, one score per image in evaluation.

    An input item with ``"poison": {loss: value}`` multiplies that loss by the value.
    """

    def __init__(self, width: int = 8, dropout: float = 0.3, norm: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Linear(3 * SIZE * SIZE, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in ("ce", "bbox", "extra")})

    def features(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        images = torch.stack([item["image"] for item in batched_inputs]).flatten(1)
        return self.dropout(torch.tanh(self.norm(self.backbone(images.to(self.backbone.weight.device)))))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        hidden = self.features(batched_inputs)
        if not self.training:
            return [{"score": float(score)} for score in self.heads["ce"](hidden).flatten()]
        targets = torch.tensor([item["target"] for item in batched_inputs], device=hidden.device)
        losses = {}
        for number, (name, head) in enumerate(self.heads.items()):
            error = head(hidden).flatten().float() - (number + 1) * targets
            factors = [item.get("poison", {}).get(f"loss_{name}", 1.0) for item in batched_inputs]
            losses[f"loss_{name}"] = (error.square() * torch.tensor(factors, device=hidden.device)).mean()
        return losses


def toy_item(index: int, size: int = SIZE) -> dict[str, Any]:
    """Sample ``index``, always the same."""
    generator = torch.Generator().manual_seed(1000 + index)
    image = torch.randn(3, size, size, generator=generator)
    return {
        "image": image,
        "target": float(image.mean() * 10.0),
        "image_id": index,
        "file_name": f"toy_{index}.png",
        "height": size,
        "width": size,
    }


class ToyLoader(TrainingLoader[list[dict[str, Any]]]):
    """Batch k holds samples k·B … (k+1)·B - 1; every rank takes its share of it.

    Args:
        total_batch_size: B, over all ranks.
        poison: {sample index: {loss name: factor}}.
        kill_at: batch at which this process kills itself, as a machine that goes away would.
        fail_at: (rank, batch) at which a DatasetError is raised.
        crash_at: (rank, batch) at which the process dies without a word.
    """

    def __init__(
        self,
        total_batch_size: int = 4,
        poison: dict[int, dict[str, float]] | None = None,
        kill_at: int | None = None,
        fail_at: tuple[int, int] | None = None,
        crash_at: tuple[int, int] | None = None,
    ) -> None:
        self.total_batch_size = total_batch_size
        self.poison = poison or {}
        self.kill_at = kill_at
        self.fail_at = fail_at
        self.crash_at = crash_at
        self.start = 0

    def start_from(self, batch_index: int) -> None:
        self.start = batch_index

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        rank, ranks = comm.get_rank(), comm.get_world_size()
        share = self.total_batch_size // ranks
        batch = self.start
        while True:
            if self.kill_at == batch:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fail_at is not None and tuple(self.fail_at) == (rank, batch):
                raise DatasetError(f"image toy_{batch}.png cannot be decoded")
            if self.crash_at is not None and tuple(self.crash_at) == (rank, batch):
                os._exit(9)
            first = batch * self.total_batch_size + rank * share
            items = [toy_item(index) for index in range(first, first + share)]
            for item in items:
                if item["image_id"] in self.poison:
                    item["poison"] = self.poison[item["image_id"]]
            yield items
            batch += 1


class ToyTestLoader:
    def __init__(self, length: int = 3) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return iter([[toy_item(10_000 + index)] for index in range(self.length)])


class ToyEvaluator(DatasetEvaluator):
    """The mean score as "AP", and a metric that has no value."""

    def reset(self) -> None:
        self.scores: list[float] = []

    def process(self, inputs: Any, outputs: Any) -> None:
        self.scores += [output["score"] for output in outputs]

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"bbox": {"AP": sum(self.scores) / len(self.scores), "APs": float("nan")}}


class Recorder(TrainingTask):
    """A model with all the optional methods, noting what is called."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.student = ToyDetector(dropout=dropout)
        self.method = nn.Linear(8, 8, bias=False)
        self.calls: list[str] = []

    def prepare_batch(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.calls.append("prepare")
        return {"inputs": batched_inputs, "teacher": torch.ones(8)}

    def forward(self, batch: Any) -> Any:
        if not self.training:
            return self.student(batch)
        self.calls.append("forward" if torch.is_grad_enabled() else "repeat")
        losses = self.student(batch["inputs"])
        projected = self.method(self.student.features(batch["inputs"]))
        return {**losses, "loss_distill_x": (projected - batch["teacher"]).square().mean()}

    @property
    def eval_model(self) -> nn.Module:
        return self.student

    def checkpoint_parts(self) -> dict[str, nn.Module]:
        return {"method": self.method}

    def private_parameters(self) -> list[nn.Parameter]:
        return list(self.method.parameters())

    def no_weight_decay_parameters(self) -> list[nn.Parameter]:
        return list(self.method.parameters())

    def after_step(self) -> None:
        self.calls.append("after_step")
