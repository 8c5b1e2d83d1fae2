"""Groups of tasks: whether planted ones are found, and whether any are proposed where there are none.

    python benchmarks/task_groups.py

Embedded corpora of 24 tasks, by gradients at a shared fit of one epoch. With 4 planted groups at three strengths, 11
corpora each (seeds 1 to 5 were in use while the method was made): the adjusted Rand index (Hubert & Arabie 1985) of the
groups found, 0 where none are. Without groups 20 corpora, each of its own seed, at similarities from 0.1 to 0.9. One
process of one thread. What is finished is kept in `benchmarks/results/task_groups.json`, so that a second run goes on;
the tables go to `task_groups.md`.
"""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from arguments import start
from provenance import RESULTS, provenance

from bora_sweep.config import SyntheticConfig, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.synthetic import documents
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.report.text.formats import Table, markdown_table
from bora_sweep.similarity.clusters import find_clusters
from bora_sweep.similarity.cosines import Cosines, cosines
from bora_sweep.train.fit import fit
from bora_sweep.train.methods.task_gradients import fold_sums

CELLS, PAGE = RESULTS / "task_groups.json", RESULTS / "task_groups.md"
FIXED = ["conf/embedded.yaml", "prior.tau=inf", "train.max_epochs=1", "train.device=cpu", "data.synthetic.num_tasks=24"]
STRENGTHS, SEEDS = (0.9, 0.7, 0.5), range(11)
SIMILARITIES, DRAWS = (0.1, 0.3, 0.5, 0.7, 0.9), range(1, 21)


@dataclass(frozen=True)
class Cell:
    """What was found in one corpus."""

    similarity: float
    strength: float
    """`data.synthetic.group_similarity`; 0 without groups."""
    seed: int
    num_groups: int
    """That were proposed; 0: no structure."""
    p_value: float
    rand_index: float
    """Of the proposed groups against the planted ones; 0 where none were proposed."""
    within: float
    """Mean similarity of two tasks of one planted group."""
    between: float
    """Of two tasks of different ones; without groups, of any two."""
    error: float
    """Median standard error of a similarity."""


def adjusted_rand_index(one_K: np.ndarray, other_K: np.ndarray) -> float:
    """1 where two partitions agree, 0 on average where they have nothing to do with each other."""
    (_, one_K), (_, other_K) = (np.unique(labels, return_inverse=True) for labels in (one_K, other_K))
    table = np.zeros((one_K.max() + 1, other_K.max() + 1))
    np.add.at(table, (one_K, other_K), 1)
    pairs, rows, columns, every = (
        (count * (count - 1) / 2).sum() for count in (table, table.sum(1), table.sum(0), np.array([len(one_K)]))
    )
    expected, most = rows * columns / every, (rows + columns) / 2
    return 1.0 if most == expected else float((pairs - expected) / (most - expected))


def similarities(similarity: float, strength: float, seed: int) -> tuple[Cosines, np.ndarray]:
    """The similarities of a corpus's tasks, and the planted group of each."""
    dials = {"similarity": similarity, "seed": seed}
    dials |= {"num_groups": 4, "group_similarity": strength} if strength else {}
    config = load_config([*FIXED, {"data": {"synthetic": dials}}])
    corpus = load_corpus(config.data)
    tokenized = tokenize_for(config, corpus, load_tokenizer(config.model, config.data))
    base = load_base(config.model, config.data)
    fitted = fit(config, tokenized, base)
    sums = fold_sums(config, tokenized, base, fitted.layout, fitted.mean_P)
    return cosines(sums.score_KFQ, sums.tokens_KF), planted(config.data.synthetic, corpus.tasks)


def planted(config: SyntheticConfig, tasks: list[str] | tuple[str, ...]) -> np.ndarray:
    """The planted group of each task, all the same without groups."""
    frame = documents(config)
    if "group" not in frame:
        return np.zeros(len(tasks), dtype=int)
    return frame.groupby("task")["group"].first().loc[[*tasks]].to_numpy()


def run_cell(similarity: float, strength: float, seed: int) -> Cell:
    """One corpus."""
    found, planted_K = similarities(similarity, strength, seed)
    groups = find_clusters(found.cosine_KK, found.error_KK, found.weight_K)
    is_pair_KK = ~np.eye(len(planted_K), dtype=bool)
    same_KK = planted_K[:, None] == planted_K
    label_K = groups.label_K
    return Cell(
        similarity, strength, seed,
        num_groups=0 if label_K is None else int(label_K.max()) + 1,
        p_value=groups.p_value,
        rand_index=0.0 if label_K is None or not strength else adjusted_rand_index(label_K, planted_K),
        within=float(found.cosine_KK[same_KK & is_pair_KK].mean()),
        between=float(found.cosine_KK[(~same_KK if strength else is_pair_KK) & is_pair_KK].mean()),
        error=float(np.median(found.error_KK[is_pair_KK])),
    )  # fmt: skip


def page(cells: list[Cell]) -> str:
    """The tables."""
    grouped, others = [cell for cell in cells if cell.strength], [cell for cell in cells if not cell.strength]
    header = ["group similarity", "seed", "groups found", "p", "adjusted Rand index", "within", "between", "error"]
    rows = [
        [f"{c.strength:g}", f"{c.seed}", f"{c.num_groups or 'none'}", f"{c.p_value:.3f}", f"{c.rand_index:.2f}",
         f"{c.within:.2f}", f"{c.between:.2f}", f"{c.error:.2f}"]
        for c in grouped
    ]  # fmt: skip
    none = [
        [f"{c.similarity:g}", f"{c.seed}", f"{c.num_groups or 'none'}", f"{c.p_value:.3f}", f"{c.error:.2f}"]
        for c in others
    ]
    proposed = sum(cell.num_groups > 0 for cell in others)
    means = [
        f"At group similarity {strength:g} the index is "
        f"{np.mean([c.rand_index for c in grouped if c.strength == strength]):.2f} on average of "
        f"{sum(c.strength == strength for c in grouped)} corpora, "
        f"{min(c.rand_index for c in grouped if c.strength == strength):.2f} at the least."
        for strength in STRENGTHS if any(c.strength == strength for c in grouped)
    ]  # fmt: skip
    return "\n\n".join(
        [
            "# Groups of tasks: found where they are, not proposed where they are not",
            "`python benchmarks/task_groups.py`: the embedded corpus with 24 tasks, by gradients at a shared fit of "
            "one epoch. *Within* and *between* are mean similarities of two tasks of one planted group and of two; "
            "*error* is the median standard error of a similarity. The index is 0 where no groups are proposed.",
            "## 4 planted groups, similarity 0.3",
            " ".join(means),
            markdown_table(Table(header, rows)),
            "## Without groups",
            f"Groups were proposed in {proposed} of {len(others)} corpora.",
            markdown_table(Table(["similarity", "seed", "groups found", "p", "error"], none)),
            provenance(),
        ]
    )


def main() -> None:
    """Make the cells that are missing, and write the tables."""
    torch.set_num_threads(1)
    cells = [Cell(**cell) for cell in json.loads(CELLS.read_text())] if CELLS.exists() else []
    done = {(cell.similarity, cell.strength, cell.seed) for cell in cells}
    planned = [(0.3, strength, seed) for strength in STRENGTHS for seed in SEEDS]
    planned += [(SIMILARITIES[seed % len(SIMILARITIES)], 0.0, seed) for seed in DRAWS]
    for key in planned:
        if key not in done:
            cells.append(run_cell(*key))
            print(cells[-1], flush=True)
            CELLS.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    PAGE.write_text(page(cells) + "\n", encoding="utf-8")


if __name__ == "__main__":
    start(main, __doc__)
