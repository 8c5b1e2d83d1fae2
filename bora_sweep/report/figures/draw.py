"""The report's figures as matplotlib draws them, one module for each kind."""

from matplotlib.figure import Figure

from bora_sweep.report.figures import by_size, pooling, run_curves, task_sizes, tau_curve
from bora_sweep.report.figures.data import BySize, FigureData, Poolings, TaskSizes
from bora_sweep.report.figures.run_curves import RunCurves
from bora_sweep.report.figures.style import plain_style


@plain_style()
def draw(data: FigureData | RunCurves) -> Figure:
    """The figure of its data."""
    if isinstance(data, RunCurves):
        return run_curves.draw(data)
    if isinstance(data, TaskSizes):
        return task_sizes.draw(data)
    if isinstance(data, Poolings):
        return pooling.draw(data)
    return by_size.draw(data) if isinstance(data, BySize) else tau_curve.draw(data)
