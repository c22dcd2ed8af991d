"""What a comparison of methods allows to say."""

from __future__ import annotations

from mokd_det.report.comparison_record import ComparisonRecord
from mokd_det.report.markup import Content, element
from mokd_det.report.section import (
    Section,
    estimate_text,
    table,
)

__all__ = ["comparison_section"]


def comparison_section(comparison: ComparisonRecord, number: int) -> Section:
    """The table of a comparison and what it allows to say."""
    content: list[Content] = []
    for student, rows in comparison.tables.items():
        if len(comparison.tables) > 1:
            content.append(element("h3", student))
        body = []
        for row in rows:
            difference = row.difference
            reached = f"{row.reached} of {row.final.count} seeds"
            body.append(
                [
                    row.label,
                    estimate_text(row.final),
                    "baseline" if difference is None else estimate_text(difference, "+.1f"),
                    "–" if difference is None else difference.verdict(),
                    "–" if difference is None else f"{row.better_seeds} of {difference.count}",
                    f"not reached ({reached})"
                    if row.to_reference is None
                    else f"{row.to_reference:g} ({reached})",
                    f"{row.seconds_per_iteration:.3f}",
                ]
            )
        heads = [
            "method",
            f"{comparison.metric} on {comparison.final_on}",
            "minus baseline",
            "verdict",
            "better seeds",
            f"iterations to {comparison.references[student]:.1f}",
            "s / iteration",
        ]
        content.append(table(heads, body, [False, True, True, False, True, True, True]))
        content.append(element("ul", (element("li", said) for said in comparison.verdicts[student])))
    content.append(
        element(
            "p",
            "Mean over the seeds ± half of its 95 % t interval; differences are paired by seed. An interval that "
            "includes 0 is called unresolved: the runs do not tell whether there is a difference.",
            class_="note",
        )
    )
    return Section(f"comparison{number or ''}", "Comparison", "Comparison", content)
