"""Comparing methods fairly: methods x replicates x students on any config, one table, one picture."""

from __future__ import annotations

import argparse
import copy
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from mokd_det.config import as_override, load_config
from mokd_det.errors import ConfigError
from mokd_det.experiments.comparison_result import write_comparison
from mokd_det.experiments.method_grid import GridRun, Teacher, plan, plan_teachers, read_methods
from mokd_det.experiments.records import (
    METRICS,
    ReplicateRecord,
    check_together,
    make_record,
    read_records,
    write_record,
)
from mokd_det.experiments.run_queue import Job, RunQueue
from mokd_det.experiments.training_runs import (
    TrainingRun,
    child_environment,
    evaluation_job,
    file_digest,
    training_job,
)

__all__ = ["compare_methods", "compare_records"]

# Only for the first estimate of the time left, until the runs' own speed is known.
EXPECTED_SECONDS_PER_ITERATION = 0.2


def compare_methods(options: argparse.Namespace, arguments: Sequence[str], lock: int) -> None:
    """Train what is missing, and write the comparison.

    Raises:
        MoKDError: a mistake in the input.
        ChildFailed: a training or an evaluation failed.
    """
    torch.set_num_threads(1)
    methods = read_methods(options.methods_file, options.methods)
    teachers = plan_teachers(options)
    runs = plan(options, methods, {key: teacher.weights for key, teacher in teachers.items()})
    metric = choose_metric(options.metric, {run.main_metric for run in runs})
    refuse_mixture(options.output / "records", runs)
    gpus = visible_gpus()
    workers = options.jobs or len(gpus) or len(os.sched_getaffinity(0))
    print(
        f"{len(runs)} runs, {workers} at a time on {f'{len(gpus)} GPUs' if gpus else 'the CPU'}", flush=True
    )
    jobs = make_jobs(options, runs, teachers)
    queue = RunQueue(
        jobs,
        workers,
        child_environment(),
        worker_environments=[{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(workers)]
        if gpus
        else [],
        pass_fds=[lock],
        fork=not gpus,
    )
    try:
        queue.run()
    finally:
        # Also after an interruption: what is finished is on record.
        done = {job.name for job in jobs if job.console.exists() and job.is_done()}
        records = [
            keep(options, run, teachers[run.replicate]) for run in runs if _last_job(options, run) in done
        ]
    note = f"{workers} run{'s' if workers > 1 else ''} at a time"
    write_comparison(options, metric, records, arguments, timed=note)


def compare_records(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Write the comparison of records that are there, from one machine or several; nothing is trained.

    Raises:
        MoKDError: records that are missing, damaged or do not belong together.
    """
    records = read_records(options.records)
    check_together(records)
    metric = choose_metric(
        options.metric, {"bbox/AP" if records[0].task == "bbox" else f"{records[0].task}/top1"}
    )
    write_comparison(options, metric, records, arguments)


def _last_job(options: argparse.Namespace, run: TrainingRun) -> str:
    return f"{run.name}: test" if options.test_dataset else run.name


def keep(options: argparse.Namespace, run: GridRun, teacher: Teacher) -> ReplicateRecord:
    """Write the record of a finished run into the folder ``records``."""
    config = run.config
    if options.test_dataset:
        config = load_config(run.config_file, [*run.overrides, *test_overrides(run, options.test_dataset)])
    digests: dict[str, list[str]] = {}
    for name, digest in data_identity(drawn_from(config)).items():
        digests.setdefault(name.partition(" ")[0], []).append(digest)
    known: dict[str, Any] = {}
    if run.teacher is not None:
        known["digest"] = file_digest(run.teacher)
        if teacher.run is not None and (teacher.run.test_directory / "results.json").is_file():
            known["values"] = {
                name: round(value, 5) for name, value in teacher.run.test_results().items() if name in METRICS
            }
    record = make_record(
        run,
        options.output,
        data={name: " ".join(found) for name, found in digests.items()},
        test_dataset=options.test_dataset,
        teacher=known,
        command=shlex.join(
            ["python", "-m", "mokd_det", "train", "--config-file", str(run.config_file), *run.overrides]
        ),
    )
    write_record(record, options.output / "records")
    return record


def refuse_mixture(folder: Path, runs: Sequence[GridRun]) -> None:
    """Refuse to add replicates to others that were trained with other settings.

    Raises:
        ConfigError: naming the record of one that this command would not train anew.
    """
    if not any(folder.glob("*.json")):
        return
    cells = {(run.student, run.method.name, run.replicate) for run in runs}
    wanted = {(run.student, run.method.name): run.settings for run in runs}
    for record in read_records([folder]):
        cell = (record.student, record.method)
        if (*cell, record.replicate) not in cells and wanted.get(cell, record.settings) != record.settings:
            raise ConfigError(
                f"{folder / record.file_name} was trained with other settings than this command gives; replicates of "
                "one folder must be alike: take another --output, or delete that record"
            )


# The jobs


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` can be set to, one GPU each; []: there is none."""
    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


def make_jobs(
    options: argparse.Namespace, runs: Sequence[GridRun], teachers: Mapping[int, Teacher]
) -> list[Job]:
    """Replicate by replicate: the teacher, if it is to be trained, then each run and its test."""
    test = options.test_dataset
    jobs: list[Job] = []
    begun: set[int] = set()
    for run in runs:
        teacher = teachers[run.replicate]
        if run.replicate not in begun and teacher.run is not None:
            if teacher.trained_here:
                jobs.append(_training(teacher.run, None, [], {}))
            if test:
                needs = [teacher.run.name] if teacher.trained_here else []
                overrides = [*options.teacher_set, *test_overrides(teacher.run, test)]
                jobs.append(_evaluation(teacher.run, overrides, weights=teacher.weights, needs=needs))
        begun.add(run.replicate)
        needs = [other.name for other in run.references]
        if teacher.run is not None and teacher.trained_here and run.teacher is not None:
            needs.append(teacher.run.name)
        others = {f"run of {other.name}": other.weights for other in run.references}
        jobs.append(_training(run, run.teacher, needs, others))
        if test:
            jobs.append(_evaluation(run, [*options.set, *test_overrides(run, test)]))
    return jobs


def choose_metric(given: str | None, mains: set[str]) -> str:
    """The metric that the runs are compared by: the given one, or of ``mains``, the ``task/metric`` they are judged by.

    Raises:
        ConfigError: they have no such metric, or not all the same kind of results.
    """
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


def _training(
    run: TrainingRun, teacher: Path | None, needs: Sequence[str], others: Mapping[str, Path]
) -> Job:
    def identity() -> dict[str, str]:
        read = others if teacher is None else {"teacher": teacher, **others}
        return {**data_identity(run.config), **{name: file_digest(path) for name, path in read.items()}}

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
    # The weights' digest stands for the training images, of which these overrides may not say the draw.
    return evaluation_job(
        run, lambda: data_identity(config, ["test"]), overrides, weights=weights, needs=needs
    )


def drawn_from(config: DictConfig) -> DictConfig:
    """The configuration with the draw of replicate 0: what all replicates of a classifier draw their images from. (A
    detector's ``draw`` stands beside its data set, whose annotations are the same for all.)"""
    dataset = config.dataloader.train.get("dataset")
    if isinstance(dataset, DictConfig) and {"per_class", "seed"} <= set(dataset):
        config = copy.deepcopy(config)
        config.dataloader.train.dataset.seed = 0
    return config


def data_identity(config: DictConfig, sections: Sequence[str] = ("train", "test")) -> dict[str, str]:
    """Each data set in these sections of a configuration's ``dataloader`` → digest of its annotations, as far as it has
    a file of them, or of what it says of itself."""
    found = {}
    for section in sections:
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
