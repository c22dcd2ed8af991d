#!/usr/bin/env python
"""Check a data set in COCO format: what is in it, and everything that is wrong with it.

    python tools/check_dataset.py train.json images/
    python tools/check_dataset.py train.json images/ --images decode --workers 8 --output report/
    python tools/check_dataset.py digits_train --json

--output writes report.txt, report.json and contact_sheet.png. Exit status: 0 without errors; 1 with errors, which
training would refuse (with --strict: with warnings too); 2 if the data set cannot be checked at all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mokd_det.data import (
    IMAGE_CHECKS,
    CocoFormatSource,
    DatasetReport,
    check_dataset,
    coco_source,
    report_as_json,
    report_as_text,
    sample_images,
)
from mokd_det.errors import ConfigError
from mokd_det.exit_status import exit_status
from mokd_det.visualization import save_png
from mokd_det.visualization.contact_sheet import contact_sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "source", nargs="+", metavar="SOURCE", help="annotation file and image folder, or a registered name"
    )
    parser.add_argument(
        "--images",
        choices=IMAGE_CHECKS,
        default="header",
        help="look at image files: that they exist, at their headers (default), at every pixel and for equal contents",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images")
    parser.add_argument("--drop-bad-boxes", action="store_true", help="boxes without area are no errors")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors for the exit status")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--examples", type=int, default=5, metavar="N", help="messages per kind of problem")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write report and contact sheet there")
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="images on the contact sheet")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these images")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Check and report.

    Raises:
        MoKDError: the data set cannot be checked, or the report cannot be written.
    """
    for name, least in (("workers", 0), ("examples", 0), ("samples", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} is {getattr(options, name)}; it must be {least} or more")
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
        write(report, text, content, options)
    print(json.dumps(content, indent=2, ensure_ascii=False) if options.json else text)
    return 1 if report.errors or (options.strict and report.warnings) else 0


def find_source(given: Sequence[str], drop_bad_boxes: bool) -> CocoFormatSource:
    """The data set that the command line names.

    Raises:
        ConfigError: not two paths and no name of a COCO-format data set.
        DatasetError: unknown name.
    """
    policy = "drop" if drop_bad_boxes else "error"
    if len(given) == 2:
        json_file, image_root = given
        if not os.path.isdir(image_root):
            raise ConfigError(f"there is no image folder '{image_root}'")
        return CocoFormatSource(None, json_file, image_root, policy)
    if len(given) > 2 or given[0].endswith(".json"):
        raise ConfigError("give an annotation file and the folder of its images, or one registered name")
    source = coco_source(given[0])
    if source is None:
        raise ConfigError(f"data set '{given[0]}' is not read from a COCO-format file; its loader checks it")
    return source


def write(report: DatasetReport, text: str, content: dict, options: argparse.Namespace) -> None:
    """Write report.txt, report.json and contact_sheet.png.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.txt").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        (options.output / "report.json").write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
            errors="backslashreplace",
        )
        root = report.source.image_root
        images = list(sample_images(report.columns, root, options.samples, seed=options.seed))
        if images:
            numbers = report.statistics
            sheet = contact_sheet(
                images,
                report.columns.category_names,
                title=Path(report.source.json_file).name,
                subtitle=(
                    f"{len(images)} of {numbers.images:,} images, drawn at random with seed {options.seed}; "
                    f"the set has {numbers.boxes:,} boxes of {len(numbers.classes)} classes"
                ),
            )
            save_png(sheet, options.output / "contact_sheet.png")
    except OSError as error:
        raise ConfigError(f"--output {options.output} cannot be written: {error}") from error


if __name__ == "__main__":
    # Names in a file may hold what no encoding can write.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
