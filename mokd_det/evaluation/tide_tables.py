"""TIDE's numbers as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tidecv
from tabulate import tabulate

from mokd_det.evaluation.tide import ERROR_TYPES, SPECIAL_TYPES, TideReport

__all__ = ["tide_json", "tide_markdown"]

_HEAD = {"FalsePos": "FP", "FalseNeg": "FN"}


def tide_markdown(reports: Sequence[TideReport]) -> str:
    """For each threshold a table of dAP with one row per detector, and one of class against place; then the notes."""
    parts = []
    for i, errors in enumerate(reports[0].errors):
        at = f"IoU ≥ {errors.threshold:g} (background < {errors.background:g})"
        parts += [f"AP and dAP, AP points lost to each error type, {at}:", _dap_table(reports, i)]
        parts += [f"Class against place, {at}:", _split_table(reports, i)]
    notes = [note for report in reports for note in report.notes()]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def _dap_table(reports: Sequence[TideReport], row: int) -> str:
    names = [*ERROR_TYPES, *SPECIAL_TYPES]
    head = ["detector", "AP", *(_HEAD.get(name, name) for name in names)]
    found = [(report.name, report.errors[row]) for report in reports]
    return _table(head, [[name, _points(e.ap), *(_points(e.dap[n]) for n in names)] for name, e in found])


def _split_table(reports: Sequence[TideReport], row: int) -> str:
    head = ["detector", "classification", "localisation", "sum", "share of classification", "Cls", "Loc"]
    body = []
    for report in reports:
        errors = report.errors[row]
        cls, loc, share = errors.dap["Cls"], errors.dap["Loc"], errors.classification_share
        shown = "–" if share is None else f"{share:.0%}"
        counts = [f"{errors.counts[name]} detections" for name in ("Cls", "Loc")]
        body.append([report.name, _points(cls), _points(loc), _points(cls + loc), shown, *counts])
    return _table(head, body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    aligned = ["left", *["right"] * (len(head) - 1)]
    # A name must not end its cell or its row.
    body = [[" ".join(row[0].replace("|", "\\|").split()), *row[1:]] for row in body]
    return tabulate(body, head, tablefmt="github", colalign=aligned, disable_numparse=True)


def _points(value: float) -> str:
    return f"{value:.2f}"


def tide_json(reports: Sequence[TideReport], truth: str) -> dict[str, Any]:
    """Everything, unrounded, and what the detectors were judged by."""
    return {
        "truth": truth,
        "tidecv": tidecv.__version__,
        "detectors": [
            {
                "name": report.name,
                "detections_per_image": "all" if report.limit is None else report.limit,
                "most_detections": report.most_detections,
                "images_with_more_than_100_detections": report.crowded_images,
                "images_with_more_objects_than_detections": report.images_beyond_detector,
                "classes_without_truth": list(report.classes_without_truth),
                "thresholds": [
                    {
                        "threshold": errors.threshold,
                        "background": errors.background,
                        "ap": errors.ap,
                        "ap_of_classes_with_truth": errors.ap_of_true_classes,
                        "ap_with_tidecv_limit": limited,
                        "dap": dict(errors.dap),
                        "counts": dict(errors.counts),
                        "classification_share": errors.classification_share,
                    }
                    for errors, limited in zip(
                        report.errors, report.ap_with_tidecv_limit or [errors.ap for errors in report.errors]
                    )
                ],
                "notes": report.notes(),
            }
            for report in reports
        ],
    }
