"""Tables, figures and a page, made from a run's Parquet files alone."""

# ruff: noqa: E402
from bora_sweep.process import import_matplotlib

import_matplotlib()  # before a module of ours does

from bora_sweep.report.report import MeasureReport, Report
from bora_sweep.report.stats.analysis import Analysis, analyse
from bora_sweep.report.stats.bootstrap import Bootstrap, paired_bootstrap, task_contrasts
from bora_sweep.report.stats.document_scores import DocumentScores, align_documents
from bora_sweep.report.stats.interval import Contrast, Interval
from bora_sweep.report.stats.measure import Measure, measure_of
from bora_sweep.report.write import write_report

__all__ = [
    "Analysis",
    "Bootstrap",
    "Contrast",
    "DocumentScores",
    "Interval",
    "Measure",
    "MeasureReport",
    "Report",
    "align_documents",
    "analyse",
    "measure_of",
    "paired_bootstrap",
    "task_contrasts",
    "write_report",
]
