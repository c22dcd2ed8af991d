"""A self-contained HTML page about runs and comparisons."""

from mokd_det.report.comparison_record import ComparisonRecord, is_comparison, read_comparison
from mokd_det.report.page import report_page
from mokd_det.report.run_record import RunGroup, RunRecord, group_runs, read_record

__all__ = [
    "ComparisonRecord",
    "RunGroup",
    "RunRecord",
    "group_runs",
    "is_comparison",
    "read_comparison",
    "read_record",
    "report_page",
]
