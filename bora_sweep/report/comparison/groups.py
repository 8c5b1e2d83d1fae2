"""Which runs compare: those that chose tau by one measure, and scored the same texts in the same way.

Perplexity is per token, so it compares only where every document has as many tokens: ratios of perplexity are then
ratios of the probability of the same texts. A metric is per document, and compares across tokenizers.
"""

import numpy as np
import pandas as pd

from bora_sweep.errors import InputError, plural
from bora_sweep.report.comparison.runs import ComparedRun
from bora_sweep.report.text.formats import plain

Apart = tuple[ComparedRun, str]
_SCORING = ("metric.normalize", "metric.max_new_tokens")


def groups_of(runs: list[ComparedRun]) -> tuple[list[list[ComparedRun]], list[Apart]]:
    """Groups of at least two runs that compare, and the runs that compare with no other, with the reason.

    Raises:
        InputError: No two runs compare.
    """
    groups: list[list[ComparedRun]] = []
    for run in runs:
        joined = next((group for group in groups if why_not(group[0], run) is None), None)
        groups.append([run]) if joined is None else joined.append(run)
    compared = [group for group in groups if len(group) > 1]
    if not compared:
        raise InputError(f"no two of these runs compare: {why_not(runs[0], runs[1])}")
    lead = compared[0][0]
    alone = [group[0] for group in groups if len(group) == 1]
    return compared, [(run, why_not(lead, run) or "") for run in alone]


def why_not(one: ComparedRun, other: ComparedRun) -> str | None:
    """Why the test scores of two runs do not compare, in one sentence; None where they do."""
    measures = [run.analysis.measure.name for run in (one, other)]
    if measures[0] != measures[1]:
        return (
            f"{other.name} chose tau by {measures[1]}, {one.name} by {measures[0]} (search.objective): runs of one "
            "objective compare"
        )
    differ = [key for key in _SCORING if one.values.get(key) != other.values.get(key)]
    if one.analysis.measure.is_metric and differ:
        key = differ[0]
        return (
            f"{other.name} has {key}={other.values.get(key)}, {one.name} {key}={one.values.get(key)}: their scores "
            "are not of one kind"
        )
    return _other_documents(one, other, one.documents("test"), other.documents("test"))


def _other_documents(one: ComparedRun, other: ComparedRun, mine: pd.DataFrame, theirs: pd.DataFrame) -> str | None:
    missing = mine.index.difference(theirs.index).union(theirs.index.difference(mine.index))
    if len(missing):
        counts = f"{plural(len(theirs), 'test document')} of {other.name} and the {len(mine):,} of {one.name}"
        common = len(mine.index.intersection(theirs.index))
        return (
            f"the {counts} are not the same ({common:,} in common): compare runs of the same data and splits, as "
            "data.split_from keeps them"
        )
    prints = zip(mine["fingerprint"], theirs["fingerprint"], strict=True)
    other_text = np.array([None not in pair and pair[0] != pair[1] for pair in prints], dtype=bool)
    for changed in mine.index[other_text][:1]:
        return (
            f"{_named(changed)} has another text in {other.name} than in {one.name}: compare runs of the same data and "
            "splits"
        )
    for changed in mine.index[mine["amount"].to_numpy() != theirs["amount"].to_numpy()][:1]:
        if one.analysis.measure.is_metric:
            return f"{_named(changed)} has another reference in {other.name} than in {one.name}"
        tokens = [int(rows.loc[changed, "amount"]) for rows in (theirs, mine)]  # type: ignore[reportArgumentType]
        return (
            f"{_named(changed)} has {tokens[0]:,} tokens in {other.name} and {tokens[1]:,} in {one.name}, and "
            "perplexity is per token: compare runs of the same tokenizer, model.max_tokens and data.loss_on, or choose "
            "tau by a metric (search.objective)"
        )
    return None


def _named(key: tuple[str, str]) -> str:
    return f"test document {plain(key[1])!r} of task {plain(key[0])!r}"


def have_one_validation(runs: list[ComparedRun]) -> bool:
    """Validation documents are the same, so that validation can choose between runs."""
    first, *others = (run.documents("validation").drop(columns="fingerprint") for run in runs)
    return all(first.equals(other) for other in others)
