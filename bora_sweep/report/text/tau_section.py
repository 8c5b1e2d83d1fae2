"""The part of the report that tells which tau validation speaks for, and how well it is known."""

import math

import pandas as pd

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.bootstrap import Interval
from bora_sweep.report.text.formats import Table, level_text, markdown_table, percent_text, tau_text


def choosing(analysis: Analysis) -> str:
    """A table of the choices, and how well tau is known in each way to say it; empty where there is one fit."""
    parts = [part for part in (*_by_the_sweep(analysis), _by_the_shared_model(analysis)) if part]
    return "\n\n".join(["## Choosing τ", *parts]) if parts else ""


def choice_numbers(analysis: Analysis) -> pd.DataFrame:
    """The choices, and every interval of tau, as numbers."""
    choice, settings = analysis.choice, analysis.summary.settings
    rows = [
        ("lowest", settings[choice.minimum].tau, math.nan, math.nan),
        ("one_standard_error", settings[choice.one_standard_error].tau, math.nan, math.nan),
    ]
    told = {
        "lowest_point_bootstrap": choice.resampled,
        "as_good_as_the_best": None if choice.curve is None else choice.curve.as_good,
        "posterior": choice.posterior,
    }
    rows += [(name, tau.estimate, tau.low, tau.high) for name, tau in told.items() if tau is not None]
    return pd.DataFrame(rows, columns=["choice", "tau", "low", "high"])


def _by_the_sweep(analysis: Analysis) -> list[str]:
    choice, summary = analysis.choice, analysis.summary
    if len(summary.fits) < 2:
        return []
    fits = [tau_text(summary.settings[m].tau) for m in choice.as_good]
    told = [
        markdown_table(_table(analysis)),
        "All of this is by the validation documents; the test columns are only reported. *One standard error*: the "
        "largest τ whose validation perplexity lies within one standard error of the lowest. Larger is simpler, since "
        "a larger τ holds tasks closer together, down to the single adapter of τ = ∞; and the error is that of the "
        "paired difference, since documents that are hard for one τ are hard for all.",
        "*As good as the best.* "
        + (
            f"Of the values fitted, {', '.join(fits)} are not told from the lowest"
            if len(fits) > 1
            else f"All values fitted but {fits[0]} are told from it"
        )
        + ", by the 95% interval of the paired difference to the lowest."
        + _stretch(analysis),
    ]
    if choice.resampled is not None:
        told.append(
            f"*Where the curve is lowest*: at τ = {_tau_interval(choice.resampled)}, a 95% paired-bootstrap interval "
            f"over the validation documents within tasks, {_given(analysis)}. {_posterior(analysis)}"
        )
    return told


def _table(analysis: Analysis) -> Table:
    choice, summary = analysis.choice, analysis.summary
    rows = [("lowest on validation", choice.minimum), ("one standard error", choice.one_standard_error)]
    table = Table(["Choice", "τ", "Validation", "above the lowest", "Test", "above that of the lowest"])
    for name, m in rows:
        ours = m == choice.minimum
        table.rows.append(
            [
                name,
                tau_text(summary.settings[m].tau),
                level_text(choice.bootstrap.perplexity(m)),
                "–" if ours else percent_text(choice.above_minimum[m].relative()),
                level_text(analysis.bootstrap.perplexity(m)),
                "–" if ours else percent_text(analysis.bootstrap.relative_difference(m, choice.minimum)),
            ]
        )
    return table


def _stretch(analysis: Analysis) -> str:
    curve = analysis.choice.curve
    if curve is None:
        return ""
    as_good = curve.as_good
    edges = [end for end, tau in ((curve.tau_G[0], as_good.low), (curve.tau_G[-1], as_good.high)) if end == tau]
    said = f" It ends where the fits do, at {' and '.join(tau_text(edge) for edge in edges)}." if edges else ""
    return (
        " On the smooth curve between the ends, a Gaussian process on log τ, these are the values of "
        f"τ from {tau_text(as_good.low)} to {tau_text(as_good.high)}, around its lowest point at "
        f"{tau_text(as_good.estimate)} (the bar in Figure 2).{said}"
    )


def _given(analysis: Analysis) -> str:
    return "the noise of fits over seeds added" if analysis.choice.bootstrap.seeds is not None else "given these fits"


def _posterior(analysis: Analysis) -> str:
    choice, summary = analysis.choice, analysis.summary
    ends = [tau_text(summary.settings[m].tau) for m in (summary.between[0], summary.between[-1])]
    if choice.posterior is None:
        edge = tau_text(min((summary.settings[m] for m in summary.between), key=lambda fit: fit.objective).tau)
        return f"The posterior is not given: it would pile up at τ = {edge}, the edge of the finite values fitted."
    return (
        f"The posterior given the validation documents, uniform in log τ from {ends[0]} to {ends[1]}, is "
        f"{_tau_interval(choice.posterior)}: geometric mean and central 95%. It takes tokens as independent given the "
        "fit, so it is far too sharp: go by the bootstrap."
    )


def _by_the_shared_model(analysis: Analysis) -> str:
    """`TauEstimate` of each shared fit that has one, in the order of the trials."""
    estimated = analysis.summary.trials.dropna(subset=["tau_estimate"])
    if estimated.empty:
        return ""
    intervals = [Interval(*values) for values in estimated[["tau_estimate", "tau_low", "tau_high"]].to_numpy()]
    return (
        "*Without a sweep.* By the gradients of the tasks at the shared model alone, τ = "
        f"{'; '.join(map(_tau_interval, intervals))}, with a 95% interval over tasks, given this fit."
    )


def _tau_interval(interval: Interval) -> str:
    low, high = tau_text(interval.low), tau_text(interval.high)
    return f"{tau_text(interval.estimate)} [{low}, {high}]"
