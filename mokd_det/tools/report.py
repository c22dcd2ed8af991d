"""One self-contained HTML page about runs or a comparison: results, losses, weights, errors, pictures, settings.

The command line: :mod:`mokd_det.tools.parsers.report`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.errors import ConfigError
from mokd_det.evaluation.model_findings import ModelFindings, examine
from mokd_det.report import (
    ComparisonRecord,
    RunGroup,
    RunRecord,
    group_runs,
    is_comparison,
    read_comparison,
    read_record,
    report_page,
)
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import report as reader


def report(options: argparse.Namespace) -> None:
    """Read the runs, run their models, write the page and print its file."""
    groups, comparisons = read(options.runs, options.labels)
    findings = {} if options.no_models else run_models(groups, comparisons, options)
    title = options.title or ", ".join(group.label for group in groups)
    page = report_page(title, groups, comparisons=comparisons, findings=findings, min_score=options.score)
    output = options.output or options.runs[0] / "report.html"
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            file.write(page.encode("utf-8"))
    print(output)


def read(
    directories: Sequence[Path], labels: Sequence[str] | None
) -> tuple[list[RunGroup], list[ComparisonRecord]]:
    """All runs, those of comparisons included.

    Raises:
        ConfigError: a directory is neither, or labels and directories differ in number.
    """
    if labels is not None and len(labels) != len(directories):
        raise ConfigError(f"--labels gives {len(labels)} names for {len(directories)} runs; give one per run")
    names = list(labels or distinct_names(directories))
    runs: list[RunRecord] = []
    comparisons: list[ComparisonRecord] = []
    for directory, name in zip(directories, names):
        if is_comparison(directory):
            comparison = read_comparison(directory)
            comparisons.append(comparison)
            runs += comparison.runs
        else:
            runs.append(read_record(directory, name))
    return group_runs(runs), comparisons


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """The directories' names, with as many of their parents' as tell them apart."""
    paths = [directory.resolve() for directory in directories]
    names = []
    for path in paths:
        depth = 1
        while depth < len(path.parts) and sum(p.parts[-depth:] == path.parts[-depth:] for p in paths) > 1:
            depth += 1
        names.append("/".join(path.parts[-depth:]))
    return names


def run_models(
    groups: Sequence[RunGroup], comparisons: Sequence[ComparisonRecord], options: argparse.Namespace
) -> dict[str, ModelFindings]:
    """Label → what the first run's student does."""
    named = {comparison.final_on for comparison in comparisons} - {"validation"}
    # The comparison's figures are of these data, so its pictures should be too.
    dataset = options.dataset or (named.pop() if len(named) == 1 else None)
    found = {}
    for group in groups:
        findings = examine(
            group.first.directory,
            group.label,
            dataset=dataset,
            max_images=options.images,
            pictures=options.pictures,
            thresholds=options.thresholds,
        )
        for problem in findings.problems:
            print(f"note: {group.label}: {problem}", file=sys.stderr)
        found[group.label] = findings
    return found


main = command(reader, report)
