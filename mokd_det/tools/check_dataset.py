"""Check a data set in COCO format: what is in it, and everything that is wrong with it.

The command line: :mod:`mokd_det.tools.parsers.check_dataset`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mokd_det.data import (
    CocoFormatSource,
    DatasetReport,
    check_dataset,
    coco_source,
    report_as_json,
    report_as_text,
    sample_images,
)
from mokd_det.errors import ConfigError
from mokd_det.folder_lock import locked_folder
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import check_dataset as reader
from mokd_det.visualization import save_png
from mokd_det.visualization.contact_sheet import contact_sheet


def run(options: argparse.Namespace) -> int:
    """Check and report.

    Raises:
        MoKDError: the data set cannot be checked, or the report cannot be written.
    """
    source = find_source(options.source, options.drop_bad_boxes)
    report = check_dataset(
        source,
        image_check=options.images,
        num_workers=options.workers,
        max_examples=options.examples,
    )
    content = report_as_json(report)
    text = report_as_text(report)
    if options.output is not None:
        with locked_folder(options.output, "--output"):
            write(report, text, content, options)
    print(json.dumps(content, indent=2, ensure_ascii=False) if options.json else text)
    return 1 if report.errors or (options.strict and report.warnings) else 0


def find_source(given: Sequence[str], drop_bad_boxes: bool) -> CocoFormatSource:
    """The data set that the command line names.

    Raises:
        ConfigError: not two paths and no name of a COCO-format data set.
        DatasetError: unknown name.
    """
    if len(given) == 2:
        json_file, image_root = given
        if not os.path.isdir(image_root):
            raise ConfigError(f"there is no image folder '{image_root}'")
        return CocoFormatSource(None, json_file, image_root, "drop" if drop_bad_boxes else "error")
    if len(given) > 2 or given[0].endswith(".json"):
        raise ConfigError("give an annotation file and the folder of its images, or one registered name")
    source = coco_source(given[0])
    if source is None:
        raise ConfigError(f"data set '{given[0]}' is not read from a COCO-format file; its loader checks it")
    return source


def write(report: DatasetReport, text: str, content: dict, options: argparse.Namespace) -> None:
    """Write report.txt, report.json and contact_sheet.png."""
    with writing(options.output):
        (options.output / "report.txt").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        (options.output / "report.json").write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
            errors="backslashreplace",
        )
        root = report.source.image_root
        columns = report.columns
        if root is None:
            return
        if images := list(sample_images(columns, root, options.samples, seed=options.seed)):
            numbers = report.statistics
            sheet = contact_sheet(
                images,
                columns.category_names,
                title=Path(report.source.json_file).name,
                subtitle=(
                    f"{len(images)} of {numbers.images:,} images, drawn at random with seed {options.seed}; "
                    f"the set has {numbers.boxes:,} boxes of {len(numbers.classes)} classes"
                ),
            )
            save_png(sheet, options.output / "contact_sheet.png")


main = command(reader, run)
