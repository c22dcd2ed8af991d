"""Reading what runs log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mokd_det.errors import ConfigError
from mokd_det.visualization import read_run

CONFIG = "objectives:\n  distill: [loss_distill_*]\n  task: ['loss_ce*', 'loss_bbox*']\n  removed: null\n"
RECORDS = [
    {
        "iteration": 19,
        "loss_ce": 1.0,
        "loss_ce_0": 2.0,
        "loss_bbox": 4.0,
        "loss_distill_neck": 8.0,
        "pi/task": 0.5,
    },
    {"iteration": 29, "bbox/AP": 12.5},
    {
        "iteration": 39,
        "loss_ce": 1.5,
        "loss_ce_0": 2.5,
        "loss_bbox": 3.0,
        "loss_distill_neck": 7.0,
        "pi/task": 0.25,
    },
]


def write_run(directory: Path, text: str | None = None, config: str | None = CONFIG) -> Path:
    directory.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (directory / "metrics.json").write_text(lines if text is None else text)
    if config is not None:
        (directory / "config.yaml").write_text(config)
    return directory


def test_losses_are_summed_by_objective_and_by_term_over_the_levels(tmp_path):
    run = read_run(write_run(tmp_path / "mokd"))
    assert run.label == "mokd"
    assert run.losses("task") == ["loss_ce", "loss_ce_0", "loss_bbox"]
    iterations, values = run.series(*run.losses("task"))
    assert iterations.tolist() == [19, 39]
    assert values.tolist() == [7.0, 7.0]
    assert run.terms("task") == {"ce": ["loss_ce", "loss_ce_0"], "bbox": ["loss_bbox"]}
    assert run.series(*run.terms()["ce"])[1].tolist() == [3.0, 4.0]
    assert run.weights()["task"][1].tolist() == [0.5, 0.25]
    assert run.series("bbox/AP") == (np.array([29]), np.array([12.5]))
    assert list(run.objectives) == ["distill", "task"]


def test_a_scalar_that_was_never_logged_is_an_empty_series(tmp_path):
    iterations, values = read_run(write_run(tmp_path)).series("cosine/distill_task")
    assert iterations.shape == values.shape == (0,)


def test_lines_of_one_iteration_are_one_record_and_iterations_ascend(tmp_path):
    text = '{"iteration": 5, "a": 1}\n{"iteration": 2, "a": 3}\n{"iteration": 5, "b": NaN}\n'
    run = read_run(write_run(tmp_path, text))
    assert [record["iteration"] for record in run.records] == [2, 5]
    assert run.series("a")[1].tolist() == [3.0, 1.0]
    assert np.isnan(run.series("b")[1]).tolist() == [True]


def test_the_line_that_a_running_process_has_not_finished_is_left_out(tmp_path):
    run = read_run(write_run(tmp_path, '{"iteration": 1, "a": 1}\n{"iteration": 2, "a"'))
    assert [record["iteration"] for record in run.records] == [1]


def test_without_a_configuration_there_are_terms_but_no_objectives(tmp_path):
    run = read_run(write_run(tmp_path, config=None))
    assert run.objectives == {}
    assert list(run.terms()) == ["ce", "bbox", "distill_neck"]


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("", CONFIG, "has not logged anything yet"),
        ('{"iteration": 1}\nnonsense\n', CONFIG, "metrics.json, line 2: not a JSON object"),
        ('{"a": 1}\n', CONFIG, "line 1: not a JSON object with a number 'iteration'"),
        ('{"iteration": "x"}\n', CONFIG, "line 1"),
        ('{"iteration": 1}\n', "train: {}\n", "does not define 'objectives'"),
        ('{"iteration": 1}\n', "objectives: [\n", "config.yaml is not YAML"),
    ],
)
def test_files_that_no_run_writes_are_refused_by_name(tmp_path, text, config, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        read_run(write_run(tmp_path, text, config))


def test_a_directory_without_metrics_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="is no run's output directory"):
        read_run(tmp_path / "missing")


def test_an_objective_is_summed_as_it_was_trained(tmp_path):
    config = (
        "choice: {method: rkd}\n"
        "methods: {rkd: {objectives: {distill: {loss_distill_a: 25.0, 'loss_distill_b*': 50}, task: [loss_ce]}}}\n"
        "objectives: ${methods.${choice.method}.objectives}\n"
    )
    record = {"iteration": 1, "loss_distill_a": 2.0, "loss_distill_b1": 3.0, "loss_ce": 4.0}
    run = read_run(write_run(tmp_path, json.dumps(record) + "\n", config=config))
    assert run.objectives == {"distill": ["loss_distill_a", "loss_distill_b*"], "task": ["loss_ce"]}
    assert run.objective("distill")[1].tolist() == [2.0 * 25 + 3.0 * 50]
    assert run.objective("task")[1].tolist() == [4.0]
    assert run.objective()[1].tolist() == [9.0]
    assert run.objective("other")[1].size == 0
