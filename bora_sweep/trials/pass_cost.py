"""What a forward and backward pass costs beside its tokens, measured on the device with the base model and the text."""

import statistics
import time

import numpy as np
from transformers import PreTrainedModel

from bora_sweep.config import Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.device import make_accelerator, wait_for
from bora_sweep.train.distributed.process_group import from_rank_zero
from bora_sweep.train.evaluate import retry_on_oom
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import add_likelihood_gradients

REPEATS = 5
WHOLE = 10**9
"""Tokens that no batch has, so that none is cut."""
PART = 4
"""A pass of all rows is compared with one of so many times fewer."""


def with_measured_pass(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> Config:
    """The configuration with `train.pass_tokens` as a number: `auto` is measured here.

    Args:
        config: Of the fits.
        corpus: The tokenised text.
        base: The base model.
    """
    if config.train.pass_tokens != "auto":
        return config
    return with_values(config, train={"pass_tokens": measure_pass_tokens(config, corpus, base)})


def measure_pass_tokens(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> int:
    """Tokens whose work takes as long as the fixed part of a pass, to two digits; at least 1.

    A pass of n tokens takes a + b n seconds. Two sizes of rows of one length give a and b, and the result is a / b.

    Args:
        config: Of the fits; tau does not matter.
        corpus: The tokenised text.
        base: The base model.
    """
    own = with_values(config, prior={"tau": 100.0}, method="map", train={"pass_tokens": WHOLE})
    with Pack(own, corpus, base, make_accelerator(own)) as pack:
        train_C = corpus.sequences("train")
        by_length = train_C[np.argsort(-np.diff(corpus.offsets)[train_C], kind="stable")]
        fit = make_trainer(own, pack)

        def seconds(rows: int) -> tuple[int, float]:
            batch_B = by_length[: max(1, rows)]
            taken, tokens = [], 0
            for _ in range(REPEATS + 1):
                started = time.perf_counter()
                sums = retry_on_oom(pack, [fit], lambda: add_likelihood_gradients(pack, [fit], batch_B, 1))
                wait_for(pack.accelerator.device)
                taken.append(time.perf_counter() - started)
                tokens = int(sums[-1])
            return tokens, statistics.median(taken[1:])

        found = fixed_tokens(seconds(pack.rows // PART), seconds(pack.rows))
        return from_rank_zero(lambda: found)


def fixed_tokens(small: tuple[int, float], large: tuple[int, float]) -> int:
    """a / b of two points (tokens, a + b tokens), to two digits; at least 1, and at most the larger number of tokens.

    Where the larger pass takes no longer than the smaller one, its tokens cost nothing and no cut is worth a pass.
    """
    (few, seconds_few), (many, seconds_many) = small, large
    per_token = (seconds_many - seconds_few) / max(1, many - few)
    fixed = seconds_many / per_token - many if per_token > 0 else many
    return max(1, int(float(f"{min(max(fixed, 1), many):.1e}")))
