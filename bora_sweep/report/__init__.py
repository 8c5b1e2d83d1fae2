"""Tables, figures and a page, made from a run's Parquet alone."""

from bora_sweep.report.page import write_report
from bora_sweep.report.report import Report
from bora_sweep.report.statistics import Bootstrap, Documents, Interval, align_documents, paired_bootstrap

__all__ = ["Bootstrap", "Documents", "Interval", "Report", "align_documents", "paired_bootstrap", "write_report"]
