"""Trainings and evaluations as jobs of a queue: known again when they are finished, resumed
when they are not, set aside when something they depend on has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import mokd_det
from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.config import as_override
from mokd_det.engine.run_directory import set_aside_previous_run
from mokd_det.evaluation.main_metric import main_metric
from mokd_det.exit_status import exit_status
from mokd_det.experiments.run_queue import ChildFailed, Job, clock, interrupt_on_signals, last_lines
from mokd_det.folder_lock import locked_folder
from mokd_det.visualization import read_run

__all__ = [
    "RECORD",
    "Identity",
    "TrainingRun",
    "child_environment",
    "config_digest",
    "content_digest",
    "evaluation_job",
    "file_digest",
    "report_failure",
    "run_command",
    "training_job",
]

RECORD = "made_from.json"
"""In a run's directory: what its result depends on."""

Identity = Callable[[], Mapping[str, str]]
"""What a result depends on, as names and digests; asked when the files it reads are there."""

# Where this package lies: the trainings must import the same one.
_HERE = str(Path(mokd_det.__file__).resolve().parents[1])
# Only for the first estimate of the time left.
EXPECTED_OVERHEAD = 15.0


@dataclass(frozen=True)
class TrainingRun:
    """One training, and where everything of it lies.

    Attributes:
        name: for people; unique.
        config_file: what ``--config-file`` gets.
        directory: the output directory.
        overrides: of the configuration; they include the output directory.
        config: the configuration with the overrides.
        environment: variables of its processes.
    """

    name: str
    config_file: Path
    directory: Path
    overrides: tuple[str, ...]
    config: DictConfig
    environment: Mapping[str, str]

    @property
    def weights(self) -> Path:
        """The trained student, there when the training is finished."""
        return self.directory / "student_final.pth"

    @property
    def test_directory(self) -> Path:
        """Where the evaluation after the training writes."""
        return self.directory / "test"

    def command(self, *arguments: str) -> list[str]:
        """Of the training tool, run by this interpreter."""
        tool = [sys.executable, "-m", "mokd_det", "train"]
        return [*tool, "--config-file", str(self.config_file), *arguments]

    @property
    def main_metric(self) -> str:
        """What it is judged by, ``task/metric``."""
        return main_metric(self.config)

    def test_results(self) -> dict[str, float]:
        """The evaluator's metrics after the training, in percent."""
        task = self.main_metric.partition("/")[0]
        return json.loads((self.test_directory / "results.json").read_text())[task]


def training_job(
    run: TrainingRun, identity: Identity, *, needs: Sequence[str] = (), expected_seconds: float
) -> Job:
    """The training; what another configuration left in its place is set aside, never continued.

    ``identity`` is all it depends on but configuration and version of this package, which are added; ``needs`` names
    the jobs before it.
    """

    def whole_identity() -> dict[str, str]:
        return {
            "configuration": config_digest(run.config),
            "version": mokd_det.__version__,
            **run.environment,
            **identity(),
        }

    def before() -> str:
        if _is_recorded(run.directory, whole_identity()):
            return ""
        (run.directory / RECORD).unlink(missing_ok=True)
        aside = set_aside_previous_run(str(run.directory))
        _record(run.directory, whole_identity())
        return f"anew; an earlier run with other settings, data or teacher is now in {aside}" if aside else ""

    def after() -> str:
        _, values = read_run(run.directory).series(run.main_metric)
        name = run.main_metric.partition("/")[2]
        return f"{name} {values[-1]:.1f} on the validation images" if len(values) else ""

    return Job(
        run.name,
        run.command("--resume", *run.overrides),
        run.directory / "console.txt",
        needs=needs,
        expected_seconds=expected_seconds + EXPECTED_OVERHEAD,
        iterations=run.config.train.max_iter,
        metrics=run.directory / "metrics.json",
        is_done=lambda: run.weights.is_file() and _is_recorded(run.directory, whole_identity()),
        before=before,
        after=after,
        environment=run.environment,
    )


def evaluation_job(
    run: TrainingRun,
    identity: Identity,
    overrides: Sequence[str] = (),
    *,
    weights: Path | None = None,
    needs: Sequence[str] | None = None,
) -> Job:
    """The metrics of the trained model, ``test/results.json`` in the run's directory.

    Args:
        run: the training.
        identity: all it depends on but weights and version of this package, which are added.
        overrides: of the configuration: the data to evaluate on.
        weights: other weights than the run's.
        needs: names of the jobs before it; None: the training.
    """
    results = run.test_directory / "results.json"
    weights = weights or run.weights
    metric = run.main_metric.partition("/")[2]

    def whole_identity() -> dict[str, str]:
        return {
            "weights": file_digest(weights),
            "overrides": shlex.join(overrides),
            "version": mokd_det.__version__,
            **run.environment,
            **identity(),
        }

    def before() -> str:
        results.unlink(missing_ok=True)
        _record(run.test_directory, whole_identity())
        return ""

    places = [
        as_override("train.output_dir", str(run.test_directory)),
        as_override("train.init_checkpoint", str(weights)),
    ]
    return Job(
        f"{run.name}: test",
        run.command("--eval-only", *overrides, *places),
        run.test_directory / "console.txt",
        needs=[run.name] if needs is None else needs,
        expected_seconds=EXPECTED_OVERHEAD,
        is_done=lambda: results.is_file() and _is_recorded(run.test_directory, whole_identity()),
        before=before,
        environment=run.environment,
        after=lambda: f"{metric} {run.test_results()[metric]:.1f} on the test images",
    )


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of the trainings: this very package, one thread each."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        **(changes or {}),
    }


def run_command(work: Callable[[int], None], output: Path, arguments: Sequence[str]) -> int:
    """Do a tool's work, which gets the descriptor of its output directory's lock, and turn what goes wrong into an exit
    status; ``arguments`` of the command line say how an interrupted one is continued.

    Returns:
        0; 2 for a mistake in the input; 130 after an interruption; a failed training's own.
    """
    # What it would print about runs set aside is said in the right place and words by the queue.
    logging.getLogger("mokd_det.engine.run_directory").addHandler(logging.NullHandler())
    began = time.monotonic()

    def run() -> int:
        try:
            with interrupt_on_signals(), locked_folder(output, "--output") as lock:
                work(lock)
        except ChildFailed as failure:
            return report_failure(failure)
        except KeyboardInterrupt:
            tool = sys.argv[0]
            again = f"{tool if tool.startswith('python ') else f'python {tool}'} {shlex.join(arguments)}"
            print(
                f"\nInterrupted. The checkpoints are kept; the same command continues:\n  {again}",
                file=sys.stderr,
            )
            return 130
        print(f"\nAll of this took {clock(time.monotonic() - began)}.")
        return 0

    return exit_status(run)


def report_failure(failure: ChildFailed) -> int:
    """Say which command failed, why, and where its log is; returns the exit status."""
    lines = "\n".join(f"  {line}" for line in last_lines(failure.job.console))
    how = f"with status {failure.status}" if failure.status > 0 else f"by signal {-failure.status}"
    print(f"error: {failure.job.name} ended {how}. Its last lines:\n{lines}", file=sys.stderr)
    print(f"All of them: {failure.job.console}", file=sys.stderr)
    return failure.status if failure.status > 0 else 1


def config_digest(config: DictConfig) -> str:
    """Digest of what a configuration trains."""
    content: Any = OmegaConf.to_container(config, resolve=True)
    # Where a run lies does not change what it trains; the teacher's weights are compared by content.
    content["train"].pop("output_dir")
    content["model"].pop("teacher_checkpoint", None)
    return content_digest(content)


def content_digest(content: Any) -> str:
    """Digest of the values of a configuration; classes and functions by their names, so that it is the same in every
    process."""
    text = json.dumps(
        content, sort_keys=True, default=lambda value: f"{value.__module__}.{value.__qualname__}"
    )
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _record(directory: Path, identity: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / RECORD, "w") as file:
        json.dump(identity, file, indent=2)


def _is_recorded(directory: Path, identity: Mapping[str, str]) -> bool:
    try:
        return json.loads((directory / RECORD).read_text()) == identity
    except (FileNotFoundError, ValueError):
        return False
