"""Trainings of small detectors on images that come back, with and without a cache of the teacher's taps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mokd_det.balancing import Amortized
from mokd_det.contract import TrainingLoader
from mokd_det.data import build_train_loader
from mokd_det.data.sampling import SampleKey
from mokd_det.data.view_key import view_key
from mokd_det.distillation import Distiller, MoKD, TeacherCache
from mokd_det.distillation.methods.base import Method
from mokd_det.engine import MoKDTrainer
from tests.distillation.conftest import FakeDetector
from tests.engine.helpers import make_trainer

PATTERNS = {"distill": ["loss_distill_*"], "task": ["loss_ce", "loss_bbox"]}


class NoisyMapper:
    """An image of noise, drawn anew at every call; images differ in size by 16 pixels if ``sizes`` is 2."""

    def __init__(self, sizes: int = 1) -> None:
        self.sizes = sizes

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        side = 32 + 16 * (record["image_id"] % self.sizes)
        return {**record, "image": torch.randint(0, 256, (3, side, 32), dtype=torch.uint8)}


def records(count: int) -> list[dict[str, Any]]:
    return [
        {"image_id": index, "file_name": f"images/{index}.png", "height": 32, "width": 32}
        for index in range(count)
    ]


def shuffled_loader(views: int | None = 1, count: int = 8, sizes: int = 1, **options: Any) -> Any:
    return build_train_loader(
        records(count), NoisyMapper(sizes), total_batch_size=4, seed=3, views=views, **options
    )


def keyed_batch(images: list[Tensor], first: int = 0) -> list[dict[str, Any]]:
    """A loader's batch of these images, numbered from ``first``."""
    return [
        {"image": image, "view_key": view_key(SampleKey(0, first + place, 0), image)}
        for place, image in enumerate(images)
    ]


class OrderedLoader(TrainingLoader[Any]):
    """The same two batches of four images in turn, as they come from a shuffled loader's first epoch."""

    def __init__(self) -> None:
        stream = iter(shuffled_loader())
        self.batches = [next(stream) for _ in range(2)]
        self.start = 0

    def start_from(self, batch_index: int) -> None:
        self.start = batch_index

    def __iter__(self) -> Iterator[Any]:
        number = self.start
        while True:
            yield self.batches[number % 2]
            number += 1


def distiller(cache: TeacherCache | None = None, method: Method | None = None, **options: Any) -> Distiller:
    torch.manual_seed(0)
    student = FakeDetector(channels=8, dropout=0.2)
    teacher = FakeDetector(channels=12, dropout=0.5)
    return Distiller(student, teacher, MoKD() if method is None else method, teacher_cache=cache, **options)


def trainer(model: Distiller, loader: Any = None, **options: Any) -> MoKDTrainer:
    loader = OrderedLoader() if loader is None else loader
    return make_trainer(Amortized(), model=model, loader=loader, patterns=PATTERNS, **options)


def rank_worker(rank: int, folder: str) -> None:
    """Two epochs of one of two ranks; what it ends with, and how often its teacher ran, goes into a file."""
    cache = TeacherCache(f"{folder}/cache", precision="float32")
    model = distiller(cache)
    parallel = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    loader = shuffled_loader(rank=rank, world_size=2)
    trained = make_trainer(Amortized(), model=parallel, loader=loader, patterns=PATTERNS)
    trained.train(0, 6)
    shards = len(list(Path(folder, "cache").glob("*.rows")))
    result = {"student": model.student.state_dict(), "calls": model.teacher.calls, "shards": shards}
    torch.save(result, f"{folder}/rank{rank}.pt")
