"""Real text and a real model, where they lie beside the repository."""

import numpy as np
import pytest
from tiny import SHARED

from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.runs.results import perplexity
from bora_sweep.train.fit import fit

SPEAKERS, MODEL = SHARED / "data" / "speakers.parquet", SHARED / "models" / "opt-en-1m"
here = pytest.mark.skipif(not (SPEAKERS.exists() and MODEL.exists()), reason=f"needs {SPEAKERS} and {MODEL}")


@here
def test_zero_shot_perplexity_of_the_speakers_is_the_known_one():
    config = load_config([f"data.path={SPEAKERS}", f"model.name={MODEL}", "method=zero_shot", "train.device=cpu"])
    corpus = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
    done = fit(config, corpus, load_base(config.model, config.data))
    assert perplexity(float(np.sum(done.nll_nats["test"])), corpus.num_tokens("test")) == pytest.approx(355, rel=0.03)
