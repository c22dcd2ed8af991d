"""Comparing methods fairly: methods x seeds x students on any config, one table, one picture."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf

import mokd_det
from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.command_hint import command
from mokd_det.config import as_override, load_config
from mokd_det.errors import ConfigError
from mokd_det.evaluation.method_comparison import (
    MethodRuns,
    RunResult,
    compare,
    comparison_csv,
    comparison_markdown,
    reference_value,
    verdicts,
)
from mokd_det.experiments.method_grid import GridRun, Method, Teacher, plan, plan_teacher, read_methods
from mokd_det.experiments.run_queue import Job, RunQueue
from mokd_det.experiments.training_runs import (
    TrainingRun,
    child_environment,
    evaluation_job,
    file_digest,
    training_job,
)
from mokd_det.visualization import comparison_figure, read_run, save_png

# Only for the first estimate of the time left, until the runs' own speed is known.
EXPECTED_SECONDS_PER_ITERATION = 0.2
# Only such of which more is better.
METRICS = {
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "AP75": "bbox/AP75",
    "top1": "classification/top1",
    "top5": "classification/top5",
}
KINDS = {"bbox": "COCO box metric", "classification": "accuracy"}
NOT_TUNED = (
    "no method got a search of its own; coefficients are the published ones or the defaults, learning rate and "
    "schedule the config's for all"
)


def compare_methods(options: argparse.Namespace, arguments: Sequence[str], lock: int) -> None:
    """Everything, in order.

    Raises:
        MoKDError: a mistake in the input.
        ChildFailed: a training or an evaluation failed.
    """
    torch.set_num_threads(1)
    methods = read_methods(options.methods_file, options.methods)
    teacher = plan_teacher(options)
    runs = plan(options, methods, teacher.weights)
    options.metric = choose_metric(options.metric, runs)
    gpus = visible_gpus()
    workers = options.jobs or len(gpus) or len(os.sched_getaffinity(0))
    print(
        f"{len(runs)} runs, {workers} at a time on {f'{len(gpus)} GPUs' if gpus else 'the CPU'}", flush=True
    )
    RunQueue(
        make_jobs(options, runs, teacher),
        workers,
        child_environment(),
        worker_environments=[{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(workers)]
        if gpus
        else [],
        pass_fds=[lock],
    ).run()
    write_results(options, arguments, methods, runs, teacher, workers)
    print(f"\n{(options.output / 'comparison.md').read_text()}")
    for suffix in ("md", "csv", "json", "png"):
        print(f"  {options.output / f'comparison.{suffix}'}")


# The jobs


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` can be set to, one GPU each; []: there is none."""
    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


def make_jobs(options: argparse.Namespace, runs: Sequence[GridRun], teacher: Teacher) -> list[Job]:
    """The teacher, if it is to be trained, then each run and its test."""
    test = options.test_dataset
    jobs: list[Job] = []
    if teacher.run is not None:
        if teacher.trained_here:
            jobs.append(_training(teacher.run, None, []))
        if test:
            needs = [teacher.run.name] if teacher.trained_here else []
            jobs.append(
                _evaluation(
                    teacher.run, test_overrides(teacher.run, test), weights=teacher.weights, needs=needs
                )
            )
    for run in runs:
        needs = ["teacher"] if teacher.trained_here and run.teacher is not None else []
        jobs.append(_training(run, run.teacher, needs))
        if test:
            jobs.append(_evaluation(run, [*options.set, *test_overrides(run, test)]))
    return jobs


def choose_metric(given: str | None, runs: Sequence[GridRun]) -> str:
    """The metric that the runs are compared by.

    Raises:
        ConfigError: they have no such metric, or not all the same kind of results.
    """
    mains = {run.main_metric for run in runs}
    found = {main.partition("/")[0] for main in mains}
    if len(found) > 1:
        raise ConfigError(
            f"the configs are evaluated differently ({', '.join(sorted(mains))}); compare one kind at a time"
        )
    metric = given or next(iter(mains)).partition("/")[2]
    if METRICS.get(metric, "").partition("/")[0] not in found:
        known = [name for name, path in METRICS.items() if path.partition("/")[0] in found]
        raise ConfigError(f"--metric {metric}: these configs can be compared by {', '.join(known) or 'none'}")
    return metric


def test_overrides(run: TrainingRun, name: str) -> list[str]:
    """What evaluates on the data set of that name, or on that split of the data set that a config describes."""
    described = isinstance(run.config.dataloader.test.get("dataset"), DictConfig)
    return [as_override("dataloader.test.dataset" + (".split" if described else ""), name)]


def _training(run: TrainingRun, teacher: Path | None, needs: Sequence[str]) -> Job:
    def identity() -> dict[str, str]:
        data = data_identity(run.config)
        return data if teacher is None else {**data, "teacher": file_digest(teacher)}

    seconds = EXPECTED_SECONDS_PER_ITERATION * run.config.train.max_iter
    return training_job(run, identity, needs=needs, expected_seconds=seconds)


def _evaluation(
    run: TrainingRun,
    overrides: Sequence[str],
    *,
    weights: Path | None = None,
    needs: Sequence[str] | None = None,
) -> Job:
    config = load_config(run.config_file, overrides)
    return evaluation_job(run, lambda: data_identity(config), overrides, weights=weights, needs=needs)


def data_identity(config: DictConfig) -> dict[str, str]:
    """Each data set in a configuration → digest of its annotations, as far as it has a file of them, or of what it
    says of itself."""
    found = {}
    for section in ("train", "test"):
        names = config.dataloader[section].get("dataset", ())
        if isinstance(names, DictConfig):
            found[f"{section} data"] = _fingerprint(names)
            continue
        for name in [names] if isinstance(names, str) else names:
            file = MetadataCatalog.get(name).get("json_file") if isinstance(name, str) else None
            found[f"{section} data {name}"] = "" if file is None else _annotation_digest(Path(file))
    return found


def _fingerprint(node: DictConfig) -> str:
    """What a described data set says of itself; asked once for each description."""
    text = str(OmegaConf.to_container(node, resolve=True))
    if text not in _FINGERPRINTS:
        _FINGERPRINTS[text] = instantiate(node).fingerprint()
    return _FINGERPRINTS[text]


_FINGERPRINTS: dict[str, str] = {}


@cache
def _annotation_digest(path: Path) -> str:
    return file_digest(path) if path.is_file() else ""


# The result


def read_result(run: GridRun, metric: str, on_test: bool) -> RunResult:
    """What a finished run has logged.

    Raises:
        ConfigError: the run was never evaluated.
    """
    metrics = read_run(run.directory)
    iterations, values = metrics.series(METRICS[metric])
    _, seconds = metrics.series("time")
    if len(iterations) == 0:
        raise ConfigError(f"{run.directory} has logged no {METRICS[metric]}: train.eval_period must not be 0")
    # During the training an evaluation is logged under the number of the last iteration, which starts at 0; at
    # the end under how many there were.
    length = run.config.train.max_iter
    final = run.test_results()[metric] if on_test else float(values[-1])
    return RunResult(
        final,
        [min(iteration + 1, length) for iteration in iterations.tolist()],
        values.tolist(),
        statistics.median(seconds) if len(seconds) else float("nan"),
    )


def write_results(
    options: argparse.Namespace,
    arguments: Sequence[str],
    methods: Sequence[Method],
    runs: Sequence[GridRun],
    teacher: Teacher,
    workers: int,
) -> None:
    """Write the table as Markdown and CSV, all values as JSON, and the picture."""
    metric, on_test = options.metric, options.test_dataset is not None
    results = {run.directory: read_result(run, metric, on_test) for run in runs}
    students = {}
    for path in options.config:
        students[path.stem] = [
            MethodRuns(
                method.name,
                method.label,
                {
                    run.seed: results[run.directory]
                    for run in runs
                    if run.student == path.stem and run.method is method
                },
            )
            for method in methods
        ]
    tables = {name: compare(rows, options.baseline, options.reference) for name, rows in students.items()}
    references = {
        name: reference_value(next(row for row in rows if row.name == options.baseline), options.reference)
        for name, rows in students.items()
    }
    final_on = options.test_dataset or "the validation data"
    base = next(method.label for method in methods if method.name == options.baseline)
    parts = ["# Comparison of methods"]
    for name, rows in tables.items():
        parts += [f"## {name}", comparison_markdown(rows, metric, references[name])]
        parts.append("\n".join(f"- {sentence}" for sentence in verdicts(rows, metric)))
    parts += ["![curves and final values](comparison.png)", "## How to read this"]
    parts.append("\n".join(f"- {note}" for note in notes(options, runs, base, teacher, workers)))
    parts += ["## Command", f"    {command('tools/compare_methods.py')} {shlex.join(arguments)}"]
    with atomic_write(options.output / "comparison.md", "w") as file:
        file.write("\n\n".join(part for part in parts if part) + "\n")
    with atomic_write(options.output / "comparison.csv", "w") as file:
        file.write(comparison_csv(tables, metric))
    with atomic_write(options.output / "comparison.json", "w") as file:
        json.dump(_content(options, runs, results, references), file, indent=2)
        file.write("\n")
    count = len(options.seeds)
    figure = comparison_figure(
        students,
        metric=metric,
        references=references,
        baseline=options.baseline,
        final_on=final_on,
        title=f"{count} seeds each; bands: worst to best seed; bars: 95 % t intervals"
        if count > 1
        else "One seed",
    )
    save_png(figure, options.output / "comparison.png")


def notes(
    options: argparse.Namespace,
    runs: Sequence[GridRun],
    baseline: str,
    teacher: Teacher,
    workers: int,
) -> list[str]:
    """What is equal, what the numbers mean, and what they do not cover."""
    count, train = len(options.seeds), runs[0].config.train
    compared = len(options.methods) - 1
    evaluated = f"every {train.eval_period} iterations and at the end" if train.eval_period else "at the end"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU, one thread each"
    said = [
        f"Equal for all methods: student, first weights, order of the images per seed, optimiser, schedule and "
        f"{train.max_iter} iterations. Only method and balancer differ{own_settings(runs)}.",
        f"Tuning: {options.tuning or NOT_TUNED}.",
        f"{options.metric}: {KINDS[METRICS[options.metric].partition('/')[0]]} in percent of the last weights on "
        + (
            f"{options.test_dataset}, evaluated once, after the training"
            if options.test_dataset
            else "the validation data (no --test-dataset was given)"
        )
        + f"; mean over {count} seed{'s' if count > 1 else ''}"
        + (f" ± half of the 95 % interval (t, {count - 1} degrees of freedom)." if count > 1 else "."),
        f"Minus baseline: mean of the differences to “{baseline}” with the same seed, and their 95 % interval. "
        "An interval that includes 0 is called unresolved: these runs do not tell whether there is a difference.",
        f"Iterations to the reference: median over the seeds of the first evaluation ({evaluated}, on the "
        "validation data) at or above it; a run that never got there counts as infinitely long.",
        f"Equal iterations are not equal time: s / iteration is the median on {device}, {workers} "
        f"run{'s' if workers > 1 else ''} at a time.",
        "The intervals cover the seed of the student only: all runs share the data"
        + (" and one teacher" if any(run.teacher for run in runs) else "")
        + ".",
    ]
    if compared > 1 and count > 1:
        said.insert(
            4,
            f"{compared} comparisons are made per student, each interval by itself at 95 %: without any real "
            f"difference, the chance that one of them excludes 0 all the same is up to {min(100, 5 * compared)} %.",
        )
    if teacher.run is not None and options.test_dataset:
        said.append(
            f"The teacher has {teacher.run.test_results()[options.metric]:.1f} {options.metric} there."
        )
    version = torch.__version__.partition("+")[0]
    said.append(f"{time.strftime('%Y-%m-%d')}, mokd_det {mokd_det.__version__}, torch {version}.")
    return said


def own_settings(runs: Sequence[GridRun]) -> str:
    """The settings that methods bring with them, as the end of a sentence."""
    shown = {
        run.method.label: ", ".join(
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in given.items()
        )
        for run in runs
        if (given := {key: value for key, value in run.method.settings.items() if key != "objectives"})
    }
    return (
        ", and these settings of a method's own: "
        + "; ".join(f"{label} {text}" for label, text in shown.items())
        if shown
        else ""
    )


def _content(
    options: argparse.Namespace,
    runs: Sequence[GridRun],
    results: Mapping[Path, RunResult],
    references: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "metric": options.metric,
        "final_on": options.test_dataset or "validation",
        "baseline": options.baseline,
        "references": references,
        "runs": [
            {
                "student": run.student,
                "method": run.method.name,
                "label": run.method.label,
                "seed": run.seed,
                "final": results[run.directory].final,
                "iterations": results[run.directory].iterations,
                "validation": results[run.directory].curve,
                "seconds_per_iteration": results[run.directory].seconds_per_iteration,
                "directory": str(run.directory.relative_to(options.output)),
                "command": shlex.join(
                    ["python", "tools/train_net.py", "--config-file", str(run.config_file), *run.overrides]
                ),
            }
            for run in runs
        ],
    }
