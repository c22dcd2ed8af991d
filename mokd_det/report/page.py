"""One HTML page about runs that needs nothing but itself: no network, no script, no other file."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

import mokd_det
from mokd_det.evaluation.model_findings import ModelFindings
from mokd_det.report.comparison_record import ComparisonRecord
from mokd_det.report.curve_sections import conflict_section, losses_section, results_section, weights_section
from mokd_det.report.error_sections import errors_section, per_class_section
from mokd_det.report.picture_sections import attention_section, predictions_section
from mokd_det.report.run_record import RunGroup
from mokd_det.report.table_sections import (
    comparison_section,
    configuration_section,
    overview_section,
    speed_section,
)
from mokd_det.visualization.inline_svg import chart_svg

__all__ = ["page_templates", "report_page"]

# Characters that neither HTML nor XML can hold; they occur in file names, as do lone surrogates.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def page_templates() -> Environment:
    """The package's templates: every text in them is escaped, what is not there is an error."""
    templates = Environment(
        loader=PackageLoader("mokd_det.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["svg"] = chart_svg
    return templates


def report_page(
    title: str,
    groups: Sequence[RunGroup],
    *,
    comparisons: Sequence[ComparisonRecord] = (),
    findings: Mapping[str, ModelFindings] | None = None,
    min_score: float = 0.5,
) -> str:
    """The page of the runs and the comparisons that they belong to.

    Args:
        findings: label → what its trained model does; a run without them has only what it logged.
        min_score: of the predictions in the pictures.
    """
    findings = findings or {}
    sections = [
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
    page = page_templates().get_template("page.html")
    written = page.render(
        title=title,
        runs=sum(len(group.runs) for group in groups),
        date=time.strftime("%Y-%m-%d"),
        version=mokd_det.__version__,
        sections=sections,
    )
    return _FORBIDDEN.sub("\ufffd", written)
