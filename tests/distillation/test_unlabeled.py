"""Images without annotations beside labelled ones: batches, losses, and a training through the tool."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from mokd_det.config import load_config
from mokd_det.data.catalog import load_dataset_dicts
from mokd_det.data.sampling import EpochBatches
from mokd_det.data.unlabeled import MixedBatches, UnlabeledImages
from mokd_det.distillation import UnlabeledDistiller
from mokd_det.distillation.distiller import Distiller
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.tools.train_net import main
from tests.config_room.test_own_data import ALONE, DISTILLED, MOKD, catalogs, folder, paths, run  # noqa: F401
from tests.engine.helpers import loggers_restored

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def photographs(tmp_path):
    """A folder with four new images and one that is labelled elsewhere."""
    place = tmp_path / "unlabelled"
    place.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (60 * number, 90, 30)).save(place / f"new{number}.png")
    return place


def test_a_batch_is_the_labelled_one_and_more():
    labeled, unlabeled = EpochBatches(6, 2, seed=3), EpochBatches(4, 2, seed=3)
    mixed = MixedBatches(labeled, unlabeled)
    for both, first, second in itertools.islice(zip(mixed, labeled, unlabeled, strict=False), 7):
        assert both[:2] == first
        assert [key.record for key in both[2:]] == [6 + key.record for key in second]
        assert not {key.position for key in both[2:]} & {key.position for key in both[:2]}
    resumed = next(iter(mixed.starting_at(5)))
    assert resumed == next(itertools.islice(mixed, 5, None))


def test_labelled_images_of_the_folder_are_left_out(folder, photographs):  # noqa: F811
    config = load_config(MOKD, [*paths(folder), *DISTILLED])
    labelled = load_dataset_dicts(config.from_data.train_dataset)
    in_folder = UnlabeledImages(str(folder / "train"), 2)
    shutil.copy(photographs / "new1.png", folder / "train" / "new.png")
    try:
        assert len(in_folder.records()) == 5
        left = in_folder.records(labelled)
    finally:
        (folder / "train" / "new.png").unlink()
    assert [record["image_id"] for record in left] == ["new.png"]
    assert all(record["unlabeled"] and not record["annotations"] for record in left)
    with pytest.raises(DatasetError, match="none is left"):
        in_folder.records(labelled)
    deep = folder / "train" / "deep.png"
    Image.fromarray(np.full((30, 40), 40_000, dtype=np.uint16)).save(deep)
    try:
        with pytest.raises(DatasetError, match=r"deep\.png .* has pixels of more than 8 bits"):
            in_folder.records(labelled)
    finally:
        deep.unlink()
    judged = UnlabeledImages(str(folder / "train"), 2, [config.from_data.train_dataset])
    with pytest.raises(DatasetError, match="none is left"):
        judged.records()


def test_what_is_not_drawn_serves_without_its_labels(folder):  # noqa: F811
    more = f"data.unlabeled.images={folder}/train"
    draw = "dataloader.train.draw={count: 2, seed: 1}"
    config = load_config(MOKD, [*paths(folder), *DISTILLED, more, draw])
    loader = instantiate(config.dataloader.train)
    seen = {False: set(), True: set()}
    for batch in itertools.islice(loader, 6):
        for sample in batch:
            seen[bool(sample.get("unlabeled"))].add(os.path.basename(sample["file_name"]))
    everything = {
        os.path.basename(r["file_name"]) for r in load_dataset_dicts(config.from_data.train_dataset)
    }
    assert len(seen[False]) == 2
    assert seen[True] == everything - seen[False]


def test_losses_of_each_part_are_those_of_a_distiller(folder, photographs):  # noqa: F811
    given = [*paths(folder), *DISTILLED, "model.teacher_checkpoint=", f"data.unlabeled.images={photographs}"]
    config = load_config(MOKD, [*given, "model.student.transformer.dropout=0.0"])
    assert list(config.objectives) == ["distill", "task", "unlabeled"]
    batch = next(iter(instantiate(config.dataloader.train)))
    assert [bool(sample.get("unlabeled")) for sample in batch] == [False, False, True, True]

    torch.manual_seed(0)
    model = instantiate(config.model).train()
    assert type(model) is UnlabeledDistiller
    losses = model(model.prepare_batch(batch))
    parts = (Distiller.prepare_batch(model, part) for part in (batch[:2], batch[2:]))
    labeled, unlabeled = (Distiller.forward(model, part) for part in parts)
    wanted = dict(labeled)
    wanted |= {
        name.replace("distill", "unlabeled"): value
        for name, value in unlabeled.items()
        if name.startswith("loss_distill_")
    }
    assert set(losses) == set(wanted) and any(name.startswith("loss_unlabeled_") for name in losses)
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, msg=name)

    # What is unlabelled moves the student by its own loss only.
    model.zero_grad()
    losses["loss_unlabeled_neck"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.backbone.parameters())
    # Without any, it is the Distiller.
    assert set(model(model.prepare_batch(batch[:2]))) == set(labeled)


def test_a_training_weighs_three_objectives(folder, photographs, tmp_path):  # noqa: F811
    short = ("train.max_iter=2", "train.log_period=1", "train.eval_period=0", "train.init_checkpoint=")
    given = (f"data.unlabeled.images={photographs}", f"model.teacher_checkpoint={folder}/classes3.pth")
    log = run(MOKD, tmp_path / "run", *paths(folder), *DISTILLED, *short, *given)
    assert f"unlabelled images of {photographs}, 2 per batch" in log
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    steps = [line for line in lines if "total_loss" in line]
    weights = [steps[-1][f"pi/{name}"] for name in ("distill", "task", "unlabeled")]
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("with_unlabeled", [False, True])
def test_a_dry_run_shows_the_taps(folder, photographs, tmp_path, capsys, with_unlabeled):  # noqa: F811
    given = [f"train.output_dir={tmp_path}/run", f"model.teacher_checkpoint={folder}/classes3.pth"]
    more = [f"data.unlabeled.images={photographs}"] if with_unlabeled else []
    short = ["train.init_checkpoint=", "train.device=cpu"]
    arguments = ["--config-file", str(MOKD), "--dry-run", *paths(folder), *DISTILLED, *short, *given, *more]
    with loggers_restored():
        assert main(arguments) == 0
    said = capsys.readouterr().out
    for who in ("student", "teacher"):
        assert re.search(rf"^{who} +neck +\S", said, re.MULTILINE)
    assert ("loss_unlabeled_neck" in said) is with_unlabeled
    assert said.endswith("No error found; nothing was written.\n")


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        (ALONE, "data.unlabeled.images={folder}", "the model has no teacher"),
        (MOKD, "data.unlabeled.images=nowhere", "data.unlabeled.images: there is no folder 'nowhere'"),
        (MOKD, "data.unlabeled.images={folder}/new1.png", "but a file: unpack archives first"),
        (MOKD, "data.unlabeled.total_batch_size=0", "data.unlabeled.total_batch_size is 0"),
    ],
)
def test_mistakes(folder, photographs, config, override, message):  # noqa: F811
    small = DISTILLED if config is MOKD else ["data.total_batch_size=2"]
    with pytest.raises(ConfigError, match=message):
        load_config(config, [*paths(folder), *small, override.format(folder=photographs)])
