"""Test nats of held-out tasks over the steps of a fit: parts of a corpus, and the curves of tasks that are fits alone.

Shapes: N documents, K tasks, T points of a curve.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score_documents
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.resume import start_or_resume
from bora_sweep.train.state import Start
from bora_sweep.train.step import step
from bora_sweep.train.trainer import Trainer

Rows = Sequence[tuple[int, str, str]]
"""Document, the task that it is counted to, its split."""


def part_of(corpus: TokenizedCorpus, rows: Rows) -> TokenizedCorpus:
    """These documents of a corpus as a corpus of its own, ordered by task; a document may be there several times.

    Args:
        corpus: Without chunks.
        rows: What is in it.
    """
    rows = sorted(rows, key=lambda row: row[1])
    names = sorted({task for _, task, _ in rows})
    places = [slice(corpus.offsets[document], corpus.offsets[document + 1]) for document, _, _ in rows]
    documents = corpus.documents.iloc[[document for document, _, _ in rows]].reset_index(drop=True)
    return replace(
        corpus,
        tasks=tuple(names),
        documents=documents.assign(task=[names.index(task) for _, task, _ in rows], split=[row[2] for row in rows]),
        tokens=np.concatenate([corpus.tokens[place] for place in places]),
        scored=np.concatenate([corpus.scored[place] for place in places]),
        offsets=np.cumsum([0, *(place.stop - place.start for place in places)]),
    )


@dataclass(frozen=True)
class Curve:
    """What became of tasks after some numbers of steps; point 0 is the start."""

    step_T: np.ndarray
    objective_TK: np.ndarray
    """J_d of each task, nats per token of its training text: of text and prior."""
    test_TN: np.ndarray
    """Nats of each test document."""
    held_TK: np.ndarray
    """Nats of each task's documents that are held out of training."""

    @staticmethod
    def load(path: Path) -> "Curve":
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return Curve(**arrays)

    def save(self, path: Path) -> None:
        """Write it as arrays."""
        np.savez(path, **asdict(self))


def curve(
    config: Config,
    corpus: TokenizedCorpus,
    base: PreTrainedModel,
    mean_P: Tensor | None,
    points: Sequence[int],
    num_batches: int = 1,
) -> Curve:
    """Fit each task alone.

    Args:
        config: With `method=add`, or at tau = 0.
        corpus: Splits train, test and, for documents held out, validation.
        base: The base model.
        mean_P: Theta, where each task begins; None: the initial adapter.
        points: Steps after which all is scored, ascending from 0.
        num_batches: Steps over which each task's documents are spread; 1: all of them are in every step.
    """
    found: list[tuple[np.ndarray, ...]] = []
    with Pack(config, corpus, base, make_accelerator(config)) as pack:
        fit = make_trainer(config, pack)
        start = None if mean_P is None else Start(mean_P, mean_P.repeat(corpus.num_tasks, 1))
        start_or_resume(fit, None, start)
        rng, steps = np.random.default_rng(config.train.seed), []
        for point in points:
            while fit.state.step < point:
                steps = steps or _spread(corpus, num_batches, rng)
                step(pack, [fit], steps.pop(), num_batches)
            found.append((_objective(pack, fit), _scores(pack, fit, "test"), _sums(pack, fit, "validation")))
        assert fit.state.diverged is None
    return Curve(np.array(points), *(np.array(values) for values in zip(*found, strict=True)))


def _spread(corpus: TokenizedCorpus, num_batches: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Each task's documents spread evenly over batches, in a random order; a batch may have none of a task."""
    sequence_C = corpus.sequences("train")
    task_C = corpus.task_C[sequence_C]
    batch_C = np.zeros(len(sequence_C), dtype=int)
    for task in range(corpus.num_tasks):
        place_n = rng.permutation(np.flatnonzero(task_C == task))
        batch_C[place_n] = ((np.arange(len(place_n)) + rng.random()) * num_batches / len(place_n)).astype(int)
    batch_C %= num_batches
    return [sequence_C[batch_C == batch] for batch in rng.permutation(num_batches)]


def _objective(pack: Pack, fit: Trainer) -> np.ndarray:
    """J_d of each task."""
    documents = pack.corpus.documents.iloc[pack.corpus.split("train")]
    tokens_K = np.bincount(documents["task"], documents["num_tokens"], pack.corpus.num_tasks)
    distance_K = fit.hierarchy.delta_KP().square().sum(1).cpu().numpy()
    return (_sums(pack, fit, "train") + fit.config.tau / 2 * distance_K) / tokens_K


def _scores(pack: Pack, fit: Trainer, split: str) -> np.ndarray:
    """Nats of each document of a split, which may have none."""
    return score_documents(pack, [fit], split)[0] if len(pack.corpus.split(split)) else np.zeros(0)


def _sums(pack: Pack, fit: Trainer, split: str) -> np.ndarray:
    """Nats of each task's documents of a split."""
    task_N = pack.corpus.documents["task"].to_numpy()[pack.corpus.split(split)]
    return np.bincount(task_N, _scores(pack, fit, split), pack.corpus.num_tasks)
