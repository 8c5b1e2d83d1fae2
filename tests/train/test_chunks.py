"""Fits of documents in chunks, in float64: their nats are those of a loop over windows, and all else is by document."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from answers import with_answers
from test_metrics import ALL
from tiny import make_base, make_frame, make_tokenizer
from torch.nn import functional as F
from transformers import MistralConfig, MistralForCausalLM

from bora_sweep.config import Config, load_config
from bora_sweep.data.batches import collate, separate_batches, training_batches
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.process import Interrupted
from bora_sweep.train.distributed import process_group
from bora_sweep.train.distributed.shard import Shard
from bora_sweep.train.fit import fit

SETTINGS = [
    "lora.rank=2", "train.device=cpu", "train.batch_size=6", "train.max_epochs=3", "train.learning_rate=0.01",
    "train.patience=3",
]  # fmt: skip
MOST, OVERLAP = 9, 3


def config_of(*settings: str) -> Config:
    return load_config([*SETTINGS, *settings])


def corpus_of(most: int = MOST, overlap: int | None = OVERLAP, longest: int = 40) -> TokenizedCorpus:
    """A corpus of tiny.make_corpus's kind, most of whose documents are longer than `MOST`."""
    sizes = {"a": 16, "b": 10, "c": 8}
    frame = make_frame(sizes, longest=longest)
    place = frame.groupby("task").cumcount()
    frame["split"] = np.select([place % 4 < 2, place % 4 == 2], ["train", "validation"], "test")
    frame = frame.assign(content=None, document_id=[str(i) for i in range(len(frame))], floor_nll_nats=np.nan)
    return tokenize(Corpus("made", tuple(sizes), frame, ()), make_tokenizer(), most, overlap=overlap)


WHOLE = corpus_of(most=64, overlap=None)
"""The documents uncut: document n is sequence n."""
CHUNKED = corpus_of()


def by_windows(base: Any, adapted: AdaptedModel | None, n: int, theta_P: torch.Tensor | None) -> float:
    """Nats of a document: a loop over its windows, and over the tokens that are new in each."""
    tokens = WHOLE.tokens[WHOLE.offsets[n] : WHOLE.offsets[n + 1]].tolist()
    nats, done = 0.0, 1
    while done < len(tokens):
        row = tokens[:MOST] if done == 1 else [tokens[0], *tokens[done - OVERLAP : done + MOST - 1 - OVERLAP]]
        new = len(row) - (1 if done == 1 else 1 + OVERLAP)
        with torch.no_grad():
            if adapted is None:
                logits_TV = base(input_ids=torch.tensor([row])).logits[0]
            else:
                with adapted.with_adapter(theta_P):
                    logits_TV = base(input_ids=torch.tensor([row])).logits[0]
        nll_T = F.cross_entropy(logits_TV[:-1], torch.tensor(row[1:]), reduction="none")
        nats += nll_T[-new:].sum().item()
        done += new
    return nats


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_nats_of_a_document_are_those_of_a_loop_over_its_windows(family):
    base, config = make_base(family), config_of("prior.tau=10")
    done = fit(config, CHUNKED, base)
    adapted = AdaptedModel(base, make_layout(base, config.lora))
    task_N = CHUNKED.documents["task"].to_numpy()
    for split in ("validation", "test"):
        wanted = [by_windows(base, adapted, n, done.theta_KP[task_N[n]]) for n in CHUNKED.split(split)]
        assert done.nll_nats[split] == pytest.approx(wanted, rel=1e-10)
    adapted.remove_hooks()
    zero_shot = fit(config_of("method=zero_shot"), CHUNKED, base)
    wanted = [by_windows(base, None, n, None) for n in CHUNKED.split("test")]
    assert zero_shot.nll_nats["test"] == pytest.approx(wanted, rel=1e-10)


def test_a_model_that_sees_no_further_than_the_overlap_scores_chunks_as_the_whole():
    """Two layers of a window of three tokens see four tokens before the last, and where a row begins is nothing."""
    sliding = MistralConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=3,
    )  # fmt: skip
    torch.manual_seed(0)
    base = MistralForCausalLM(sliding).double().eval()
    for parameter in base.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    whole, enough, little = (
        fit(config_of("method=zero_shot"), corpus_of(most, overlap), base).nll_nats["test"]
        for most, overlap in ((64, None), (12, 5), (12, 2))
    )
    assert enough == pytest.approx(whole, rel=1e-7)  # angles of places are in float32
    assert little != pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("setting", ["prior.tau=0", "prior.tau=10", "prior.tau=inf", "method=vi", "method=pfedme"])
def test_where_no_document_is_longer_a_fit_is_that_of_cut_documents_to_the_bit(setting):
    cut, chunked = (fit(config_of(setting), corpus_of(64, overlap), make_base()) for overlap in (None, 16))
    assert torch.equal(cut.theta_KP, chunked.theta_KP)
    assert all(np.array_equal(cut.nll_nats[split], chunked.nll_nats[split]) for split in cut.nll_nats)
    plain = [[{k: v for k, v in row.items() if k != "seconds"} for row in done.state.curve] for done in (cut, chunked)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("setting", ["prior.tau=0", "prior.tau=10", "prior.tau=inf", "method=vi"])
def test_an_epoch_trains_on_each_token_once_and_scores_are_of_documents(setting):
    done = fit(config_of(setting, "train.max_epochs=2"), CHUNKED, make_base())
    train, validation = (WHOLE.num_tokens(split) for split in ("train", "validation"))
    assert [row["num_tokens"] for row in done.state.curve if row["split"] == "train"] == [train, train]
    assert {row["num_tokens"] for row in done.state.curve if row["split"] == "validation"} == {validation}
    assert {split: len(nll) for split, nll in done.nll_nats.items()} == {
        split: len(WHOLE.split(split)) for split in ("validation", "test")
    }


def test_an_epoch_holds_each_chunk_once_all_of_its_document_s_split():
    for batches in (training_batches(CHUNKED, 4, 0, 1), separate_batches(CHUNKED, 4, 0, 1, np.arange(3))):
        assert sorted(np.concatenate(batches)) == CHUNKED.sequences("train").tolist()
        assert len(np.concatenate(batches)) > len(CHUNKED.split("train"))
        for batch_B in (batch_B for batch_B in batches if len(batch_B)):
            batch = collate(CHUNKED, batch_B)
            task_B = CHUNKED.documents["task"].to_numpy()[CHUNKED.document_of(batch_B)]
            assert batch.task_B.tolist() == task_B.tolist()
    assert set(CHUNKED.document_of(CHUNKED.sequences("test"))) == set(CHUNKED.split("test"))


@pytest.mark.parametrize(("setting", "by_task"), [("prior.tau=10", True), ("prior.tau=inf", False)])
def test_processes_share_chunks_so_that_each_is_on_one(setting, by_task, monkeypatch):
    monkeypatch.setattr(process_group, "count", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(process_group, "rank", lambda rank=rank: rank)
        shard = Shard(config_of(setting, "ray.workers_per_trial=2"), CHUNKED)
        assert shard.by_task == by_task
        parts.append(shard.sequences(CHUNKED.sequences("test")))
        if by_task:
            assert set(CHUNKED.task_C[parts[-1]]) == set(range(shard.tasks.start, shard.tasks.stop))
    assert sorted(np.concatenate(parts)) == CHUNKED.sequences("test").tolist()
    assert min(map(len, parts)) > 0


@pytest.mark.parametrize("setting", ["prior.tau=0", "prior.tau=10"])
def test_a_fit_that_is_interrupted_goes_on_as_if_it_had_not_been(setting, tmp_path):
    config, calls = config_of(setting), iter(range(1000))

    def stop() -> None:
        if next(calls) == 11:
            raise Interrupted

    whole = fit(config, CHUNKED, make_base())
    with pytest.raises(Interrupted):
        fit(config, CHUNKED, make_base(), tmp_path, check_stop=stop)
    resumed = fit(config, CHUNKED, make_base(), tmp_path)
    assert torch.equal(resumed.theta_KP, whole.theta_KP)
    assert all(np.array_equal(resumed.nll_nats[split], whole.nll_nats[split]) for split in whole.nll_nats)


@pytest.mark.parametrize("setting", ["prior.tau=0", "prior.tau=10"])
def test_a_schedule_ends_with_the_last_chunk_of_the_last_epoch(setting):
    config = config_of(setting, "train.schedule=linear", "train.patience=9", "train.max_epochs=2")
    curve = fit(config, CHUNKED, make_base()).state.curve
    rate = {row["epoch"]: row["learning_rate"] for row in curve if row["split"] == "train"}
    assert rate[1] == pytest.approx(config.learning_rate / 2)
    assert rate[2] == pytest.approx(0, abs=1e-12)


def test_micro_batches_change_no_result():
    whole, parts = (fit(config_of(f"train.micro_batch_size={n}"), CHUNKED, make_base()) for n in ("null", "2"))
    torch.testing.assert_close(parts.theta_KP, whole.theta_KP, rtol=0, atol=1e-10)


def test_metrics_are_of_whole_prompts_and_answers():
    """Chunks that hold the prompt change no prediction of the base, whose answers are not in chunks."""
    whole = with_answers(WHOLE)
    references = whole.references
    assert references is not None
    fits = references.given_N < 30
    kept = {
        name: np.asarray(getattr(references, name))[fits] for name in ("document_N", "given_N")
    } | {
        name: tuple(value for value, is_kept in zip(getattr(references, name), fits, strict=True) if is_kept)
        for name in ("text_N", "choices_N", "choice_tokens_N")
    }  # fmt: skip
    references = dataclasses.replace(references, **kept)
    config = config_of(ALL, "method=zero_shot", "metric.max_new_tokens=5")
    found = [
        fit(config, dataclasses.replace(corpus, references=references), make_base("llama"), tokenizer=make_tokenizer())
        for corpus in (WHOLE, corpus_of(30, 4))
    ]
    assert found[0].predictions is not None
    assert len(found[0].predictions) == 3 * fits.sum() > 0
    assert found[0].predictions.equals(found[1].predictions)
