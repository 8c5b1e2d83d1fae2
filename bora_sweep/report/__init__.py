"""Tables, figures and a page, made from a run's Parquet files alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bora_sweep.report.comparison.comparison import Comparison
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
    "Comparison",
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

_MODULES = {
    "Analysis": "stats.analysis", "Bootstrap": "stats.bootstrap", "Comparison": "comparison.comparison",
    "Contrast": "stats.interval",
    "DocumentScores": "stats.document_scores", "Interval": "stats.interval", "Measure": "stats.measure",
    "MeasureReport": "report", "Report": "report", "align_documents": "stats.document_scores",
    "analyse": "stats.analysis", "measure_of": "stats.measure", "paired_bootstrap": "stats.bootstrap",
    "task_contrasts": "stats.bootstrap", "write_report": "write",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a model card or the report of an `add` needs no matplotlib."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
