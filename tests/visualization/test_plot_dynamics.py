"""tools/plot_dynamics.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from mokd_det.tools import plot_dynamics


@pytest.fixture
def logged(tmp_path) -> Path:
    directory = tmp_path / "a run"
    directory.mkdir()
    lines = [{"iteration": i, "loss_a": 1.0 + i, "loss_b": 2.0, "pi/a": 0.4, "pi/b": 0.6} for i in range(3)]
    (directory / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_plot_dynamics_writes_a_picture(logged, tmp_path, capsys):
    picture = tmp_path / "new" / "dynamics.png"
    assert plot_dynamics.main([str(logged), str(logged), "--labels", "x", "y", "--output", str(picture)]) == 0
    assert capsys.readouterr().out.strip() == str(picture)
    height, width = imread(picture).shape[:2]
    assert width > height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.jpg"], "must end with .png"),
        (["--output", "x.png", "--labels", "a", "b"], "2 names for 1 runs"),
        (["missing", "--output", "x.png"], "missing is no run's output directory"),
    ],
)
def test_plot_dynamics_names_the_mistake(logged, capsys, arguments, message):
    assert plot_dynamics.main([str(logged), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said


def test_plot_dynamics_says_where_nothing_is_logged(logged, tmp_path, capsys):
    (logged / "metrics.json").write_text('{"iteration": 1, "lr": 0.1}\n')
    assert plot_dynamics.main([str(logged), "--output", str(tmp_path / "x.png")]) == 2
    assert "none of the runs has logged" in capsys.readouterr().err
