"""The quick start: a teacher, a student alone and distilled ones on bundled data, evaluated and drawn."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from tabulate import tabulate

import mokd_det
from mokd_det.checkpoint import load_file, load_into, write_file
from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.config import as_override, load_config
from mokd_det.engine.run_directory import set_aside_previous_run
from mokd_det.evaluation.method_comparison import MethodRuns, RunResult, compare, power_sentence, verdicts
from mokd_det.experiments.quickstart_tasks import Task
from mokd_det.experiments.replicates_say import replicates_say
from mokd_det.experiments.run_queue import Job, RunQueue
from mokd_det.experiments.training_runs import (
    RECORD,
    TrainingRun,
    child_environment,
    evaluation_job,
    file_digest,
    training_job,
)
from mokd_det.model_zoo import CONFIGS, RECORDS
from mokd_det.visualization import curves_figure, read_run, save_png

TEACHER_SEED = 0
TIMED_IMAGES, WARM_UP_IMAGES = 60, 5


@dataclass(frozen=True)
class Run(TrainingRun):
    """One training: a model and a seed."""

    task: Task
    model: str
    seed: int

    @property
    def needs_teacher(self) -> bool:
        """Whether it is distilled."""
        return self.model in self.task.short


def quickstart(options: argparse.Namespace, lock: int) -> None:
    """Everything, in order.

    Raises:
        MoKDError: a mistake in the input.
        ChildFailed: a training or an evaluation failed.
    """
    task: Task = options.task
    data = task.make_data(options)
    # One thread per process: on a busy machine several of them spend their time waiting for each other.
    torch.set_num_threads(1)
    runs = plan(options)
    environment = child_environment(
        {} if data is None else {"DETECTRON2_DATASETS": str(data.parent.resolve())}
    )
    trained = runs[1:] if uses_shipped_teacher(options) else runs
    if trained is not runs:
        place_teacher(runs[0])
    jobs = [*(training(run, trained, data) for run in trained)]
    jobs += [test_evaluation(run, data, trained=run in trained) for run in runs]
    RunQueue(jobs, options.jobs, environment, pass_fds=[lock]).run()

    print("Measuring seconds per image ...", flush=True)
    shown = [next(run for run in runs if run.model == model) for model in task.models]
    inputs, images = task.test_inputs(data, runs[0].config, WARM_UP_IMAGES + TIMED_IMAGES)
    models = {run.model: load_model(run) for run in shown}
    seconds = seconds_per_image(models, inputs)
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    write_results(options, runs, seconds, parameters, images)

    print("Drawing ...", flush=True)
    pictures = task.draw(data, inputs, models, options.output)
    curves = [read_run(run.directory, task.models[run.model]) for run in trained]
    several = f", seeds {', '.join(map(str, options.seeds))}" if len(options.seeds) > 1 else ""
    save_png(
        curves_figure(curves, title=f"{task.title}{several}", results=task.results),
        options.output / "curves.png",
    )

    print(f"\n{(options.output / 'results.md').read_text()}")
    for name in ("results.md", "results.json", *pictures, "curves.png"):
        print(f"  {options.output / name}")
    print(f"  {options.output / 'runs'}/*: configuration, log, metrics and weights of each run")


def plan(options: argparse.Namespace) -> list[Run]:
    """The teacher first, then per seed the student alone and the distilled ones."""
    directory = options.output / "runs"
    teacher = _make_run(options, "teacher", TEACHER_SEED, directory / "teacher", options.teacher_iterations)
    weights = as_override("model.teacher_checkpoint", str(teacher.weights))
    runs = [teacher]
    for seed in options.seeds:
        for model in options.task.models:
            if model != "teacher":
                extra = (weights,) if model in options.task.short else ()
                place = directory / f"{model}_seed{seed}"
                runs.append(_make_run(options, model, seed, place, options.iterations, extra))
    return runs


def _make_run(
    options: argparse.Namespace,
    model: str,
    seed: int,
    directory: Path,
    iterations: int | None,
    extra: tuple[str, ...] = (),
) -> Run:
    task: Task = options.task
    overrides = (
        as_override("train.output_dir", str(directory)),
        f"train.seed={seed}",
        f"dataloader.train.seed={seed}",
        *task.overrides(options, model, seed),
        *extra,
    )
    if iterations is not None:
        overrides += (f"train.max_iter={iterations}",)
    file = CONFIGS / task.configs / f"{model}.py"
    name = task.models[model] + (f" (seed {seed})" if model != "teacher" else "")
    return Run(name, file, directory, overrides, load_config(file, overrides), {}, task, model, seed)


def uses_shipped_teacher(options: argparse.Namespace) -> bool:
    """Whether the teacher is one that the project brings; ``--teacher-iterations`` trains one instead."""
    return options.task.shipped_teacher is not None and options.teacher_iterations is None


def place_teacher(teacher: Run) -> None:
    """Put the shipped teacher where a training would have left it, for every tool that takes a run."""
    assert teacher.task.shipped_teacher is not None
    shipped = load_file(teacher.task.shipped_teacher, what="the demo's teacher")["model"]
    weights = {key: value.float() if value.is_floating_point() else value for key, value in shipped.items()}
    directory = teacher.directory
    if (directory / "metrics.json").exists():
        (directory / RECORD).unlink(missing_ok=True)
        print(f"the teacher that was trained here is now in {set_aside_previous_run(str(directory))}")
    directory.mkdir(parents=True, exist_ok=True)
    if not teacher.weights.is_file() or not _equal(load_file(teacher.weights)["model"], weights):
        write_file(weights, teacher.weights)
    LazyConfig.save(teacher.config, str(directory / "config.yaml"))
    print(f"teacher: {teacher.task.shipped_teacher}, as the project brings it", flush=True)


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def training(run: Run, trained: Sequence[Run], data: Path | None) -> Job:
    """The training of a run; it waits for its teacher where that is among the trained ones."""
    teacher = run.directory.parent / "teacher" / run.weights.name

    def identity() -> dict[str, str]:
        found = run.task.identity(data)
        return {**found, "teacher": file_digest(teacher)} if run.needs_teacher else found

    return training_job(
        run,
        identity,
        needs=[one.name for one in trained if run.needs_teacher and one.model == "teacher"],
        expected_seconds=run.task.expected_seconds[run.model] * run.config.train.max_iter,
    )


def test_evaluation(run: Run, data: Path | None, *, trained: bool = True) -> Job:
    """The metrics of the model on the test split; of one that is trained here, after its training."""
    needs: list[str] | None = None if trained else []
    return evaluation_job(run, lambda: run.task.identity(data), run.task.test_overrides, needs=needs)


def load_model(run: Run) -> torch.nn.Module:
    """The trained model of a run, on the CPU; of a distillation the student."""
    node = run.config.model.student if "student" in run.config.model else run.config.model
    model = instantiate(node).eval()
    load_into(model, run.weights)
    return model


@torch.no_grad()
def seconds_per_image(models: Mapping[str, torch.nn.Module], inputs: Sequence[Any]) -> dict[str, float]:
    """Median seconds of one image at a time on one CPU thread; the models take turns: equal load for all."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for i in range(WARM_UP_IMAGES + TIMED_IMAGES):
        for name, model in models.items():
            began = time.perf_counter()
            model(inputs[i % len(inputs)])
            if i >= WARM_UP_IMAGES:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def write_results(
    options: argparse.Namespace,
    runs: Sequence[Run],
    seconds: Mapping[str, float],
    parameters: Mapping[str, int],
    images: int,
) -> None:
    """Write results.json, with everything, and results.md, with the table and what it allows to say."""
    task: Task = options.task
    found = {run.name: run.test_results() for run in runs}
    of = {model: [run for run in runs if run.model == model] for model in task.models}
    seeds = options.seeds

    def mean(model: str, metric: str) -> float:
        return statistics.fmean(found[run.name][metric] for run in of[model])

    rows = [
        [
            name,
            "shipped"
            if model == "teacher" and uses_shipped_teacher(options)
            else of[model][0].config.train.max_iter,
            *(f"{mean(model, metric):.1f}" for metric in task.metrics),
            f"{parameters[model]:,}",
            f"{seconds[model]:.4f}",
        ]
        for model, name in task.models.items()
    ]
    head = ["model", "iterations", *task.metrics, "parameters", "seconds per image"]
    aligned = ["left", *["right"] * (len(head) - 1)]
    parts = ["# Quick start: results"]
    if task.records:
        folder, method = task.records
        parts += [
            "## What the replicates say",
            replicates_say(RECORDS / folder, method, task.seed_metrics[0]),
        ]
    parts += [
        f"## This run: {'one run' if len(seeds) == 1 else f'{len(seeds)} seeds'}",
        tabulate(rows, head, tablefmt="github", colalign=aligned, disable_numparse=True),
        f"{task.unit} on {images} test images, which no choice was made on"
        + (f"; of the students the mean over {len(seeds)} seeds" if len(seeds) > 1 else f"; seed {seeds[0]}")
        + ". Seconds per image: median, one image at a time on one CPU thread, the models in turns.",
    ]
    differences = {
        model: {
            metric: [
                found[run.name][metric] - found[alone.name][metric]
                for alone, run in zip(of["student"], of[model], strict=True)
            ]
            for metric in task.metrics
        }
        for model in task.short
    }
    if len(seeds) > 1:
        parts.append(_seed_table(options, of, found, differences))
    parts.append("\n".join(f"- {sentence}" for sentence in _verdicts(task, of, found)))
    parts.append(_advice(seeds))
    with atomic_write(options.output / "results.md", "w") as file:
        file.write("\n\n".join(parts) + "\n")
    content = {
        "seeds": seeds,
        "test_images": images,
        "runs": [
            {
                "model": run.model,
                "seed": run.seed,
                "iterations": run.config.train.max_iter,
                "directory": str(run.directory.relative_to(options.output)),
                task.results: found[run.name],
            }
            for run in runs
        ],
        **{f"{model}_minus_alone": values for model, values in differences.items()},
        "parameters": parameters,
        "seconds_per_image": seconds,
        "torch": torch.__version__,
        "mokd_det": mokd_det.__version__,
    }
    with atomic_write(options.output / "results.json", "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def _seed_table(
    options: argparse.Namespace,
    of: Mapping[str, Sequence[Run]],
    found: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    task: Task = options.task
    rows: list[list[Any]] = []
    for i, seed in enumerate(options.seeds):
        row: list[Any] = [seed]
        for metric in task.seed_metrics:
            row.append(f"{found[of['student'][i].name][metric]:.1f}")
            for model in task.short:
                row += [f"{found[of[model][i].name][metric]:.1f}", f"{differences[model][metric][i]:+.1f}"]
        rows.append(row)
    head = ["seed"]
    for metric in task.seed_metrics:
        head.append(f"{metric} alone")
        for name in task.short.values():
            head += [f"{metric} {name}", "difference"]
    return tabulate(rows, head, tablefmt="github", colalign=["right"] * len(head), disable_numparse=True)


def _verdicts(
    task: Task, of: Mapping[str, Sequence[Run]], found: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """What the runs allow to say of each distilled student, by the comparison's statistics."""
    metric = task.seed_metrics[0]
    students = [
        MethodRuns(
            model,
            task.short.get(model, "alone"),
            {
                run.seed: RunResult(
                    found[run.name][metric], [run.config.train.max_iter], [found[run.name][metric]], math.nan
                )
                for run in runs
            },
        )
        for model, runs in of.items()
        if model != "teacher"
    ]
    rows = compare(students, "student")
    return [sentence for sentence in (*verdicts(rows, metric), power_sentence(rows, metric)) if sentence]


def _advice(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return "`--seeds 0 1 2` trains the students with three seeds."
    return (
        "All pairs share one teacher, which the interval does not cover: "
        "`python -m mokd_det compare --replicates` varies it too."
    )
