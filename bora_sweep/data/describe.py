"""Describe a corpus in the terminal: its tasks and splits, and what may be wrong with it."""

from collections import Counter

import numpy as np
import pandas as pd
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from bora_sweep.data.corpus import Corpus
from bora_sweep.data.split import SPLITS
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import plural, visible

_MOST_ROWS = 40
_FEW_DOCUMENTS = 20
_UNEQUAL = 10


def describe(corpus: Corpus, num_tokens: pd.DataFrame | None = None) -> list[RenderableType]:
    """A table of tasks and splits, then notes in yellow: what was left out, and what may be wrong.

    Args:
        corpus: The corpus.
        num_tokens: Columns task, split, num_documents and num_tokens (`TokenizedCorpus.table`); left out: no tokens are
            shown.
    """
    documents = corpus.documents
    title = Text.assemble(
        (corpus.name, "bold"),
        f": {plural(len(corpus.tasks), 'task')}, {plural(len(documents), 'document')}, "
        f"{plural(int(documents['text'].str.len().sum()), 'character')}",
    )
    bullets = Table.grid(padding=(0, 1))
    for note in corpus_notes(corpus):
        bullets.add_row("•", Text(note), style="yellow")
    groups = [_groups(corpus)] if corpus.groups else []
    return [title, _table(sizes(corpus, num_tokens)), *groups, bullets]


def _groups(corpus: Corpus) -> Text:
    """The groups with the number of their tasks, the largest first."""
    counted = Counter(corpus.groups).most_common()
    shown = [f"{group} ({count:,})" for group, count in counted[:_MOST_ROWS]]
    more = f", and {len(counted) - _MOST_ROWS:,} more" if len(counted) > _MOST_ROWS else ""
    return Text(f"{plural(len(counted), 'group')} of tasks: {', '.join(shown)}{more}")


def corpus_notes(corpus: Corpus) -> list[str]:
    """What was left out of it, and what may be wrong."""
    return [*corpus.notes, *_warnings(corpus)]


def example(corpus: TokenizedCorpus, tokenizer: PreTrainedTokenizerBase, *, in_color: bool) -> Text:
    """One whole sequence as tokens, a dot between two of them, with what is scored in green or in brackets.

    It is the training sequence of median length: a document, or a chunk of one.

    Args:
        corpus: The tokenised text.
        tokenizer: Decodes the tokens.
        in_color: Whether colours are seen.
    """
    train = corpus.sequences("train")
    c = int(train[np.argsort(np.diff(corpus.offsets)[train], kind="stable")[len(train) // 2]])
    where, how = slice(corpus.offsets[c], corpus.offsets[c + 1]), "in green" if in_color else "in brackets"
    tokens, scored = corpus.tokens[where].tolist(), corpus.scored[where]
    shown = Text(f"{_name(corpus, c)} as tokens, {int(scored.sum()):,} of {len(tokens):,} scored ({how}):\n")
    for place, token in enumerate(tokens):
        begins = scored[place] and not scored[place - 1]
        ends = scored[place] and (place + 1 == len(tokens) or not scored[place + 1])
        text = visible(str(tokenizer.decode([token])).replace("\n", "⏎"))
        left, right = ("", "") if in_color else ("[" * int(begins), "]" * int(ends))
        shown.append("·" if place else "", style="dim")
        shown.append(f"{left}{text}{right}", style=("bold green" if scored[place] else "dim") if in_color else "")
    return shown


def _name(corpus: TokenizedCorpus, c: int) -> str:
    """What sequence c is: a document, or which of its chunks."""
    n = int(corpus.document_of(np.array([c]))[0])
    first, beyond = corpus.first_sequence(np.array([n, n + 1])).tolist()
    part = f"chunk {c - first + 1} of {beyond - first} of " if beyond - first > 1 else ""
    document = corpus.documents.iloc[n]
    return f"{part}document {document['document_id']!r} of task {corpus.tasks[document['task']]!r}"


def sizes(corpus: Corpus, num_tokens: pd.DataFrame | None = None) -> pd.DataFrame:
    """Documents, and tokens where they are known, of each task; the columns are (kind, split)."""
    tables = {"documents": pd.crosstab(corpus.documents["task"], corpus.documents["split"])}
    if num_tokens is not None:  # without documents that are left out, as their prompts are too long
        tables["documents"] = num_tokens.pivot_table(
            index="task", columns="split", values="num_documents", aggfunc="sum"
        )
        tables["tokens"] = num_tokens.pivot_table(index="task", columns="split", values="num_tokens", aggfunc="sum")
    columns = pd.MultiIndex.from_product([tables, SPLITS])
    return pd.concat(tables, axis=1).reindex(index=list(corpus.tasks), columns=columns).fillna(0).astype(int)


def _table(sizes: pd.DataFrame) -> Table:
    """A row for each task, and totals in the footer. Of many tasks the largest and the smallest are shown."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 0, 0, 1), footer_style="bold")
    table.add_column("\ntask", "all tasks", overflow="fold")
    for kind, split in sizes.columns:
        short = "valid." if split == "validation" else split
        table.add_column(
            f"{kind}\n{short}" if split == SPLITS[0] else f"\n{short}",
            f"{sizes[kind, split].sum():,}",
            justify="right",
            no_wrap=True,
        )

    def add(rows: pd.DataFrame) -> None:
        for task, counts in rows.iterrows():
            table.add_row(Text(str(task)), *(f"{count:,}" for count in counts))

    if len(sizes) <= _MOST_ROWS:
        add(sizes)
        return table
    by_size = sizes.loc[sizes["documents"].sum(axis=1).sort_values(ascending=False, kind="stable").index]
    shown = _MOST_ROWS // 4
    add(by_size.iloc[:shown])
    middle = by_size.iloc[shown:-shown]
    table.add_row(f"… {len(middle)} more tasks", *(f"{count:,}" for count in middle.sum()), style="dim")
    add(by_size.iloc[-shown:])
    return table


def _warnings(corpus: Corpus) -> list[str]:
    documents = corpus.documents
    warnings = []
    what = "text" if corpus.form == "text" else "prompt"
    repeated = documents.loc[documents[what].duplicated(keep=False)]
    if len(repeated):
        by_text = repeated.groupby(what)
        across, apart = (int((by_text[column].nunique() > 1).sum()) for column in ("task", "split"))
        splits = f"equal {what}s are in one split" if not apart else f"{plural(apart, what)} in several splits"
        warnings.append(
            f"{len(repeated):,} documents share {plural(repeated[what].nunique(), what)} ({across:,} across tasks); "
            f"{splits}"
        )
    train = documents.loc[documents["split"] == "train", "task"].value_counts().reindex(corpus.tasks, fill_value=0)
    if few := sum(train < _FEW_DOCUMENTS):
        warnings.append(
            f"{plural(few, 'task')} with fewer than {_FEW_DOCUMENTS} training documents (the least: {train.min()}); "
            "the scores of one such task are noisy"
        )
    per_task = documents["task"].value_counts()
    if per_task.max() > _UNEQUAL * per_task.min():
        warnings.append(
            f"very unequal tasks: {per_task.idxmax()!r} has {per_task.max():,} documents, {per_task.idxmin()!r} "
            f"{per_task.min():,}; micro perplexity is dominated by large tasks, so look at macro perplexity too"
        )
    return warnings
