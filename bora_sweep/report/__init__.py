"""Tables, figures and a page, made from a run's Parquet alone."""

# ruff: noqa: E402
from bora_sweep.imports import import_matplotlib

import_matplotlib()  # before a module of ours does

from bora_sweep.report.analysis import Analysis, analyse
from bora_sweep.report.documents import Documents, align_documents
from bora_sweep.report.page import write_report
from bora_sweep.report.report import Report
from bora_sweep.report.statistics import Bootstrap, Contrast, Interval, paired_bootstrap, task_contrasts

__all__ = [
    "Analysis",
    "Bootstrap",
    "Contrast",
    "Documents",
    "Interval",
    "Report",
    "align_documents",
    "analyse",
    "paired_bootstrap",
    "task_contrasts",
    "write_report",
]
