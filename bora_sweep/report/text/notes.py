"""In words: what to know before the numbers are trusted."""

import pandas as pd

from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import Table, markdown_table, markdown_text, perplexity_text, tau_text
from bora_sweep.report.text.methods import Method
from bora_sweep.report.text.tables import fit_text


def warnings(summary: Summary, methods: list[Method]) -> str:
    """A quoted paragraph for each; empty where there are none."""
    told = [
        _not_converged(summary, methods),
        _at_the_edge(summary),
        _unfinished(summary),
        _several_ways(summary),
        _other_numbers(summary),
    ]
    return "\n>\n".join(f"> **Note.** {line}" for line in told if line)


def protocol(summary: Summary) -> str:
    """What the protocol would report at each tau, as a table; empty where that is test perplexity."""
    fits = _reported_otherwise(summary)
    if fits.empty:
        return ""
    table = Table(["τ", "As the protocol reports it"])
    for tau in sorted(set(fits["tau"])):
        reported = fits.loc[fits["tau"] == tau, "reported_perplexity"].to_numpy(dtype=float)
        table.rows.append([tau_text(tau), perplexity_text(float(reported.mean()))])
    return markdown_table(table)


def _reported_otherwise(summary: Summary) -> pd.DataFrame:
    trials = summary.trials
    return trials.loc[(trials["method"] == "map") & trials["reported_as"].notna()]


def _other_numbers(summary: Summary) -> str:
    """What a protocol's own numbers are, and what not to do with them."""
    fits = _reported_otherwise(summary)
    if fits.empty:
        return ""
    kinds = sorted(set(fits["reported_as"]))
    counts = "They count padding, which is no text, and compare with no perplexity that does not. "
    return (
        f"By protocol={markdown_text(fits['protocol'].iloc[0])} other numbers than test perplexity are reported "
        f"({' and '.join(map(markdown_text, kinds))}): those of the column `reported_perplexity`. "
        f"{counts if any('padding' in kind for kind in kinds) else ''}"
        "All that is shown of test is without padding, at the epoch that validation chose."
    )


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
