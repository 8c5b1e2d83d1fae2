"""Notes: what a reader must know before trusting the numbers."""

import json
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.errors import percentage
from bora_sweep.report.stats.method_comparison import Method
from bora_sweep.report.stats.summary import Summary
from bora_sweep.report.text.formats import Table, markdown_table, markdown_text, perplexity_text, tau_text
from bora_sweep.report.text.measured import label
from bora_sweep.report.text.setting_names import setting_name
from bora_sweep.report.text.training_notes import at_edges, not_converged, overfitted, stopped_by_user


def warnings(summary: Summary, methods: list[Method], served: int) -> str:
    """A quoted paragraph for each note; empty where there are none.

    Args:
        summary: Of the run.
        methods: `compare_methods`.
        served: The setting that is recommended.
    """
    notes = [
        not_converged(summary, methods, served),
        stopped_by_user(summary, methods, served),
        overfitted(summary, methods, served),
        at_edges(summary),
        _learnt(summary),
        _unfinished(summary),
        _cut(summary),
        _compares_with_its_like(summary),
        _tuned(summary),
        _types_of_weights(summary),
        _reported_by_protocol(summary),
    ]
    return "\n>\n".join(f"> **Note.** {note}" for note in notes if note)


def protocol(summary: Summary) -> str:
    """A table of the number that the protocol reports at each tau; empty where that is test perplexity."""
    fits = _fits_reported_otherwise(summary)
    if fits.empty:
        return ""
    table = Table(["τ", "As the protocol reports it"])
    for tau in sorted(set(fits["tau"])):
        reported = fits.loc[fits["tau"] == tau, "reported_perplexity"].to_numpy(dtype=float)
        table.rows.append([tau_text(tau), perplexity_text(float(reported.mean()))])
    return markdown_table(table)


def _fits_reported_otherwise(summary: Summary) -> pd.DataFrame:
    trials = summary.trials
    return trials.loc[(trials["method"] == "map") & trials["reported_as"].notna()]


def _reported_by_protocol(summary: Summary) -> str:
    """What the protocol reports in place of test perplexity, and how not to use it."""
    fits = _fits_reported_otherwise(summary)
    if fits.empty:
        return ""
    kinds = sorted(set(fits["reported_as"]))
    padding = "They count padding and cannot be compared with perplexities that do not. "
    return (
        f"protocol={markdown_text(fits['protocol'].iloc[0])} reports other numbers than test perplexity "
        f"({' and '.join(map(markdown_text, kinds))}), in the column `reported_perplexity`. "
        f"{padding if any('padding' in kind for kind in kinds) else ''}"
        "All other test numbers here leave out padding and are of the epoch that validation chose."
    )


def _unfinished(summary: Summary) -> str:
    parts = []
    absent = [name for name, m in (("τ = 0", summary.independent), ("τ = ∞", summary.shared)) if m is None]
    if absent:
        parts.append(f"No finished fit at {' or '.join(absent)} to compare with.")
    states = [status for status in summary.trials["status"] if status != "finished"]
    if states:
        counts = ", ".join(f"{states.count(status):,} {markdown_text(status)}" for status in sorted(set(states)))
        parts.append(f"Not finished and left out: {len(states):,} of {len(summary.trials):,} trials ({counts}).")
    return " ".join(parts)


def _types_of_weights(summary: Summary) -> str:
    """The trials do not all have a base in the same type of weights."""
    finished = summary.trials.query("status == 'finished'")
    names = sorted(finished["dtype"].dropna().unique())
    if len(names) < 2:
        return ""
    counts = ", ".join(f"{(finished['dtype'] == name).sum():,} in {markdown_text(name)}" for name in names)
    return (
        f"The base's weights differ in type: {counts}. model.dtype=auto chose on each machine. Set model.dtype to "
        "compare fits of one type."
    )


def cut_share(summary: Summary) -> float:
    """The share of all tokens that cutting long documents lost, the most of any trial; 0 in results of old versions."""
    return float(np.nan_to_num(summary.trials["cut_token_fraction"].to_numpy(dtype=float)).max(initial=0.0))


def _cut(summary: Summary) -> str:
    lost = cut_share(summary)
    if not lost:
        return ""
    return (
        f"Documents longer than model.max_tokens were cut. {percentage(lost)} of all tokens of the data were neither "
        "trained on nor scored. Set model.long_documents=chunk to keep them, or raise model.max_tokens."
    )


def _compares_with_its_like(summary: Summary) -> str:
    """Settings with which perplexities are of another base or other contexts, so that few runs compare."""
    stored = [text for text in summary.trials["config_json"] if isinstance(text, str)]
    model: dict[str, Any] = json.loads(stored[0]).get("model", {}) if stored else {}
    parts = []
    if (quantization := model.get("quantization")) is not None:
        parts.append(f"the base's linear layers are in {markdown_text(quantization)}")
    if model.get("long_documents") == "chunk":
        overlap = "a quarter of them" if model.get("chunk_overlap") is None else f"{model['chunk_overlap']} tokens"
        parts.append(f"documents longer than {model['max_tokens']} tokens are read as chunks that share {overlap}")
    return f"Compare with runs of the same kind alone: {', and '.join(parts)}." if parts else ""


def _learnt(summary: Summary) -> str:
    """Fits that found tau themselves: no other fit has that value to compare with."""
    trials = summary.trials
    found = trials.loc[(trials["status"] == "finished") & trials["tau_learnt"].fillna(False).astype(bool)]
    if found.empty:
        return ""
    taus = ", ".join(
        f"{tau_text(tau)} (trial {markdown_text(name)})" for name, tau in found[["trial_id", "tau"]].values
    )
    return (
        f"`prior.tau=learn` found τ on the validation documents while it fitted: {taus}, the value at the best epoch. "
        "Perplexity is flat around it: another seed may give half or twice as much."
    )


def _tuned(summary: Summary) -> str:
    names, measure = [], summary.chosen_by.measure
    for setting in (summary.settings[m] for m in summary.tuned):
        name = markdown_text(setting_name(setting.method, setting.tau, setting.structure, summary.structure))
        names.append(f"τ = {name}" if setting.method == "map" else name)
    if not names:
        return ""
    return (
        f"Fitted with more than one learning rate, alpha, parametrization or solver: {' and '.join(names)}. Of each, "
        f"the fit with the {measure.best_word} validation {label(measure)} is shown."
    )
