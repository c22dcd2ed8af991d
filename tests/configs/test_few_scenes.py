"""The cells of the comparisons on few scenes can be built, and their search changes the balancer alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import instantiate

from mokd_det.balancing import Amortized, Balancer
from mokd_det.config.config_file import run_program
from mokd_det.distillation import Method
from mokd_det.experiments.method_grid import read_methods

FOLDER = Path(__file__).parents[2] / "configs" / "common"
CELLS, SEARCH = FOLDER / "few_scenes_methods.py", FOLDER / "few_scenes_balancer_search.py"


@pytest.mark.parametrize("path", [CELLS, SEARCH], ids=lambda path: path.stem)
def test_every_cell_can_be_built(path: Path) -> None:
    for cell in read_methods(path, list(run_program(str(path))["methods"])):
        assert isinstance(instantiate(cell.node), Method), cell.name
        if "run" not in cell.balancer:  # a control: the run whose weights it repeats is not there
            assert isinstance(instantiate(cell.balancer), Balancer), cell.name


def test_the_search_changes_the_balancer_alone() -> None:
    for loss in ("similarity", "standardized", "vkd", "token_matching"):
        (default,) = read_methods(CELLS, [f"{loss}_amortized"])
        names = [name for name in run_program(str(SEARCH))["methods"] if name.startswith(f"{loss}_")]
        trials = read_methods(SEARCH, names)
        assert len(trials) == 10 and all(trial.node == default.node for trial in trials)
        assert [trial.name for trial in trials if trial.balancer == default.balancer] == [f"{loss}_default"]
        assert len({str(trial.balancer) for trial in trials}) == 10
        assert all(isinstance(instantiate(trial.balancer), Amortized) for trial in trials)
