"""New tasks that join a group, beside the same tasks added to two levels: what Theta_g is worth to them.

    python benchmarks/new_tasks_groups.py

On the corpora of three_levels.py, 24 speakers in 4 planted groups, one speaker of each group comes later. The other 20
are fitted with three levels and with two, at the values of tau that three_levels.py chose on all 24. Then the four are
added, each with n documents to train on and none to validate. Finished cells are kept in
`benchmarks/results/new_tasks_groups.json`, so that a second run goes on; the table is in `new_tasks_groups.md`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from arguments import start
from provenance import RESULTS, provenance
from rate_fits import Kept
from task_curves import part_of
from three_levels import CELLS, SEEDS, THREE, TWO, chosen, config_of

from bora_sweep.config import with_values
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.report.stats.bootstrap import paired_bootstrap
from bora_sweep.report.stats.document_scores import align_documents
from bora_sweep.report.stats.interval import Interval
from bora_sweep.train.fit import fit
from bora_sweep.train.state import Start

COUNTS = (0, 1, 4, 16)
LEVELS = {"two levels": TWO, "three levels": THREE}


def rows_of(corpus: TokenizedCorpus, tasks: Sequence[str], splits: Sequence[str], most: int | None = None) -> list:
    """Documents of tasks for `part_of`, at most so many of each split of a task."""
    task_N, split_N = corpus.documents["task"].to_numpy(), corpus.documents["split"].to_numpy()
    return [
        (int(n), task, split)
        for task in tasks
        for split in splits
        for n in np.flatnonzero((task_N == corpus.tasks.index(task)) & (split_N == split))[:most]
    ]


def grouped_part(corpus: TokenizedCorpus, rows: list) -> TokenizedCorpus:
    """`part_of` with the groups of its tasks, all of the corpus's among them."""
    part, group_of = part_of(corpus, rows), corpus.group_of
    return replace(part, group_K=np.array([corpus.groups.index(group_of[task]) for task in part.tasks]))


def compute(seed: int, name: str) -> dict[str, Any]:
    """The nats of the new tasks' test documents after each number of documents, in one cell.

    Args:
        seed: Of the corpus.
        name: Of `LEVELS`.
    """
    cells = json.loads(CELLS.read_text(encoding="utf-8"))["cells"]
    tau, tau_2 = map(float, chosen(seed, LEVELS[name], cells).split(","))
    config = config_of(seed, (tau, tau_2))
    corpus = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
    base = load_base(config.model, config.data)
    assert corpus.group_K is not None
    new = [corpus.tasks[int(np.flatnonzero(corpus.group_K == g)[0])] for g in range(len(corpus.groups))]
    old = [task for task in corpus.tasks if task not in new]
    run = fit(config, grouped_part(corpus, rows_of(corpus, old, ("train", "validation", "test"))), base)
    tests = rows_of(corpus, new, ("test",))
    found: dict[str, Any] = {"tau": tau, "tau_2": tau_2, "nats": {}}
    for count in COUNTS:
        part = grouped_part(corpus, [*rows_of(corpus, new, ("train",), max(1, count)), *tests])
        centre_KP = run.mean_P.expand(len(new), -1)
        if run.theta_GP is not None:
            centre_KP = run.theta_GP[torch.as_tensor(part.group_K)]
        own = with_values(config, method="add", train={"max_grad_norm": None, "batch_size": 8, "max_epochs": 100})
        if count == 0:
            own = with_values(own, train={"steps_without_validation": 0})
        done = fit(own, part, base, start=Start(run.mean_P, centre_KP, theta_GP=run.theta_GP))
        found["nats"][str(count)] = done.nll_nats["test"].tolist()
        test = part.documents.iloc[part.split("test")]
        found |= {name: test[name].tolist() for name in ("document_id", "num_tokens")}
        found["task"] = [f"{seed}: {part.tasks[task]}" for task in test["task"]]
    return found


def difference(of_level: dict[str, list[dict[str, Any]]], count: int) -> Interval:
    """Test perplexity with three levels / with two - 1, over the documents of all corpora."""
    frames = [
        pd.DataFrame({key: cell[key] for key in ("document_id", "num_tokens", "task")}).assign(
            nll_nats=cell["nats"][str(count)], split="test", setting=setting, seed=0, run="", trial_id=name
        )
        for setting, (name, cells) in enumerate(of_level.items())
        for cell in cells
    ]
    return paired_bootstrap(align_documents(pd.concat(frames, ignore_index=True), range(2))).difference(1, 0)


def perplexity_of(cells: list[dict[str, Any]], count: int) -> float:
    """Over the documents of all corpora."""
    nats, tokens = (
        sum(map(sum, parts)) for parts in ([c["nats"][str(count)] for c in cells], [c["num_tokens"] for c in cells])
    )
    return math.exp(nats / tokens)


def run() -> None:
    """Make the cells that are missing, and the table."""
    torch.set_num_threads(1)
    kept = Kept("new_tasks_groups")
    of_level = {
        name: [kept.get((seed, name), lambda seed=seed, name=name: compute(seed, name)) for seed in SEEDS]
        for name in LEVELS
    }
    lines = [
        "| documents of the new task | added to two levels | added to three levels | difference [95%] |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for count in COUNTS:
        found = difference(of_level, count)
        interval = f"{found.estimate:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"
        levels = " | ".join(f"{perplexity_of(cells, count):.2f}" for cells in of_level.values())
        lines.append(f"| {count} | {levels} | {interval} |")
    about = (
        "Test perplexity of four new speakers on each of three corpora, one of each planted group, added to a fit of "
        "the other 20. With 0 documents: Θ, and Θ_g of the speaker's group. Intervals are over test documents within "
        "tasks, paired."
    )
    text = "\n\n".join(["# New tasks that join a group", about, "\n".join(lines), provenance()])
    print(text)
    (RESULTS / "new_tasks_groups.md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    start(run, __doc__)
