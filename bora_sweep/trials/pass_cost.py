"""What a forward and backward pass costs beside its tokens, measured on the device with the base model and the text."""

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

REPEATS, TRIES = 5, 3
WHOLE = 10**9
"""Tokens that no batch has, so that none is cut."""
RATE = 1e-3
"""Any: no time depends on it, and that of the configuration may not be known yet."""
PART = 4
"""A pass of all rows is compared with one of so many times fewer."""


def with_measured_pass(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> Config:
    """The configuration with `train.pass_tokens` as a number, or as by default: `auto` is measured here.

    Args:
        config: Of the fits.
        corpus: The tokenised text.
        base: The base model.
    """
    if config.train.pass_tokens != "auto":
        return config
    return with_values(config, train={"pass_tokens": measure_pass_tokens(config, corpus, base)})


def about_pass(config: Config) -> str:
    """What was measured, in words."""
    tokens = config.train.pass_tokens
    if tokens is None:
        return "train.pass_tokens=auto: passes took no regular time, so that the default holds"
    return f"train.pass_tokens=auto: a further pass must save {tokens:,} tokens of padding"


def measure_pass_tokens(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel) -> int | None:
    """Tokens whose work takes as long as the fixed part of a pass, to two digits; None where it cannot be told.

    A pass of n tokens takes a + b n seconds. Two sizes of rows of one length give a and b, and the result is a / b.

    Args:
        config: Of the fits; tau does not matter.
        corpus: The tokenised text.
        base: The base model.
    """
    own = with_values(config, prior={"tau": 100.0}, method="map", train={"pass_tokens": WHOLE, "learning_rate": RATE})
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
            return tokens, min(taken[1:])  # other work on the machine only adds

        for _ in range(TRIES):
            own_found = fixed_tokens(seconds(pack.rows // PART), seconds(pack.rows))
            found = from_rank_zero(lambda found=own_found: found)
            if found is not None:
                return found
    return None


def fixed_tokens(small: tuple[int, float], large: tuple[int, float]) -> int | None:
    """a / b of two points (tokens, a + b tokens), to two digits; at most the larger number of tokens.

    Where the larger pass takes no longer than the smaller one, its tokens cost nothing and no cut is worth a pass.
    Where a is not above 0, other work has disturbed the clock: None.
    """
    (few, seconds_few), (many, seconds_many) = small, large
    per_token = (seconds_many - seconds_few) / max(1, many - few)
    fixed = seconds_many / per_token - many if per_token > 0 else many
    return None if fixed < 1 else int(float(f"{min(fixed, many):.1e}"))
