from __future__ import annotations

import json
import logging

import pytest

from mokd_det.checkpoint import load_file
from mokd_det.engine import AtomicCheckpointer
from mokd_det.engine.hooks import (
    BalancePrinter,
    BestModel,
    Evaluation,
    MethodDiagnostics,
    PeriodicCheckpointer,
    PeriodicWriter,
)
from mokd_det.engine.run_directory import drop_metrics_from, set_aside_previous_run
from mokd_det.engine.testing import format_results, write_results
from tests.engine.helpers import make_trainer


def train_with_scores(tmp_path, scores: list[float], start: int = 0, mode: str = "max"):
    """One evaluation per iteration, with the given results."""
    trainer = make_trainer()
    results = iter(scores)
    best = BestModel(trainer.module, str(tmp_path / "best"), "bbox/AP", mode, period=1)
    checkpointer = AtomicCheckpointer(trainer.module, str(tmp_path), trainer=trainer)
    trainer.register_hooks(
        [
            Evaluation(1, lambda: {"bbox": {"AP": next(results)}}),
            best,
            PeriodicCheckpointer(checkpointer, 1, max_to_keep=2),
        ]
    )
    trainer.train(start, start + len(scores))
    return best


@pytest.mark.parametrize(
    ("mode", "scores", "expected"),
    [
        ("max", [1.0, 3.0, 2.0], 1),
        ("min", [2.0, 1.0, 3.0], 1),
        ("max", [1.0, float("nan"), 0.5], 0),
        ("max", [1, 1], 0),
    ],
)
def test_the_best_model_is_kept_apart(tmp_path, mode, scores, expected):
    best = train_with_scores(tmp_path, scores, mode=mode)
    assert best.iteration == expected
    assert load_file(tmp_path / "best" / "model_best.pth")["iteration"] == expected
    record = json.loads((tmp_path / "best" / "best.json").read_text())
    assert record == {"metric": "bbox/AP", "value": scores[expected], "iteration": expected}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth", (
        "a resume must not go back to the best"
    )


def test_the_result_of_the_last_iteration_counts(tmp_path):
    assert train_with_scores(tmp_path, [1.0, 2.0]).iteration in (1, 2)
    assert json.loads((tmp_path / "best" / "best.json").read_text())["value"] == 2.0


def test_a_resumed_run_compares_with_the_best_before(tmp_path):
    train_with_scores(tmp_path, [5.0, 1.0])
    best = train_with_scores(tmp_path, [4.0, 3.0], start=2)
    assert (best.value, best.iteration) == (5.0, 0)
    best = train_with_scores(tmp_path, [4.0, 3.0])
    assert best.value == 4.0, "a new run starts without a best"


def test_a_metric_that_does_not_exist_is_reported(tmp_path, caplog):
    trainer = make_trainer()
    trainer.register_hooks([BestModel(trainer.module, str(tmp_path / "best"), "bbox/APP", period=0)])
    trainer.train(0, 1)
    assert "train.best.metric 'bbox/APP' is not among" in caplog.text
    assert not (tmp_path / "best").exists()


def test_old_checkpoints_are_removed_across_resumes(tmp_path):
    train_with_scores(tmp_path, [1.0, 1.0, 1.0])
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == [
        "model_0000001.pth",
        "model_0000002.pth",
        "model_final.pth",
    ]
    train_with_scores(tmp_path, [1.0, 1.0], start=3)
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == [
        "model_0000003.pth",
        "model_0000004.pth",
        "model_final.pth",
    ]


def test_the_printer_shows_weights_and_times(caplog, monkeypatch):
    caplog.set_level("INFO")
    # A tool that ran in this process before may have given the package handlers of its own, or silenced it.
    monkeypatch.setattr("mokd_det.engine.hooks.logger", logging.getLogger("printer"))
    from mokd_det.balancing import Amortized

    trainer = make_trainer(Amortized())
    trainer.register_hooks([PeriodicWriter([BalancePrinter(("cls", "box"))], period=1)])
    trainer.train(0, 2)
    lines = [record.message for record in caplog.records if "pi  cls:" in record.message]
    assert len(lines) == 2
    assert lines[0].startswith("iter: 0  pi  cls: 0.5000  box: 0.5000  seconds  data ")
    assert "student" in lines[0]


def test_an_earlier_run_is_set_aside_whole(tmp_path):
    assert set_aside_previous_run(str(tmp_path)) is None
    for name in ("model_0000001.pth", "last_checkpoint", "metrics.json", "log.txt", "mine.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "best").mkdir()
    assert set_aside_previous_run(str(tmp_path)) == tmp_path / "previous_1"
    assert sorted(item.name for item in (tmp_path / "previous_1").iterdir()) == [
        "best",
        "last_checkpoint",
        "metrics.json",
        "model_0000001.pth",
    ]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["log.txt", "mine.txt", "previous_1"]
    (tmp_path / "last_checkpoint").write_text("again")
    assert set_aside_previous_run(str(tmp_path)) == tmp_path / "previous_2"


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    drop_metrics_from(str(tmp_path), 3)
    assert not path.exists()
    lines = "".join(json.dumps({"iteration": i, "total_loss": i}) + "\n" for i in range(5))
    path.write_text(lines + '{"iteration": 3, "bbox/AP": 1.0}\n{"iteration": 5, "total_l')
    drop_metrics_from(str(tmp_path), 3)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["iteration"] for line in kept] == [0, 1, 2, 3]
    assert kept[-1] == {"iteration": 3, "bbox/AP": 1.0}, "the evaluation at the end of a run of 3 iterations"


def test_results_as_table_and_as_strict_json(tmp_path):
    results = {"bbox": {"AP": 12.3456, "APs": float("nan"), "per class": {"0": 1}}}
    table = format_results({"bbox": {"AP": 12.3456, "AP50": 30.0}})
    assert "bbox" in table
    assert "12.346" in table
    write_results(results, tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert stored == {"bbox": {"AP": 12.3456, "APs": None, "per class": {"0": 1}}}


def test_the_methods_diagnostics_are_stored_every_period():
    trainer = make_trainer()
    trainer.task.diagnostics = lambda: {"distill/neck/rank": float(trainer.iter)}
    trainer.register_hooks([MethodDiagnostics(2)])
    trainer.train(0, 5)
    assert trainer.storage.history("distill/neck/rank").values() == [(1.0, 1), (3.0, 3)]
