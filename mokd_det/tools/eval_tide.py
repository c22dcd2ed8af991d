"""What detectors lose AP to: TIDE's six error types, false positives and negatives, class against place.

The command line: :mod:`mokd_det.tools.parsers.eval_tide`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.config import TrainSettings, as_override, load_config
from mokd_det.data.truth import Truth, dataset_truth, file_truth
from mokd_det.engine import do_test
from mokd_det.errors import ConfigError
from mokd_det.evaluation.detection_file import Detections, match_ids, read_detections
from mokd_det.evaluation.tide import TideReport, run_tide
from mokd_det.evaluation.tide_tables import tide_json, tide_markdown
from mokd_det.folder_lock import locked_folder
from mokd_det.progress import progress
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import eval_tide as reader
from mokd_det.tools.parsers.eval_tide import detectors, labels
from mokd_det.tools.parsers.model_arguments import ModelFiles
from mokd_det.visualization import save_png
from mokd_det.visualization.tide_bars import tide_figure

RESULTS = "coco_instances_results.json"


def evaluate_all(options: argparse.Namespace) -> None:
    """Everything, in order."""
    models = detectors(options)
    names = labels([path.stem for path in options.results] + [model.name for model in models], options.labels)
    with output_directory(options.output) as directory:
        # Mistakes in files show before models have run for minutes.
        found = {name: read_detections(path, name) for name, path in zip(names, options.results)}
        truth = given_truth(options)
        if truth is not None:
            found = {name: judged(detections, truth, options) for name, detections in found.items()}
        for number, (name, model) in enumerate(zip(names[len(options.results) :], models)):
            file, dataset = detect(model, directory / "detections" / f"{number}", options)
            if truth is None:
                truth = dataset_truth(dataset)
                found = {name: judged(detections, truth, options) for name, detections in found.items()}
            elif (other := dataset_truth(dataset).name) != truth.name:
                raise ConfigError(
                    f"{name} is evaluated on {other}, the others on {truth.name}; give --dataset NAME for all"
                )
            found[name] = judged(read_detections(file, name), truth, options)
        assert truth is not None
        reports = [
            run_tide(
                truth,
                found[name],
                thresholds=options.thresholds,
                background=options.background,
                limit=options.max_dets,
            )
            for name in progress(names, what="detectors")
        ]
        print(tide_markdown(reports))
        if options.output is not None:
            write(reports, truth, options)


def given_truth(options: argparse.Namespace) -> Truth | None:
    """What the command line names; None: what the models' configs say."""
    if options.annotations:
        return file_truth(options.annotations, on_bad_box="drop" if options.drop_bad_boxes else "error")
    return dataset_truth(options.dataset) if options.dataset else None


def judged(detections: Detections, truth: Truth, options: argparse.Namespace) -> Detections:
    """The detections whose ids the truth has."""
    kept, dropped = match_ids(detections, truth, drop_unknown=options.drop_unknown)
    if dropped:
        print(
            f"{detections.name}: {dropped} detections of unknown images or categories are left out",
            file=sys.stderr,
        )
    return kept


def detect(model: ModelFiles, directory: Path, options: argparse.Namespace) -> tuple[Path, str]:
    """Run a detector over its evaluation's images.

    Returns:
        The result file; the data set's name.

    Raises:
        MoKDError: config, weights or data cannot be used.
    """
    overrides = list(options.overrides)
    if options.dataset:
        overrides.append(as_override("dataloader.test.dataset", options.dataset))
    overrides += [
        as_override("train.output_dir", str(directory)),
        as_override("train.init_checkpoint", str(model.weights)),
    ]
    config = load_config(model.config, overrides, training=False)
    dataset = evaluated_dataset(config, model.config)
    config.dataloader.evaluator.output_dir = str(directory)
    settings = TrainSettings.from_config(config.train)
    directory.mkdir(parents=True, exist_ok=True)
    print(f"running {model.weights} on {dataset} ...", file=sys.stderr, flush=True)
    with progress_of_inference(), contextlib.redirect_stdout(io.StringIO()):
        do_test(config, settings)
    return directory / RESULTS, dataset


def evaluated_dataset(config: DictConfig, file: Path) -> str:
    """The data set that a config's box evaluator judges by.

    Raises:
        ConfigError: the config does not evaluate boxes by COCO's metrics.
    """
    evaluator = config.dataloader.get("evaluator")
    dataset = None if evaluator is None else evaluator.get("dataset_name")
    if not isinstance(dataset, str):
        raise ConfigError(
            f"config '{file}': dataloader.evaluator names no dataset_name; TIDE needs a detector that is evaluated by "
            "mokd_det.evaluation.CocoDetectionEvaluator"
        )
    return dataset


@contextlib.contextmanager
def progress_of_inference() -> Iterator[None]:
    """Print what Detectron2 logs while it runs a model: images done and the time left."""
    logger = logging.getLogger("detectron2.evaluation.evaluator")
    handler = logging.StreamHandler(sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def output_directory(given: Path | None) -> Iterator[Path]:
    """The output directory, for this process alone; without one a temporary one."""
    if given is not None:
        with locked_folder(given, "--output"):
            yield given
    else:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)


def write(reports: Sequence[TideReport], truth: Truth, options: argparse.Namespace) -> None:
    """Write tide.md, tide.json and tide.png."""
    output = options.output
    with writing(output):
        with atomic_write(output / "tide.md", "w") as file:
            file.write(f"# What AP is lost to\n\n{tide_markdown(reports)}\n\n![TIDE](tide.png)\n")
        with atomic_write(output / "tide.json", "w") as file:
            json.dump(tide_json(reports, truth.name), file, indent=2)
            file.write("\n")
        save_png(
            tide_figure(reports, title=f"What AP is lost to, on {Path(truth.name).name}"), output / "tide.png"
        )
    for name in ("tide.md", "tide.json", "tide.png"):
        print(f"  {output / name}")


main = command(reader, evaluate_all)
