#!/usr/bin/env python
"""The main job on bundled data: a teacher, a student alone, the same student with MoKD; minutes on two cores.

    python tools/quickstart.py --output output/demo
    python tools/quickstart.py --output output/demo --seeds 0 1 2

Generates the digits, trains by tools/train_net.py with configs/quickstart/*.py, evaluates on images that took
no part in any choice, and writes results.md, results.json, predictions.png and curves.png. What is finished
is not done again: after an interruption the same command continues.

Exit status: 0; 2 for a mistake in the input; 130 after an interruption; a failed training's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from run_queue import Job, RunQueue, clock
from tabulate import tabulate
from training_runs import (
    ROOT,
    TrainingRun,
    child_environment,
    evaluation_job,
    file_digest,
    run_command,
    training_job,
)

import mokd_det
from mokd_det.checkpoint import load_into
from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.data import CocoFormatSource, DetrDatasetMapper, datasets_root, load_coco_format
from mokd_det.data.digits import CLASS_NAMES, DEFAULT_COUNTS, annotation_file, generate, image_folder
from mokd_det.engine import load_config
from mokd_det.engine.override_text import as_override
from mokd_det.errors import ConfigError
from mokd_det.visualization import BoxSet, curves_figure, predictions_figure, read_run, save_png

MODELS = {"teacher": "teacher", "student": "student alone", "mokd": "student, MoKD"}
TEACHER_SEED = 0
METRICS = ("AP", "AP50", "AP75")
# Only for the first estimate of the time left, until the runs' own speed is known: seconds per iteration on
# one core of a small machine.
EXPECTED_SECONDS = {"teacher": 0.18, "student": 0.08, "mokd": 0.17}
PICTURES = 6
MIN_SCORE = 0.5
TIMED_IMAGES, WARM_UP_IMAGES = 60, 5


@dataclass(frozen=True)
class Run(TrainingRun):
    """One training: a model and a seed."""

    model: str
    seed: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda lock: quickstart(options, lock), options.output, given)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="everything is written below it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S", help="of both students (0)")
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="trainings at a time, one thread each (%(default)s)"
    )
    parser.add_argument("--iterations", type=int, metavar="N", help="of each student instead of the config's")
    parser.add_argument(
        "--teacher-iterations", type=int, metavar="N", help="of the teacher instead of the config's"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=DEFAULT_COUNTS["train"],
        metavar="N",
        help="training images (%(default)s); other numbers are generated below --output",
    )
    options = parser.parse_args(arguments)
    for name in ("jobs", "iterations", "teacher_iterations", "images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be 1 or more")
    if min(options.seeds) < 0 or len(set(options.seeds)) != len(options.seeds):
        parser.error(f"--seeds {' '.join(map(str, options.seeds))}: must be different numbers from 0 up")
    return options


def quickstart(options: argparse.Namespace, lock: int) -> None:
    """Everything, in order.

    Raises:
        MoKDError: a mistake in the input.
        ChildFailed: a training or an evaluation failed.
    """
    data = make_data(options)
    # One thread per process: on a busy machine several of them spend their time waiting for each other.
    torch.set_num_threads(1)
    runs = plan(options)
    environment = child_environment({"DETECTRON2_DATASETS": str(data.parent.resolve())})
    jobs = [*(training(run, runs[0], data) for run in runs), *(test_evaluation(run, data) for run in runs)]
    RunQueue(jobs, options.jobs, environment, pass_fds=[lock]).run()

    print("Measuring seconds per image ...", flush=True)
    shown = [next(run for run in runs if run.model == model) for model in MODELS]
    records = load_coco_format(
        CocoFormatSource(None, str(annotation_file(data, "test")), str(image_folder(data, "test")))
    )
    samples = [DetrDatasetMapper(is_train=False, augmentation=[])(record) for record in records]
    models = {run.model: load_model(run) for run in shown}
    seconds = seconds_per_image(models, samples)
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    write_results(options, runs, seconds, parameters, len(records))

    print("Drawing ...", flush=True)
    draw_predictions(options.output / "predictions.png", shown, models, records, samples)
    curves = [read_run(run.directory, MODELS[run.model]) for run in runs]
    several = f", seeds {', '.join(map(str, options.seeds))}" if len(options.seeds) > 1 else ""
    save_png(
        curves_figure(curves, title=f"Training on the bundled digits{several}"), options.output / "curves.png"
    )

    print(f"\n{(options.output / 'results.md').read_text()}")
    for name in ("results.md", "results.json", "predictions.png", "curves.png"):
        print(f"  {options.output / name}")
    print(f"  {options.output / 'runs'}/*: configuration, log, metrics and weights of each run")


def make_data(options: argparse.Namespace) -> Path:
    """Generate the digits unless they are there.

    The usual number of images goes among the other data sets; any other below the output, to replace nothing.
    """
    usual = options.images == DEFAULT_COUNTS["train"]
    root = datasets_root() if usual else options.output / "datasets"
    share = options.images / DEFAULT_COUNTS["train"]
    counts = {split: max(1, round(count * share)) for split, count in DEFAULT_COUNTS.items()}
    began = time.monotonic()
    try:
        made = generate("digits", root, counts=counts)
    except OSError as error:
        raise ConfigError(f"the digits cannot be written below {root}: {error}") from error
    how = f"generated in {clock(time.monotonic() - began)}" if made else "already there"
    print(f"data: {root / 'digits'}, {sum(counts.values())} images, {how}", flush=True)
    return root / "digits"


def plan(options: argparse.Namespace) -> list[Run]:
    """The teacher first, then per seed the student alone and with MoKD."""
    directory = options.output / "runs"
    runs = [_make_run("teacher", TEACHER_SEED, directory / "teacher", options.teacher_iterations)]
    for seed in options.seeds:
        for model in ("student", "mokd"):
            extra = (
                (as_override("model.teacher_checkpoint", str(runs[0].weights)),) if model == "mokd" else ()
            )
            runs.append(_make_run(model, seed, directory / f"{model}_seed{seed}", options.iterations, extra))
    return runs


def _make_run(
    model: str, seed: int, directory: Path, iterations: int | None, extra: tuple[str, ...] = ()
) -> Run:
    overrides = (
        as_override("train.output_dir", str(directory)),
        f"train.seed={seed}",
        f"dataloader.train.seed={seed}",
        *extra,
    )
    if iterations is not None:
        overrides += (f"train.max_iter={iterations}",)
    file = ROOT / "configs" / "quickstart" / f"{model}.py"
    name = MODELS[model] + (f" (seed {seed})" if model != "teacher" else "")
    return Run(name, file, directory, overrides, load_config(file, overrides), model, seed)


def training(run: Run, teacher: Run, data: Path) -> Job:
    """The training of a run."""

    def identity() -> dict[str, str]:
        found = _data_identity(data)
        return {**found, "teacher": file_digest(teacher.weights)} if run.model == "mokd" else found

    return training_job(
        run,
        identity,
        needs=[teacher.name] if run.model == "mokd" else [],
        expected_seconds=EXPECTED_SECONDS[run.model] * run.config.train.max_iter,
    )


def test_evaluation(run: Run, data: Path) -> Job:
    """COCO's metrics of the trained model on the test split."""
    return evaluation_job(run, lambda: _data_identity(data), ["dataloader.test.dataset=digits_test"])


def _data_identity(data: Path) -> dict[str, str]:
    return {"data": file_digest(data / "manifest.json")}


def load_model(run: Run) -> torch.nn.Module:
    """The trained detector of a run, on the CPU; of a distillation the student."""
    node = run.config.model.student if "student" in run.config.model else run.config.model
    model = instantiate(node).eval()
    load_into(model, run.weights)
    return model


@torch.no_grad()
def seconds_per_image(
    models: Mapping[str, torch.nn.Module], samples: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Median seconds of one image at a time on one CPU thread; the models take turns: equal load for all."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for i in range(WARM_UP_IMAGES + TIMED_IMAGES):
        for name, model in models.items():
            began = time.perf_counter()
            model([samples[i % len(samples)]])
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
    found = {run.name: run.test_results() for run in runs}
    of = {model: [run for run in runs if run.model == model] for model in MODELS}

    def mean(model: str, metric: str) -> float:
        return statistics.fmean(found[run.name][metric] for run in of[model])

    rows = [
        [
            name,
            of[model][0].config.train.max_iter,
            *(f"{mean(model, metric):.1f}" for metric in METRICS),
            f"{parameters[model]:,}",
            f"{seconds[model]:.4f}",
        ]
        for model, name in MODELS.items()
    ]
    head = ["model", "iterations", *METRICS, "parameters", "seconds per image"]
    aligned = ["left", *["right"] * (len(head) - 1)]
    seeds = options.seeds
    parts = [
        "# Quick start: results",
        tabulate(rows, head, tablefmt="github", colalign=aligned, disable_numparse=True),
        f"COCO box metrics in percent on {images} test images, which no choice was made on"
        + (f"; of the students the mean over {len(seeds)} seeds" if len(seeds) > 1 else f"; seed {seeds[0]}")
        + ". Seconds per image: median, one image at a time on one CPU thread, the models in turns.",
    ]
    differences = {
        metric: [
            found[mokd.name][metric] - found[alone.name][metric]
            for alone, mokd in zip(of["student"], of["mokd"])
        ]
        for metric in METRICS
    }
    if len(seeds) > 1:
        parts.append(_seed_table(seeds, of, found, differences))
    parts.append(_verdict(seeds, differences["AP"]))
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
                "bbox": found[run.name],
            }
            for run in runs
        ],
        "mokd_minus_alone": differences,
        "parameters": parameters,
        "seconds_per_image": seconds,
        "torch": torch.__version__,
        "mokd_det": mokd_det.__version__,
    }
    with atomic_write(options.output / "results.json", "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def _seed_table(
    seeds: Sequence[int],
    of: Mapping[str, Sequence[Run]],
    found: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Sequence[float]],
) -> str:
    rows: list[list[Any]] = []
    for i, seed in enumerate(seeds):
        row: list[Any] = [seed]
        for metric in ("AP", "AP50"):
            alone, mokd = (found[of[model][i].name][metric] for model in ("student", "mokd"))
            row += [f"{alone:.1f}", f"{mokd:.1f}", f"{differences[metric][i]:+.1f}"]
        rows.append(row)
    head = ["seed", "AP alone", "AP MoKD", "difference", "AP50 alone", "AP50 MoKD", "difference"]
    return tabulate(rows, head, tablefmt="github", colalign=["right"] * len(head), disable_numparse=True)


def _verdict(seeds: Sequence[int], differences: Sequence[float]) -> str:
    """What the differences in AP allow to say."""
    if len(seeds) == 1:
        return (
            f"MoKD against alone: {differences[0]:+.1f} AP. One pair of runs cannot tell a gain from chance: "
            "`--seeds 0 1 2` trains both students with three seeds."
        )
    average, spread = statistics.fmean(differences), statistics.stdev(differences)
    error = spread / len(seeds) ** 0.5
    better = sum(difference > 0 for difference in differences)
    return (
        f"MoKD against alone: {average:+.1f} AP on average, ± {error:.1f} "
        f"(standard error over {len(seeds)} seeds); better with {better} of {len(seeds)} seeds. "
        "All pairs share one teacher and one data set."
    )


@torch.no_grad()
def draw_predictions(
    path: Path,
    runs: Sequence[Run],
    models: Mapping[str, torch.nn.Module],
    records: Sequence[dict[str, Any]],
    samples: Sequence[dict[str, Any]],
) -> None:
    """The first test images, as they come, with the truth and what each model finds."""
    samples, records = samples[:PICTURES], records[:PICTURES]
    columns = []
    for run in runs:
        found = [models[run.model]([sample])[0]["instances"] for sample in samples]
        columns.append((MODELS[run.model], [BoxSet.from_instances(instances) for instances in found]))
    figure = predictions_figure(
        [sample["image"].permute(1, 2, 0).numpy() for sample in samples],
        [BoxSet.from_annotations(record["annotations"]) for record in records],
        columns,
        CLASS_NAMES,
        min_score=MIN_SCORE,
        title=f"The first {len(samples)} test images",
        row_names=[Path(record["file_name"]).name for record in records],
    )
    save_png(figure, path)


if __name__ == "__main__":
    sys.exit(main())
