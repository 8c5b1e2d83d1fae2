"""The section on the choice of tau: which values validation supports, and how uncertain the best one is."""

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.text.formats import interval_text, markdown_table, tau_text
from bora_sweep.report.text.measured import label
from bora_sweep.report.text.tables import choice_table


def tau_section(analysis: Analysis) -> str:
    """The choices of tau with their intervals; empty where there is one fit and no estimate."""
    parts = _by_the_sweep(analysis) if len(analysis.summary.fits) > 1 else []
    parts += [part for part in (_by_gradients(analysis),) if part]
    return "\n\n".join(["## Choosing τ", *parts]) if parts else ""


def _by_the_sweep(analysis: Analysis) -> list[str]:
    choice, name, best = analysis.choice, label(analysis.measure), analysis.measure.best_word
    by = f" and their {name}" if analysis.summary.has_metrics else ""
    parts = [
        markdown_table(choice_table(analysis)),
        f"All choices are by the validation documents{by}; the test columns are only reported. *One standard error*: "
        f"the largest τ whose validation {name} lies within one standard error of the {best}. A "
        "larger τ is the simpler model: it holds tasks closer together, down to the single adapter of τ = ∞. The error "
        "is that of the paired difference, since documents that are hard at one τ are hard at all.",
        _as_good(analysis),
    ]
    if choice.lowest_point is not None:
        seeds = "with the variance over seeds" if choice.bootstrap.seed_noise is not None else "given these fits"
        parts.append(
            f"*Where the curve is {best}*: at τ = {interval_text(choice.lowest_point, tau_text)}, with a 95% "
            f"paired-bootstrap interval over the validation documents within tasks, {seeds}."
        )
    return parts


def _as_good(analysis: Analysis) -> str:
    """The values of tau that validation does not distinguish from the best."""
    choice, settings = analysis.choice, analysis.summary.settings
    best = tau_text(settings[choice.minimum].tau)
    others = [tau_text(settings[m].tau) for m in choice.as_good if m != choice.minimum]
    verb = "is" if len(others) == 1 else "are"
    fits = f"{'; '.join(others)} {verb} as good as τ = {best}" if others else f"none is as good as τ = {best}"
    text = f"*As good as the best.* Of the other fitted values, {fits}, by the 95% interval of the paired difference."
    if choice.curve is None:
        return text
    range_ = choice.curve.as_good
    bounds = ((choice.curve.tau_G[0], range_.low), (choice.curve.tau_G[-1], range_.high))
    cut = [tau_text(bound) for end, bound in bounds if end == bound]
    return (
        f"{text} On a smooth curve through the fits between the ends (a Gaussian process on log τ), values from "
        f"{tau_text(range_.low)} to {tau_text(range_.high)} are as good as its {analysis.measure.best_word} point, τ = "
        f"{tau_text(range_.estimate)} (the bar in Figure 2)."
        + (f" This range is cut off where the fits end, at τ = {' and '.join(cut)}." if cut else "")
    )


def _by_gradients(analysis: Analysis) -> str:
    """The estimate of tau from each shared fit that has one, in the order of the trials."""
    estimates = analysis.summary.trials.dropna(subset=["tau_estimate"])
    if estimates.empty:
        return ""
    intervals = [Interval(*values) for values in estimates[["tau_estimate", "tau_low", "tau_high"]].to_numpy()]
    each = " (one for each shared fit)" if len(intervals) > 1 else ""
    return (
        f"*Without a sweep.* The tasks' gradients at the shared model alone estimate τ = "
        f"{'; '.join(interval_text(interval, tau_text) for interval in intervals)}{each}, with a 95% interval over "
        "tasks, given the fit."
    )
