"""One HTML page about runs that needs nothing but itself: no network, no script, no other file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import mokd_det
from mokd_det.report.comparison_record import ComparisonRecord
from mokd_det.report.comparison_section import comparison_section
from mokd_det.report.configuration_section import configuration_section
from mokd_det.report.curve_sections import conflict_section, losses_section, results_section, weights_section
from mokd_det.report.error_sections import errors_section, per_class_section
from mokd_det.report.markup import Markup, element, join
from mokd_det.report.model_findings import ModelFindings
from mokd_det.report.overview_section import overview_section
from mokd_det.report.picture_sections import attention_section, predictions_section
from mokd_det.report.run_record import RunGroup
from mokd_det.report.speed_section import speed_section
from mokd_det.report.style import STYLE

__all__ = ["report_page"]

# Whatever a name or a configuration holds, a browser loads nothing and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_page(
    title: str,
    groups: Sequence[RunGroup],
    *,
    comparisons: Sequence[ComparisonRecord] = (),
    findings: Mapping[str, ModelFindings] | None = None,
    min_score: float = 0.5,
) -> str:
    """The page.

    Args:
        title: its heading.
        groups: the runs.
        comparisons: that they belong to.
        findings: label → what its trained model does; a run without them has only what it logged.
        min_score: of the predictions in the pictures.
    """
    findings = findings or {}
    parts = [
        overview_section(groups, findings),
        *(comparison_section(one, number) for number, one in enumerate(comparisons)),
        results_section(groups),
        losses_section(groups),
        weights_section(groups),
        conflict_section(groups),
        per_class_section(groups),
        *filter(None, [errors_section(groups, findings)]),
        predictions_section(groups, findings, min_score=min_score),
        attention_section(groups, findings, min_score=min_score),
        speed_section(groups, findings),
        configuration_section(groups),
    ]
    count = sum(len(group.runs) for group in groups)
    made = f"{count} run{'s' if count != 1 else ''}, {time.strftime('%Y-%m-%d')}, mokd_det {mokd_det.__version__}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        # Nothing in it comes from outside, and an escaped style sheet would be another one.
        Markup(f"<style>{STYLE}</style>"),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", made, class_="soft")),
        element("nav", element("div", (element("a", part.short, href=f"#{part.id}") for part in parts))),
        element(
            "main",
            (element("section", element("h2", part.title), part.content, id=part.id) for part in parts),
        ),
        element(
            "footer",
            element("p", f"Made by mokd_det {mokd_det.__version__}, python -m mokd_det report."),
        ),
    )
    return "<!DOCTYPE html>\n" + join(element("html", head, body, lang="en")) + "\n"
