"""What a comparison of methods allows to say."""

from __future__ import annotations

from mokd_det.evaluation.method_comparison import table_cells
from mokd_det.report.comparison_record import ComparisonRecord
from mokd_det.report.markup import Content, element
from mokd_det.report.section import Section, table

__all__ = ["comparison_section"]


def comparison_section(comparison: ComparisonRecord, number: int) -> Section:
    """The table of a comparison and what it allows to say."""
    content: list[Content] = []
    for student, rows in comparison.tables.items():
        if len(comparison.tables) > 1:
            content.append(element("h3", student))
        head, *body = table_cells(rows, comparison.metric, comparison.references[student])
        head[1] += f" on {comparison.final_on}"
        content.append(table(head, body, [False, True, True, True, False, *[True] * 5]))
        content.append(element("ul", (element("li", said) for said in comparison.verdicts[student])))
    content.append(
        element(
            "p",
            "Mean over the replicates ± half of its 95 % t interval; differences are paired by replicate. The verdict "
            "is by the interval that holds for all comparisons at once, and by each half of the replicates; where one "
            "includes 0 it is unresolved: the runs do not tell whether there is a difference.",
            class_="note",
        )
    )
    return Section(f"comparison{number or ''}", "Comparison", "Comparison", content)
