"""What a comparison of methods allows to say."""

from __future__ import annotations

from mokd_det.evaluation.method_comparison import table_cells
from mokd_det.report.comparison_record import ComparisonRecord
from mokd_det.report.section import Section

__all__ = ["comparison_section"]


def comparison_section(comparison: ComparisonRecord, number: int) -> Section:
    """The table of a comparison and what it allows to say."""
    tables = []
    for student, rows in comparison.tables.items():
        head, *body = table_cells(rows, comparison.metric, comparison.references[student])
        head[1] += f" on {comparison.final_on}"
        tables.append((student, head, body, comparison.verdicts[student]))
    return Section(f"comparison{number or ''}", "Comparison", "Comparison", "comparison", {"tables": tables})
