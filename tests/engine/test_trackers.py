"""Weights & Biases and MLflow beside metrics.json: real libraries, offline."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mokd_det.engine.trackers import MLflowWriter, WandbWriter, flat_settings
from mokd_det.errors import ConfigError
from tests.engine.test_train_net import run_here

WANDB = "trackers.wandb={_target_: mokd_det.engine.trackers.WandbWriter, project: cells, mode: offline}"
MLFLOW = "trackers.mlflow={_target_: mokd_det.engine.trackers.MLflowWriter, experiment: cells}"


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


def logged(output_dir: Path, name: str) -> dict[int, float]:
    lines = map(json.loads, (output_dir / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line[name] for line in lines if name in line}


def test_a_resumed_run_goes_on_in_the_same_runs(tmp_path):
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    out = tmp_path / "run"
    run_here(out, WANDB, MLFLOW, "train.max_iter=6")
    first = json.loads((out / "trackers.json").read_text())
    run_here(out, WANDB, MLFLOW, "--resume")
    ids = json.loads((out / "trackers.json").read_text())
    assert ids == first

    client = mlflow.MlflowClient((out / "mlruns").as_uri())
    run = client.get_run(ids["mlflow"])
    assert run.info.status == "FINISHED" and run.data.params["train.max_iter"] == "6"
    assert run.data.params["model._target_"] == "tests.engine.toy.ToyDetector"
    for name in ("total_loss", "pi/cls", "lr"):
        points = {point.step: point.value for point in client.get_metric_history(ids["mlflow"], name)}
        wanted = logged(out, name)
        assert wanted and {step: points[step] for step in wanted} == pytest.approx(wanted)

    files = list(out.glob(f"wandb/offline-run-*-{ids['wandb']}/run-*.wandb"))
    assert files and any(b"pi/cls" in file.read_bytes() for file in files)

    # A new run in the same folder gets runs of its own.
    run_here(out, WANDB, MLFLOW, "train.max_iter=2")
    assert not set(json.loads((out / "trackers.json").read_text()).values()) & set(ids.values())


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")

    def gone(self, iteration, scalars):
        raise ConnectionError("server is gone\nand more")

    monkeypatch.setattr(MLflowWriter, "_send", gone)
    with caplog.at_level(logging.WARNING):
        run_here(tmp_path / "run", MLFLOW)
    assert (tmp_path / "run" / "student_final.pth").is_file()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"needs the package wandb: pip install 'mokd_det\[trackers\]'"):
        WandbWriter()


def test_an_unknown_mode_and_a_server_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="mode='off' is not"):
        WandbWriter(mode="off")
    pytest.importorskip("mlflow")
    writer = MLflowWriter(tracking_uri="no-such-scheme://x")
    with pytest.raises(ConfigError, match="MLflowWriter cannot start"):
        writer.begin(str(tmp_path), {}, resumed=False)


def test_settings_are_flat_and_plain():
    nested = {"a": {"b": 1, "c": [1, 2]}, "model": {"_target_": WandbWriter}, "list": [{"x": None}]}
    assert flat_settings(nested) == {
        "a.b": 1,
        "a.c": [1, 2],
        "model._target_": "mokd_det.engine.trackers.WandbWriter",
        "list.0.x": None,
    }
