"""`method=task_prompt`: the name is given, and what is scored is what the other fits score."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_base, make_corpus, make_tokenizer

from bora_sweep.config import load_config
from bora_sweep.data.encode import Encoder
from bora_sweep.data.task_prompt import name_tokens, with_task_names
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.train.fit import fit

CONFIG = load_config(["method=task_prompt", "prior.tau=inf", "train.device=cpu", "lora.rank=2", "train.max_epochs=2"])
SIZES = {"w3": 16, "w5 w9": 10, "w7": 8}
END, COLON = 2, 0  # the tokenizer knows no colon


def both(longest: int = 24) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """A corpus of which many documents were cut, and as `task_prompt` reads it."""
    plain = make_corpus(SIZES, seed=int(np.random.default_rng().integers(1000)), longest=longest)
    assert plain.documents["was_cut"].any() == (longest > 16)
    return plain, with_task_names(CONFIG, plain, Encoder(make_tokenizer()))


def test_a_sequence_has_its_tasks_name_after_the_start_symbol():
    plain, named = both()
    name_of = {"w3": [6, COLON], "w5 w9": [8, 12, COLON], "w7": [10, COLON]}
    for n, task in enumerate(plain.documents["task"]):
        before, after = (each.tokens[each.offsets[n] : each.offsets[n + 1]].tolist() for each in (plain, named))
        assert before[0] == END
        assert after == [END, *name_of[plain.tasks[task]], *before[1:]]


@pytest.mark.parametrize("longest", [12, 24])
def test_the_same_tokens_of_each_document_are_scored_also_where_it_was_cut(longest):
    plain, named = both(longest)
    for n in range(len(plain.documents)):
        plain_n, named_n = (slice(*each.offsets[n : n + 2]) for each in (plain, named))
        assert (plain.tokens[plain_n][plain.scored[plain_n]] == named.tokens[named_n][named.scored[named_n]]).all()
    assert not named.scored[named.offsets[:-1]].any()
    pd.testing.assert_frame_equal(plain.documents, named.documents)
    assert [plain.num_tokens(split) for split in ("train", "test")] == [named.num_tokens(s) for s in ("train", "test")]


def test_the_nats_are_those_of_the_text_after_the_name():
    """Of the base as it is, one document at a time."""
    plain, named = both()
    base = make_base()
    nats = fit(replace(CONFIG, method="zero_shot"), named, base).nll_nats["test"]
    name_K = name_tokens(CONFIG, Encoder(make_tokenizer()), plain.tasks)
    for n, found in zip(plain.split("test"), nats, strict=True):
        text = plain.tokens[plain.offsets[n] + 1 : plain.offsets[n + 1]].tolist()
        given = [END, *name_K[plain.documents["task"].iloc[n]]]
        with torch.no_grad():
            log_TV = base(torch.tensor([given + text])).logits[0].log_softmax(-1)
        expected = -sum(log_TV[len(given) - 1 + i, token].item() for i, token in enumerate(text))
        assert found == pytest.approx(expected, rel=1e-10)


def test_a_fit_of_it_has_one_adapter_and_scores_what_the_shared_fit_scores():
    plain, named = both()
    done, shared = fit(CONFIG, named, make_base()), fit(replace(CONFIG, method="map"), plain, make_base())
    assert (done.theta_KP == done.mean_P).all()
    assert {split: len(nats) for split, nats in done.nll_nats.items()} == {
        split: len(nats) for split, nats in shared.nll_nats.items()
    }
    first = [next(row for row in each.state.curve if row["split"] == "train") for each in (done, shared)]
    assert first[0]["num_tokens"] == first[1]["num_tokens"]
    assert abs(first[0]["nll_nats"] - first[1]["nll_nats"]) > 1e-3  # the name is read, whichever epoch is best


def test_other_fits_read_the_corpus_as_it_is():
    encoder = Encoder(make_tokenizer())
    assert name_tokens(load_config(["method=map"]), encoder, ("w3", "w7")) == [[], []]


def test_documents_with_prompts_of_their_own_are_refused():
    plain, _ = both()
    with pytest.raises(InputError, match=r"search\.baselines: task_prompt .* drop task_prompt, or put \{task\}"):
        with_task_names(CONFIG, replace(plain, form="prompt"), Encoder(make_tokenizer()))
