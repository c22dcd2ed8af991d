"""The frontier of fixed weights from runs' own files: right numbers, one panel per loss, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from mokd_det.checkpoint import write_file
from mokd_det.config import load_config
from mokd_det.engine.checkpointing import AtomicCheckpointer
from mokd_det.experiments.validation_losses import validation_losses
from mokd_det.tools.plot_frontier import main
from tests.report.tiny_run import ROOT, tiny_dataset

SMALL = (
    "model.student.backbone.embed_dim=8",
    "dataloader.train.total_batch_size=2",
    "train.device=cpu",
)
FIXED = "balancer={_target_: mokd_det.balancing.FixedWeights, weights: {distill: %s, task: 1.0}}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_dataset(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    cfg = load_config(ROOT / "configs/quickstart/mokd.py", training=False)
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    write_file(instantiate(cfg.model.teacher).state_dict(), file)
    return f"model.teacher_checkpoint={file}"


def finished(folder: Path, dataset: str, teacher: str, *overrides: str, seed: int = 0) -> str:
    """What a training would leave: random weights of a distillation, of the seed."""
    folder.mkdir()
    cfg = load_config(
        ROOT / "configs/quickstart/mokd.py",
        [*SMALL, f"dataloader.train.dataset={dataset}", teacher, *overrides],
    )
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.manual_seed(seed)
    model = instantiate(cfg.model)
    AtomicCheckpointer(model.eval_model, str(folder), **model.checkpoint_parts()).save("model_final")
    return str(folder)


def test_losses_are_the_runs_own_on_equal_images(tmp_path: Path, dataset: str, teacher: str) -> None:
    alone = ("model.method={_target_: mokd_det.distillation.NoDistillation}", "objectives.distill=null")
    runs = [
        finished(tmp_path / "weak", dataset, teacher, FIXED % 0.5),
        finished(tmp_path / "same", dataset, teacher, FIXED % 2.0),
        finished(tmp_path / "strong", dataset, teacher, FIXED % 8.0, seed=1),
        finished(tmp_path / "amortised", dataset, teacher, seed=2),
        finished(tmp_path / "regression", dataset, teacher, FIXED % 1.0, "model.method.loss=regression"),
        finished(tmp_path / "alone", dataset, teacher, *alone, FIXED.replace("distill: %s, ", "")),
    ]
    picture = tmp_path / "out" / "frontier.png"
    assert main([*runs, "--dataset", dataset, "--images", "5", "--output", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    found = json.loads(picture.with_suffix(".json").read_text())["runs"]
    assert {run["images"] for run in found.values()} == {4}, "whole batches"
    assert found["weak"]["values"] == found["same"]["values"], "equal weights, other balancing"
    assert found["weak"]["values"] != found["strong"]["values"]
    assert found["alone"]["values"].keys() == {"task"} and found["alone"]["method"] == ""
    assert found["alone"]["values"]["task"] == pytest.approx(found["weak"]["values"]["task"], rel=1e-6)
    assert found["amortised"]["weights"] is None and found["weak"]["weights"] == {"distill": 0.5, "task": 1.0}
    assert found["regression"]["method"] != found["weak"]["method"] == found["amortised"]["method"]


def test_a_draw_of_the_trainings_images_is_none_of_these(tmp_path, dataset, teacher) -> None:
    drawn = "dataloader.train.draw={count: 5, seed: 3}"
    runs = [
        finished(tmp_path / name, dataset, teacher, FIXED % 1.0, *more)
        for name, more in (("all", ()), ("drawn", (drawn,)))
    ]
    found = [validation_losses(Path(run), dataset, 6) for run in runs]
    assert found[0].values == found[1].values and found[0].images == 6


@pytest.mark.parametrize("weights", ["2.0", "[2.0, 2.0]", "{distill: 2.0, task: 2.0}"])
def test_fixed_weights_are_read_in_each_of_their_forms(tmp_path, dataset, teacher, weights) -> None:
    run = finished(
        tmp_path / "run",
        dataset,
        teacher,
        f"balancer={{_target_: mokd_det.balancing.FixedWeights, weights: {weights}}}",
    )
    assert validation_losses(Path(run), dataset, 2).weights == {"distill": 2.0, "task": 2.0}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "model_final.pth").unlink(), "has no model_final.pth"),
        (lambda run: (run / "config.yaml").unlink(), "has no config.yaml"),
        (None, "--images 1 is less than a batch"),
    ],
)
def test_what_is_no_finished_run_is_named(tmp_path, dataset, teacher, capsys, spoil, message) -> None:
    run = tmp_path / "run"
    finished(run, dataset, teacher, FIXED % 1.0)
    images = "4"
    if spoil is None:
        images = "1"
    else:
        spoil(run)
    arguments = [str(run), "--dataset", dataset, "--images", images, "--output", str(tmp_path / "a.png")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_student_alone_has_no_frontier(tmp_path, dataset, teacher, capsys) -> None:
    run = finished(
        tmp_path / "run",
        dataset,
        teacher,
        "model.method={_target_: mokd_det.distillation.NoDistillation}",
        "objectives.distill=null",
    )
    assert main([run, "--dataset", dataset, "--images", "2", "--output", str(tmp_path / "a.png")]) == 2
    assert "needs runs of the same two objectives" in capsys.readouterr().err
