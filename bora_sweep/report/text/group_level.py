"""Whether a level of groups between the tasks and all of them helps, in one sentence."""

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.method_comparison import kind_of, reference_setting
from bora_sweep.report.text.formats import difference_text
from bora_sweep.report.text.setting_names import taus_text


def whether_groups_help(analysis: Analysis) -> str:
    """The best fit in three levels against the best in two, paired on test; empty where there are not both."""
    summary = analysis.summary
    settings, reference = summary.settings, reference_setting(summary)
    three = [m for m, setting in enumerate(settings) if kind_of(setting) == "three_levels"]
    if not three or kind_of(settings[reference]) == "three_levels":
        return ""
    best = min(three, key=lambda m: settings[m].order)
    difference = analysis.bootstrap.difference(best, reference)
    taus, other = (taus_text(settings[m].tau, settings[m].structure) for m in (best, reference))
    lower, higher = difference.high < 0, difference.low > 0
    is_better = higher if analysis.measure.is_metric else lower
    verdict = "groups help" if is_better else "groups do no good here" if lower or higher else "no difference is seen"
    return (
        f"**{verdict.capitalize()}**: three levels (τ = {taus}, of {len(three)} such fits) against two (τ = {other}) "
        f"differ on test by {difference_text(difference, analysis.measure)}."
    )
