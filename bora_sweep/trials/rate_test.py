"""`train.learning_rate=auto`: a range test on the shared fit, made once at the start of a run.

Fits at tau = inf that differ by their rate alone, with one start, the same batches and shared forward passes, are
judged by the nats of validation after so many steps. Rates lie a factor of sqrt(10) apart. All have a third of the
steps; the best and its two neighbours have all of them, and a parabola through these three in log rate has its lowest
point at the rate that is chosen. A rate that is best at an end of those tried gets a neighbour beyond it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from transformers import PreTrainedModel

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.distributed.process_group import from_rank_zero, sync_errors
from bora_sweep.train.evaluate import score_sequences
from bora_sweep.train.make_trainer import make_trainers
from bora_sweep.train.pack import Pack
from bora_sweep.train.state import no_op
from bora_sweep.train.step import step
from bora_sweep.train.trainer import Trainer

FIRST = range(-6, -2)
"""Where the test begins: 10^(k/2), from 1e-3 to 3e-2."""
LOWEST, HIGHEST = -12, 2
"""Beyond 1e-6 and 10 no rate is tried."""
PASSES, FEWEST, MOST = 2, 16, 300
"""Steps of the longest fits: so many passes over the training text, within these bounds."""
EARLY = 1 / 3
"""The part of those steps that all rates get."""
MOST_VALIDATION = 2048
"""Sequences of validation that judge, at most."""


@dataclass(frozen=True)
class RateTest:
    """What a range test found."""

    rate: float
    """To two digits."""
    tried: dict[float, float]
    """By rate, ascending: validation nats per token at its last step; inf where the loss was not finite."""
    base_nats: float
    """The same before the first step."""
    num_tokens: int
    """Scored tokens of training, of all fits together."""

    def __str__(self) -> str:
        tried = ", ".join(f"{rate:.2g}: {nats:.4f}" for rate, nats in self.tried.items())
        text = (
            f"train.learning_rate=auto: {self.rate:g}, by {self.num_tokens:,} tokens at tau = inf (validation nats per "
            f"token at rates {tried}; before the first step {self.base_nats:.4f})"
        )
        if min(self.tried.values()) >= self.base_nats:
            return f"{text}; none made validation better, so that the choice says little"
        return text


def with_chosen_rate(
    config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, check_stop: Callable[[], None] = no_op
) -> tuple[Config, str]:
    """The configuration with `train.learning_rate` as a number, and what was tried, in words.

    Args:
        config: Of the fits; its rate is `auto`.
        corpus: The tokenised text.
        base: The base model.
        check_stop: As for `choose_rate`.

    Raises:
        InputError: The configuration does not fit the model or the corpus.
        Interrupted: `check_stop` raised it.
    """
    found = choose_rate(config, corpus, base, check_stop)
    rate = from_rank_zero(lambda: found.rate)
    return with_values(config, train={"learning_rate": rate}), str(found)


def choose_rate(
    config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, check_stop: Callable[[], None] = no_op
) -> RateTest:
    """The range test.

    Args:
        config: Of the fits; its tau and learning rate do not matter.
        corpus: The tokenised text.
        base: The base model.
        check_stop: Called after each step and each scored batch. If it raises `Interrupted`, nothing is kept: the next
            test begins anew.

    Raises:
        InputError: The configuration does not fit the model or the corpus.
        Interrupted: `check_stop` raised it.
    """
    train = config.train
    rows = max(1, (train.micro_batch_size or train.batch_size) // len(FIRST))
    own = {"schedule": "constant", "warmup_steps": 0, "compile": False, "micro_batch_size": rows}
    one_for_all = {"tau": math.inf, "tau_2": math.inf if config.data.has_groups else None}
    shared = with_values(config, prior=one_for_all, method="map", train={**own, "learning_rate": rate_of(0)})
    with Pack(shared, corpus, base, make_accelerator(shared)) as pack:
        fits = _Fits(shared, pack, check_stop)
        most = min(max(PASSES * fits.num_batches, FEWEST), MOST)
        best = fits.best_of(FIRST, math.ceil(EARLY * most))
        around = [place for place in (best - 1, best, best + 1) if LOWEST <= place <= HIGHEST]
        best = fits.best_of(around, most)
        nats = [min(fits.nats.get(place, math.inf), fits.base_nats) for place in (best - 1, best, best + 1)]
        rate = rate_of(best + vertex(*nats))
        tried = {rate_of(place): fits.nats[place] for place in sorted(fits.nats)}
        return RateTest(float(f"{rate:.1e}"), tried, fits.base_nats, fits.num_tokens)


def rate_of(place: float) -> float:
    """The rate at a place of the grid."""
    return 10 ** (place / 2)


def vertex(below: float, nats: float, above: float) -> float:
    """Where the parabola through (-1, below), (0, nats), (1, above) is lowest, if that is nearest to 0; else 0."""
    bend = below - 2 * nats + above
    return (below - above) / (2 * bend) if bend > 0 and nats <= min(below, above) else 0.0


class _Fits:
    """The fits of a test, by the place of their rate on the grid.

    Args:
        config: Of the fits, but for the rate.
        pack: What they share.
        check_stop: As for `choose_rate`.
    """

    def __init__(self, config: Config, pack: Pack, check_stop: Callable[[], None]) -> None:
        self.config, self.pack, self.check_stop = config, pack, check_stop
        validation = pack.corpus.sequences("validation")
        chosen = np.random.default_rng(config.train.seed).permutation(len(validation))[:MOST_VALIDATION]
        self.validation = validation[np.sort(chosen)]
        start = self._new([FIRST[0]])
        self.fits: dict[int, Trainer] = dict(start)
        (first,) = start.values()
        self.batches_of = lru_cache(maxsize=2)(first.batches)
        self.num_batches = len(self.batches_of(1))
        self.nats: dict[int, float] = {}
        self.base_nats = self._score([first])[0]
        self.num_tokens = 0

    def best_of(self, places: Sequence[int], steps: int) -> int:
        """The best of these places after so many steps; while it is at an end of them, the next beyond is tried too."""
        self._advance(places, steps)
        places = sorted(places)
        while True:
            best = min(places, key=lambda place: self.nats[place])
            beyond = best - 1 if best == places[0] else best + 1 if best == places[-1] else None
            if beyond is None or not LOWEST <= beyond <= HIGHEST:
                return best
            self._advance([beyond], steps)
            places = sorted([*places, beyond])

    def _advance(self, places: Sequence[int], steps: int) -> None:
        """Train the fits at these places up to so many steps, those that are equally far together, and score them."""
        self.fits |= self._new([place for place in places if place not in self.fits])
        fits = [self.fits[place] for place in places]
        for done in sorted({fit.state.step for fit in fits if fit.state.diverged is None}):
            together = [fit for fit in fits if fit.state.step == done]
            for number in range(done, steps):
                together = [fit for fit in together if fit.state.diverged is None]
                if together:
                    batches = self.batches_of(number // self.num_batches + 1)
                    _, tokens = step(self.pack, together, batches[number % self.num_batches], self.num_batches)
                    self.num_tokens += tokens * len(together)
                    sync_errors(self.check_stop)
        for place, fit in zip(places, fits, strict=True):
            nats = math.nan if fit.state.diverged is not None else self._score([fit])[0]
            self.nats[place] = nats if math.isfinite(nats) else math.inf

    def _new(self, places: Sequence[int]) -> dict[int, Trainer]:
        configs = [with_values(self.config, train={"learning_rate": rate_of(place)}) for place in places]
        return dict(zip(places, make_trainers(configs, self.pack), strict=True)) if configs else {}

    def _score(self, fits: Sequence[Trainer]) -> list[float]:
        """Validation nats per token of each fit."""
        protocol, corpus = self.pack.protocol, self.pack.corpus
        nll_SC = score_sequences(self.pack, fits, self.validation, self.check_stop, protocol.validation_batches)
        return (nll_SC.sum(1) / corpus.num_tokens_C[self.validation].sum()).tolist()
