"""In words: what to know before the numbers are trusted, and how well tau is known."""

import math

import numpy as np

from bora_sweep.report.formats import Table, markdown_table, markdown_text, perplexity_text, tau_text
from bora_sweep.report.methods import Method
from bora_sweep.report.pooling import Summary
from bora_sweep.report.statistics import Documents, Interval, best_tau, paired_bootstrap, tau_posterior
from bora_sweep.report.tables import fit_text


def warnings(summary: Summary, methods: list[Method]) -> str:
    """A quoted paragraph for each; empty where there are none."""
    told = [_not_converged(summary, methods), _at_the_edge(summary), _unfinished(summary), _several_ways(summary)]
    return "\n>\n".join(f"> **Note.** {line}" for line in told if line)


def protocol(summary: Summary) -> str:
    """What the protocol would report, where that is not test perplexity, and what not to do with it."""
    trials = summary.trials
    fits = trials.loc[(trials["method"] == "map") & trials["reported_as"].notna()]
    if fits.empty:
        return ""
    kinds = sorted(set(fits["reported_as"]))
    counts = "They count padding, which is easy to predict, and compare with no perplexity that does not. "
    note = (
        f"> **Note.** By protocol={markdown_text(fits['protocol'].iloc[0])} other numbers than those of this page are "
        f"reported ({' and '.join(map(markdown_text, kinds))}): those of the next table, in `reported_perplexity`. "
        f"{counts if any('padding' in kind for kind in kinds) else ''}"
        "All other tables and figures hold test perplexity, without padding, at the epoch that validation chose."
    )
    table = Table(["τ", "As the protocol reports it"])
    for tau in sorted(set(fits["tau"])):
        reported = fits.loc[fits["tau"] == tau, "reported_perplexity"].to_numpy(dtype=float)
        table.rows.append([tau_text(tau), perplexity_text(float(reported.mean()))])
    return f"{note}\n\n{markdown_table(table)}"


def _not_converged(summary: Summary, methods: list[Method]) -> str:
    """Of the best fit, the baselines and the other methods shown."""
    roles: dict[int, list[str]] = {}
    named = {"one model per task": summary.independent, "one model for all": summary.shared, "the best": summary.best}
    for role, m in named.items():
        if m is not None:
            roles.setdefault(m, []).append(role)
    names = {m: f"τ = {tau_text(summary.settings[m].tau)} ({', '.join(said)})" for m, said in roles.items()}
    names = {method.setting: markdown_text(method.name) for method in methods} | names
    capped = [name for m, name in names.items() if summary.settings[m].capped]
    if not capped:
        return ""
    return (
        f"Not converged: {' and '.join(capped)} stopped at train.max_epochs, so validation may still have been "
        "improving and this is not yet a comparison of converged fits. Raise train.max_epochs."
    )


def _at_the_edge(summary: Summary) -> str:
    """Of the values between the ends, the lowest or the highest is best."""
    if len(summary.between) < 2 or summary.best_between not in (summary.between[0], summary.between[-1]):
        return ""
    tau = tau_text(summary.settings[summary.best_between].tau)
    if summary.best_between == summary.between[0]:
        return f"τ = {tau} is the lowest value fitted above 0. A lower one may be better: search.taus, search.tau_low."
    return f"τ = {tau} is the highest finite value fitted. A higher one may be better: search.taus, search.tau_high."


def _unfinished(summary: Summary) -> str:
    told = []
    absent = [name for name, m in (("τ = 0", summary.independent), ("τ = ∞", summary.shared)) if m is None]
    if absent:
        told.append(f"No finished fit at {' and '.join(absent)} to compare with.")
    states = [status for status in summary.trials["status"] if status != "finished"]
    if states:
        counts = ", ".join(f"{states.count(status):,} {markdown_text(status)}" for status in sorted(set(states)))
        told.append(f"Not finished and left out: {len(states):,} of {len(summary.trials):,} trials ({counts}).")
    return " ".join(told)


def _several_ways(summary: Summary) -> str:
    names = []
    for setting in (summary.settings[m] for m in summary.several_ways):
        name = markdown_text(fit_text(setting.method, setting.tau, setting.structure, summary.structure))
        names.append(f"τ = {name}" if setting.method == "map" else name)
    if not names:
        return ""
    return (
        f"Fitted with more than one learning rate, alpha, parametrization or solver: {' and '.join(names)}; the one "
        "with the lowest validation perplexity stands for each."
    )


def tau_precision(summary: Summary) -> str:
    """How well tau is known by the sweep, and what the shared model alone says of it; empty where neither is there."""
    return "\n\n".join(told for told in (_by_the_sweep(summary), _by_the_shared_model(summary)) if told)


def _by_the_shared_model(summary: Summary) -> str:
    """`TauEstimate` of each shared fit that has one, in the order of the trials."""
    estimated = summary.trials.dropna(subset=["tau_estimate"])
    if estimated.empty:
        return ""
    intervals = [Interval(*values) for values in estimated[["tau_estimate", "tau_low", "tau_high"]].to_numpy()]
    return (
        "*Without a sweep.* By the gradients of the tasks at the shared model alone, τ = "
        f"{'; '.join(map(_interval_text, intervals))}, with a 95% interval over tasks, given this fit."
    )


def _by_the_sweep(summary: Summary) -> str:
    """The interval of the best tau over validation documents, and its posterior; empty with fewer than three values."""
    fits = [m for m in summary.fits if math.isfinite(summary.settings[m].objective)]
    between = [m for m in fits if m in summary.between]
    if len(between) < 3:
        return ""
    documents, taus_M = summary.validation_documents, np.array([setting.tau for setting in summary.settings])
    bootstrap = paired_bootstrap(Documents(documents.task_N, documents.tokens_N, documents.nats_NM[:, fits]))
    resampled = best_tau(taus_M[fits], bootstrap)
    nll_nats_M = documents.nats_NM.sum(axis=0)
    return (
        f"*How well τ is known.* Of the values fitted, {tau_text(summary.best_tau)} is best on validation. The curve "
        f"through them is lowest at τ = {_interval_text(resampled)}, a 95% paired-bootstrap interval over the "
        f"validation documents within tasks, given these fits. {_posterior_text(taus_M[between], nll_nats_M[between])}"
    )


def _posterior_text(taus_V: np.ndarray, nll_nats_V: np.ndarray) -> str:
    if nll_nats_V.argmin() in (0, len(taus_V) - 1):
        edge = tau_text(taus_V[nll_nats_V.argmin()])
        return f"The posterior is not given: it would pile up at τ = {edge}, the edge of the finite values fitted."
    return (
        f"The posterior given the validation documents, uniform in log τ from {tau_text(taus_V[0])} to "
        f"{tau_text(taus_V[-1])}, is {_interval_text(tau_posterior(taus_V, nll_nats_V))}: geometric mean and central "
        "95%. It takes tokens as independent given the fit, so it is too sharp: go by the bootstrap. Neither covers "
        "the randomness of the fits themselves."
    )


def _interval_text(interval: Interval) -> str:
    low, high = tau_text(interval.low), tau_text(interval.high)
    return f"{tau_text(interval.estimate)} [{low}, {high}]"
