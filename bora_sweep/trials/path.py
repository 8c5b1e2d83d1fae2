"""The path: fits at falling tau, each begun with the adapters of the value above it.

As with regularisation paths (Friedman, Hastie & Tibshirani 2010): tau = inf is fitted to convergence, then tau falls by
decades until validation gets worse. Then the grid is halved around the best value, and each new value begins at its
neighbour above. With early stopping the result depends on the starting point. So the best value is also fitted from its
neighbour below, and the better fit is kept.

The next value is a function of the results so far. So an interrupted path resumes by walking it again: values whose
results are in the run's folder are read, not fitted.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.runs.results import objective, read_trial_row, write_table
from bora_sweep.runs.storage import Folder, exists, write_bytes
from bora_sweep.train.checkpoint import drop_checkpoints
from bora_sweep.train.distributed.process_group import from_rank_zero
from bora_sweep.train.fit import fit
from bora_sweep.train.state import Fit, State, no_op
from bora_sweep.trials.outcome import result_of, starting_point, write_result
from bora_sweep.trials.trial import Trial, run_trial, tokenizer_of

TURNED = 2  # values worse than the best one above them, after which tau falls no further
UPWARD = "upward.json"


def run_path(
    config: Config,
    corpus: TokenizedCorpus,
    load_base: Callable[[], PreTrainedModel],
    run: Folder,
    trial_id: str,
    *,
    on_epoch: Callable[[State], None] = no_op,
    check_stop: Callable[[], None] = no_op,
) -> list[dict[str, Any]]:
    """Fit `search.num_trials` values of tau, and tau = inf before them, each a trial of its own.

    Args:
        config: What is fitted at each value; `prior.tau` does not matter.
        corpus: The tokenised text.
        load_base: Loads the base model.
        run: The run's folder.
        trial_id: Of the fit at tau = inf; the values after it are `trial_id.01`, `trial_id.02`, …
        on_epoch: Called after each epoch of each fit.
        check_stop: As for `bora_sweep.train.fit.fit`.

    Returns:
        The rows of the `trials` table, in the order of the fits.
    """
    path = _Path(
        config=config,
        corpus=corpus,
        load_base=load_base,
        run=run,
        trial_id=trial_id,
        on_epoch=on_epoch,
        check_stop=check_stop,
    )
    path.add(math.inf)
    while len(path.rows) <= config.search.num_trials:
        path.add(next_tau(path.objectives(), config.search.tau_low, config.search.tau_high))
    path.try_best_from_below()
    return list(path.rows.values())


def next_tau(objective_of: dict[float, float], low: float, high: float) -> float:
    """The value to fit next.

    Args:
        objective_of: What the search minimises, at the values fitted so far, in the order of the fits, inf among them.
        low: Lower end of the search.
        high: Upper end of the search.
    """
    finite = [tau for tau in objective_of if tau < math.inf]
    if not finite:
        return high
    # Not against tau = inf, whose fit may keep any of its epochs: the values after it begin anew from its end.
    best, lowest = min(finite, key=objective_of.__getitem__), min(finite)
    below_best = sum(tau < best for tau in finite)
    if below_best < TURNED and lowest > low and _is_falling(finite, low, high):
        return max(low, lowest / 10)
    return _halved(finite, objective_of)


def _is_falling(finite: list[float], low: float, high: float) -> bool:
    """Whether only decades from `high` downwards were fitted so far: the first value between two of them ends it."""
    return all(math.isclose(tau, max(low, high / 10**step)) for step, tau in enumerate(finite))


def _halved(finite: list[float], objective_of: dict[float, float]) -> float:
    """The middle, in log tau, of the widest gap beside the best value; of two equal gaps, the one whose other end
    is better."""
    ordered = sorted(finite)
    best = min(ordered, key=objective_of.__getitem__)
    place = ordered.index(best)
    gaps = [(ordered[i], ordered[i + 1]) for i in (place - 1, place) if 0 <= i < len(ordered) - 1]
    width_of = {gap: round(math.log(gap[1] / gap[0]), 6) for gap in gaps}
    lower, upper = max(gaps, key=lambda gap: (width_of[gap], -max(objective_of[tau] for tau in gap)))
    return math.sqrt(lower * upper)


@dataclass(kw_only=True)
class _Path:
    """The fits of one path, and how each begins."""

    config: Config
    corpus: TokenizedCorpus
    load_base: Callable[[], PreTrainedModel]
    run: Folder
    trial_id: str
    on_epoch: Callable[[State], None]
    check_stop: Callable[[], None]
    rows: dict[float, dict[str, Any]] = field(default_factory=dict)
    """Of `trials`, by tau."""

    def objectives(self) -> dict[float, float]:
        return {tau: objective(row) for tau, row in self.rows.items()}

    def add(self, tau: float) -> None:
        """Fit `tau` from the value above it; read its row where it was fitted before."""
        trial_id = f"{self.trial_id}.{len(self.rows):02d}" if self.rows else self.trial_id
        earlier = from_rank_zero(lambda: read_trial_row(self.run, trial_id))
        if earlier is not None and earlier["status"] == "finished":
            tau = earlier["tau"]  # since `bora-sweep forget` sums its scores up over fewer tasks, another might follow
        above = [other for other in self.rows if other > tau]
        start = self.rows[min(above)]["trial_id"] if above else None
        trial = Trial(trial_id, self._config(tau), start)
        self.rows[tau] = run_trial(
            trial, self.corpus, self.load_base, self.run, on_epoch=self.on_epoch, check_stop=self.check_stop
        )

    def try_best_from_below(self) -> None:
        """Fit the best value once more, begun at its neighbour below, and keep the better of the two fits."""
        objective_of = self.objectives()
        best = min(objective_of, key=objective_of.__getitem__)
        below = [tau for tau in self.rows if tau < best]
        if not below or math.isinf(best):
            return
        row, start = self.rows[best], self.rows[max(below)]["trial_id"]
        folder = self.run / "trials" / row["trial_id"]
        if from_rank_zero(lambda: exists(folder / UPWARD)):
            return
        own, base = self._config(best), self.load_base()
        begin = from_rank_zero(lambda: starting_point(own, base, run=self.run, trial_id=start, tasks=self.corpus.tasks))
        done = fit(
            own,
            self.corpus,
            base,
            folder,
            on_epoch=self.on_epoch,
            start=begin,
            check_stop=self.check_stop,
            tokenizer=tokenizer_of(own),
        )
        self.rows[best] = from_rank_zero(lambda: self._keep_better(own, row, start, done))

    def _keep_better(self, own: Config, row: dict[str, Any], start: str, done: Fit) -> dict[str, Any]:
        """Write the better of a value's two fits, and what both took."""
        folder = self.run / "trials" / row["trial_id"]
        spent = {name: row[name] + getattr(done.state, name) for name in ("train_tokens", "train_seconds")}
        nll = done.state.validation_nats
        final, _ = result_of(own, self.corpus, done)
        if objective(row | final) < objective(row):
            row = row | {"started_from": start}
            row = write_result(own, self.corpus, done, run=self.run, trial_id=row["trial_id"], row=row)
        row = row | spent
        write_table(self.run, "trials", row["trial_id"], [row])
        write_bytes(folder / UPWARD, json.dumps({"started_from": start, "validation_nll_nats": nll}).encode())
        drop_checkpoints(folder)
        return row

    def _config(self, tau: float) -> Config:
        train = {} if math.isinf(tau) else {"patience": self.config.search.path_patience}
        return with_values(self.config, prior={"tau": tau}, train=train, method="map")
