"""A checked data set, told to people and to programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from mokd_det.data.dataset_check import DatasetReport
from mokd_det.data.dataset_statistics import ClassCount, Spread
from mokd_det.data.findings import Problem

__all__ = ["report_as_json", "report_as_text"]

_BAR = 24
_LOOKED_AT = {
    "list": "that image files exist",
    "header": "image files by their headers (decode reads every pixel and finds equal contents)",
    "decode": "image files completely",
}


def report_as_json(report: DatasetReport) -> dict[str, Any]:
    """The report as plain values; numbers that cannot be had are None."""
    statistics = dataclasses.asdict(report.statistics)
    statistics["image_sizes"] = [
        {"width": width, "height": height, "images": count}
        for (width, height), count in report.statistics.image_sizes
    ]
    return {
        "json": report.source.json_file,
        "images": report.source.image_root,
        "image_check": report.image_check,
        "errors": report.errors,
        "warnings": report.warnings,
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
        "statistics": statistics,
    }


def report_as_text(report: DatasetReport) -> str:
    """The report as lines of at most about 110 characters, messages apart."""
    numbers = report.statistics
    crowds = f", {_crowds(numbers.crowds)}" if numbers.crowds else ""
    lines = [
        f"{report.source.json_file}",
        f"images below {report.source.image_root}",
        "",
        f"{numbers.images:,} images ({numbers.images_without_boxes:,} without boxes), {numbers.boxes:,} boxes"
        f"{crowds}, {len(numbers.classes)} classes",
        "",
        _row("", "min", "5 %", "median", "95 %", "max"),
        _spread("image width", numbers.image_width),
        _spread("image height", numbers.image_height),
        _spread("image width / height", numbers.image_aspect),
        _spread("boxes per image", numbers.boxes_per_image),
        _spread("box width", numbers.box_width),
        _spread("box height", numbers.box_height),
        _spread("box width / height", numbers.box_aspect),
        _spread("box area, % of image", numbers.box_share, 100.0),
        "",
    ]
    if numbers.small is not None and numbers.medium is not None and numbers.large is not None:
        lines.append(
            f"box areas: {numbers.small:.1%} small (below 32²), {numbers.medium:.1%} medium, "
            f"{numbers.large:.1%} large (above 96²)"
        )
    sizes = ", ".join(f"{width} x {height} ({count:,})" for (width, height), count in numbers.image_sizes)
    others = numbers.distinct_image_sizes - len(numbers.image_sizes)
    lines += [f"image sizes: {sizes}{f' and {others:,} others' if others > 0 else ''}", ""]
    lines += _class_table(numbers.classes, numbers.boxes)
    lines += ["", *_problem_list(report)]
    return "\n".join(lines)


def _class_table(classes: list[ClassCount], boxes: int) -> list[str]:
    width = min(max([len(entry.name) for entry in classes] + [5]), 40)
    most = max([entry.boxes for entry in classes] + [1])
    lines = [f"{'class':<{width}} {'id':>8} {'boxes':>11} {'':>7} {'images':>9}"]
    for entry in sorted(classes, key=lambda entry: (-entry.boxes, entry.id)):
        share = f"{entry.boxes / boxes:.1%}" if boxes else ""
        bar = "█" * round(_BAR * entry.boxes / most) or ("▏" if entry.boxes else "")
        name = entry.name if len(entry.name) <= width else f"{entry.name[: width - 1]}…"
        crowds = f"  and {_crowds(entry.crowds)}" if entry.crowds else ""
        row = f"{name:<{width}} {entry.id:>8} {entry.boxes:>11,} {share:>7} {entry.images:>9,}  {bar}{crowds}"
        lines.append(row.rstrip())
    return lines


def _problem_list(report: DatasetReport) -> list[str]:
    lines = [f"checked {_LOOKED_AT[report.image_check]}"]
    for title, severity, count in (
        ("errors: training would refuse", "error", report.errors),
        ("warnings", "warning", report.warnings),
    ):
        found = [problem for problem in report.problems if problem.severity == severity]
        lines += ["", f"{count:,} {title}" if count else f"no {title.split(':')[0]}"]
        for problem in found:
            lines += _problem(problem, f"{report.source.json_file}: ")
    return lines


def _problem(problem: Problem, prefix: str) -> list[str]:
    """The kind and its examples, without the ``prefix`` that the heading of the report says."""
    lines = [f"  {problem.kind}: {problem.count:,}"]
    lines += [f"    {example.removeprefix(prefix)}" for example in problem.examples]
    hidden = problem.count - len(problem.examples)
    return [*lines, f"    … and {hidden:,} more"] if hidden else lines


def _spread(title: str, spread: Spread, factor: float = 1.0) -> str:
    values = (spread.min, spread.p5, spread.median, spread.p95, spread.max)
    return _row(title, *("-" if value is None else _number(value * factor) for value in values))


def _row(title: str, *cells: str) -> str:
    return (f"{title:<22}" + "".join(f"{cell:>10}" for cell in cells)).rstrip()


def _crowds(count: int) -> str:
    return f"{count:,} crowd{'s' * (count != 1)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
