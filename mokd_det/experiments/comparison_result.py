"""The result of a comparison, written from its records: table as Markdown and CSV, all values as JSON, picture."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.command_hint import command
from mokd_det.errors import ConfigError
from mokd_det.evaluation.method_comparison import (
    compare,
    comparison_csv,
    comparison_markdown,
    power_sentence,
    reference_value,
    verdicts,
)
from mokd_det.experiments.records import ReplicateRecord, method_runs
from mokd_det.visualization import comparison_figure, save_png

__all__ = ["write_comparison"]

KINDS = {"bbox": "COCO box metric", "classification": "accuracy"}
NOT_TUNED = (
    "no method got a search of its own; coefficients are the published ones or the defaults, learning rate and "
    "schedule the config's for all"
)


def write_comparison(
    options: argparse.Namespace,
    metric: str,
    records: Sequence[ReplicateRecord],
    arguments: Sequence[str],
    *,
    timed: str = "",
) -> None:
    """Write comparison.md, .csv, .json and .png, and print the first.

    Args:
        options: of the command line: output, methods, baseline, reference, tuning.
        metric: that is compared.
        records: of all runs; :func:`~mokd_det.experiments.records.check_together` has passed them.
        arguments: of the command.
        timed: under which load the seconds were measured; empty: unknown.

    Raises:
        ConfigError: too few replicates, or a baseline that is no method.
    """
    found_methods = sorted({record.method for record in records}, key=lambda name: (name != "none", name))
    methods = options.methods or found_methods
    baseline = options.baseline or methods[0]
    if baseline not in methods:
        raise ConfigError(f"--baseline {baseline}: is none of the methods {', '.join(methods)}")
    records = [record for record in records if record.method in methods]
    students = method_runs(records, metric, methods)
    tables = {name: compare(found, baseline, options.reference) for name, found in students.items()}
    references = {
        name: reference_value(next(one for one in found if one.name == baseline), options.reference)
        for name, found in students.items()
    }
    final_on = records[0].final_on
    parts = ["# Comparison of methods"]
    for name, rows in tables.items():
        parts += [f"## {name}", comparison_markdown(rows, metric, references[name])]
        said = [*verdicts(rows, metric), power_sentence(rows, metric)]
        parts.append("\n".join(f"- {sentence}" for sentence in said if sentence))
    parts += ["![curves and final values](comparison.png)", "## How to read this"]
    label = next(record.label for record in records if record.method == baseline)
    parts.append("\n".join(f"- {note}" for note in _notes(options, metric, records, label, timed)))
    parts += ["## Command", f"    {command('tools/compare_methods.py')} {shlex.join(arguments)}"]
    output = options.output
    text = "\n\n".join(parts) + "\n"
    with atomic_write(output / "comparison.md", "w") as file:
        file.write(text)
    with atomic_write(output / "comparison.csv", "w") as file:
        file.write(comparison_csv(tables, metric))
    with atomic_write(output / "comparison.json", "w") as file:
        json.dump(_content(metric, final_on, baseline, references, records), file, indent=2)
        file.write("\n")
    replicates = {record.replicate for record in records}
    figure = comparison_figure(
        students,
        metric=metric,
        references=references,
        baseline=baseline,
        final_on=final_on,
        title=f"{len(replicates)} replicates; bands: worst to best; bars: 95 % t intervals",
    )
    save_png(figure, output / "comparison.png")
    print(f"\n{text}")
    for suffix in ("md", "csv", "json", "png"):
        print(f"  {output / f'comparison.{suffix}'}")


def _notes(
    options: argparse.Namespace,
    metric: str,
    records: Sequence[ReplicateRecord],
    baseline: str,
    timed: str,
) -> list[str]:
    """What is equal, what the numbers mean, and what they do not cover."""
    replicates = sorted({record.replicate for record in records})
    comparisons = len({record.method for record in records}) - 1
    lengths = sorted({record.length for record in records})
    halves: dict[str, set[str]] = {}
    for record in records:
        halves.setdefault(record.half, set()).add(record.capability)
    said = [
        f"Equal for all methods of a replicate: student, its first weights, training images and their order, teacher, "
        f"optimiser, schedule and {' or '.join(map(str, lengths))} iterations. Only method and balancer differ"
        f"{_own_settings(records)}.",
        _what_varies(records),
        f"Tuning: {options.tuning or NOT_TUNED}.",
        f"{metric}: {KINDS[records[0].task]} in percent of the last weights on {records[0].final_on}"
        + (" (no --test-dataset was given)" if records[0].final_on == "the validation data" else "")
        + ", evaluated once, after the training; mean over the replicates ± half of the 95 % interval (t).",
        f"Minus baseline: mean of the differences to “{baseline}” in the same replicate, and the 95 % interval of "
        f"this comparison alone. All at once: half of the interval that holds for all comparisons ({comparisons}) "
        "together with 95 % (max-t); the verdict is by this one. An interval that includes 0 is called unresolved: "
        "these runs do not tell whether there is a difference.",
    ]
    if len(halves) > 1:
        named = "; ".join(f"{half}: {', '.join(sorted(found))}" for half, found in sorted(halves.items()))
        said.append(
            f"Half of the replicates computed with a limited instruction set ({named}). A verdict must hold by the "
            "95 % interval of each half too, else it is unresolved."
        )
    else:
        (name,) = {name for found in halves.values() for name in found} or {""}
        said.append(f"All replicates computed alike ({name}): rounding of another machine is not covered.")
    said += [
        "Detectable: the true difference that so many replicates find, at once with the others, with a probability "
        "of 80 %.",
        "At equal seconds, on the validation data: this method's value when the baseline's training time is over "
        "(linear between evaluations; its schedule has not ended there), minus the baseline's last value.",
        "Iterations to the reference: median over the replicates of the first evaluation on the validation data at or "
        "above it; a run that never got there counts as infinitely long.",
        "s / iteration is the median"
        + (f", {timed}." if timed else "; other machines and loads give others."),
    ]
    teachers = {record.replicate: record.teacher for record in records if record.teacher.get("values")}
    if teachers:
        values = [teacher["values"][metric] for teacher in teachers.values()]
        said.append(
            f"The teachers have {sum(values) / len(values):.1f} {metric} there on average, {min(values):.1f} to "
            f"{max(values):.1f}."
        )
    versions = sorted({f"mokd_det {r.versions['mokd_det']}, torch {r.versions['torch']}" for r in records})
    said.append(
        f"{time.strftime('%Y-%m-%d')}; replicates {', '.join(map(str, replicates))}; {'; '.join(versions)}."
    )
    return said


def _what_varies(records: Sequence[ReplicateRecord]) -> str:
    """What the replicates have of their own, as far as the records tell."""
    shared = []
    teachers = {record.teacher["digest"] for record in records if "digest" in record.teacher}
    taught = {record.replicate for record in records if "digest" in record.teacher}
    if taught and len(teachers) < len(taught):
        shared.append("one teacher" if len(teachers) == 1 else f"{len(teachers)} teachers")
    if not any(("draw=" in r.command or "dataset.seed=" in r.command) for r in records):
        shared.append("the same training images")
    own = "Each replicate has its own first weights and order of the images"
    if "the same training images" not in shared:
        own += ", its own draw of the training images"
    if taught and len(teachers) == len(taught):
        own += ", its own teacher"
    return own + (
        f"; all share {' and '.join(shared)}, whose choice the intervals do not cover." if shared else "."
    )


def _own_settings(records: Sequence[ReplicateRecord]) -> str:
    """The settings that methods bring with them, as the end of a sentence."""
    shown = {
        record.label: ", ".join(f"{key}={value}" for key, value in record.own_settings.items())
        for record in records
        if record.own_settings
    }
    if not shown:
        return ""
    return ", and these settings of a method's own: " + "; ".join(f"{k} {v}" for k, v in shown.items())


def _content(
    metric: str,
    final_on: str,
    baseline: str,
    references: Mapping[str, float],
    records: Sequence[ReplicateRecord],
) -> dict[str, object]:
    return {
        "metric": metric,
        "final_on": final_on,
        "baseline": baseline,
        "references": references,
        "runs": [
            {
                "student": record.student,
                "method": record.method,
                "label": record.label,
                "replicate": record.replicate,
                "half": record.half,
                "final": record.values[metric],
                "iterations": record.iterations,
                "validation": record.curves[metric],
                "seconds_per_iteration": record.seconds_per_iteration,
                "directory": record.directory,
                "command": record.command,
            }
            for record in records
        ],
    }
