"""Sequences and batches: every document once, each token in its place, order by seed alone."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_corpus, make_tokenizer

from bora_sweep.data.batches import (
    ENOUGH_FILLED,
    MIN_PASS_ROWS,
    SORTED_BATCHES,
    collate,
    forward_parts,
    group_by_length,
    scoring_batches,
    separate_batches,
    training_batches,
    width_of,
)
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.encode import Encoder
from bora_sweep.data.tokens import token_notes, tokenize
from bora_sweep.errors import InputError

START = END = 2


def bounds(tokenizer) -> tuple[list[int], int]:
    """The start symbol and the end token."""
    encoder = Encoder(tokenizer)
    return encoder.start, encoder.end


def corpus_of(*texts: str) -> Corpus:
    frame = pd.DataFrame({"task": "a", "text": texts, "split": "train", "floor_nll_nats": 5.0})
    return Corpus("made", ("a",), frame.assign(content=None, document_id=[str(i) for i in range(len(texts))]), ())


def test_a_sequence_is_start_text_end_and_long_ones_are_cut_before_the_end():
    corpus = tokenize(corpus_of("w0 w1", "w0 w1 w2 w3 w4"), make_tokenizer(), max_tokens=5)
    first, second = (corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]].tolist() for n in (0, 1))
    assert first == [START, 3, 4, END]
    assert second == [START, 3, 4, 5, END]
    assert corpus.documents["num_tokens"].tolist() == [3, 4]
    assert corpus.documents["was_cut"].tolist() == [False, True]
    assert corpus.documents["floor_nll_nats"].isna().tolist() == [False, True]


def test_the_start_symbol_is_what_the_tokenizer_prepends_else_bos_else_eos():
    tokenizer = make_tokenizer()
    assert bounds(tokenizer) == ([2], 2)
    plain = make_tokenizer()
    plain.backend_tokenizer.post_processor = None
    plain.bos_token = "w1"
    assert bounds(plain) == ([4], 2)
    plain.bos_token = None
    assert bounds(plain) == ([2], 2)
    plain.eos_token = None
    with pytest.raises(InputError, match="end token"):
        bounds(plain)


@given(st.integers(1, 20), st.integers(0, 99), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_an_epoch_holds_each_training_document_once(batch_size, seed, epoch):
    corpus = make_corpus()
    batches = training_batches(corpus, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches)) == corpus.split("train").tolist()
    assert all(len(batch) <= batch_size for batch in batches)
    again = training_batches(corpus, batch_size, seed, epoch)
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))


def test_epochs_and_seeds_differ_in_order():
    corpus = make_corpus()
    orders = {tuple(np.concatenate(training_batches(corpus, 4, seed, epoch))) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_rows_of_a_batch_are_of_like_length():
    corpus = make_corpus({"a": 400, "b": 200})
    batches = [collate(corpus, documents) for documents in training_batches(corpus, 16, 0, 1)]
    assert sum(b.length_B.sum() for b in batches) / sum(b.tokens_BT.size for b in batches) >= 0.95


@given(st.integers(0, 60), st.sampled_from([None, 3, 20]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_parts_of_a_step_are_its_documents_with_little_padding_or_few_rows(size, largest, seed):
    corpus = make_corpus({"a": 200, "b": 40})
    document_B = np.random.default_rng(seed).choice(corpus.split("train"), size, replace=False)
    parts = forward_parts(corpus, document_B, largest)
    assert sorted(n for part in parts for n in part) == sorted(document_B)
    assert all(0 < len(part) <= (largest or size) for part in parts)
    lengths = [np.diff(corpus.offsets)[part] for part in parts]
    filled = sum(map(sum, lengths)) / max(1, sum(len(own) * max(own) for own in lengths))
    fewest = -(-size // (largest or max(1, size)))
    assert not parts or filled >= ENOUGH_FILLED or len(parts) >= size // MIN_PASS_ROWS
    assert len(parts) <= max(fewest, size // MIN_PASS_ROWS)


@given(st.integers(1, 60), st.sampled_from([1, 40, 10_000]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_where_a_pass_has_a_price_each_cut_of_a_step_is_worth_it(size, pass_tokens, seed):
    corpus = make_corpus({"a": 200, "b": 40})
    document_B = np.random.default_rng(seed).choice(corpus.split("train"), size, replace=False)
    parts = forward_parts(corpus, document_B, pass_tokens=pass_tokens)
    assert sorted(n for part in parts for n in part) == sorted(document_B)
    lengths = [np.diff(corpus.offsets)[part] for part in parts]
    positions = sum(len(own) * max(own) for own in lengths)
    whole = size * np.diff(corpus.offsets)[document_B].max()
    assert whole - positions >= pass_tokens * (len(parts) - 1)
    for own in lengths:  # sorted: what the best further cut of a part would save
        saved = max(place * (own[-1] - own[place - 1]) for place in range(1, len(own))) if len(own) > 1 else 0
        assert saved < pass_tokens or sum(map(sum, lengths)) >= ENOUGH_FILLED * positions


@pytest.mark.parametrize("size", [16, 100])
def test_separate_fits_meet_in_rows_of_like_length_and_know_nothing_of_each_other(size):
    corpus = make_corpus({"a": 400, "b": 2000, "c": 30})
    batches = separate_batches(corpus, size, 0, 1, np.arange(3))
    assert sorted(np.concatenate(batches)) == corpus.split("train").tolist()
    kept = [collate(corpus, document_B) for document_B in batches]
    assert sum(b.length_B.sum() for b in kept) / sum(b.tokens_BT.size for b in kept) >= 0.8
    alone = separate_batches(corpus, size, 0, 1, np.array([0]))
    task_N = corpus.documents["task"].to_numpy()
    assert [own.tolist() for own in alone] == [own[task_N[own] == 0].tolist() for own in batches]


@pytest.mark.parametrize(("size", "kept"), [(1, 1.0), (16, 0.6), (300, 1.0)])
def test_separate_batches_of_many_tasks_are_those_of_a_loop_that_searches_each_task(size, kept):
    rng = np.random.default_rng(size)
    corpus = make_corpus({f"t{k}": int(count) for k, count in enumerate(rng.integers(1, 12, 300))})
    tasks = np.flatnonzero(rng.random(300) < kept)
    train, length_C = corpus.sequences("train"), np.diff(corpus.offsets)
    num_batches = -(-len(train) // size)
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    for task in tasks:
        own = np.random.default_rng([3, 2, task])
        shuffled = own.permutation(train[corpus.task_C[train] == task])
        batch_of = ((np.arange(len(shuffled)) + own.random()) * num_batches / len(shuffled)).astype(int) % num_batches
        order = np.lexsort((length_C[shuffled], batch_of // SORTED_BATCHES))
        for sequence, batch in zip(shuffled[order].tolist(), batch_of, strict=True):
            batches[batch].append(sequence)
    order = np.random.default_rng([3, 2]).permutation(num_batches)
    found = separate_batches(corpus, size, 3, 2, tasks)
    assert [batch.tolist() for batch in found] == [batches[i] for i in order]


def test_a_batch_holds_its_documents_and_their_tasks():
    corpus = make_corpus()
    batch = collate(corpus, np.array([20, 3]))
    for row, n in enumerate((20, 3)):
        tokens = corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]]
        assert batch.tokens_BT[row, : batch.length_B[row]].tolist() == tokens.tolist()
        assert batch.task_B[row] == corpus.documents["task"][n]
    assert batch.num_tokens == corpus.documents["num_tokens"][[20, 3]].sum()


def test_scoring_visits_a_split_once():
    corpus = make_corpus()
    seen = np.concatenate([batch.sequence_B for batch in scoring_batches(corpus, corpus.split("test"), 3)])
    assert sorted(seen) == corpus.split("test").tolist()


def test_what_is_suspicious_in_tokens_is_said():
    tokenizer = make_tokenizer()
    texts = ["w5 w6 w7", "", "w5 w6 w7 w8", "w9 w9 w9"]
    frame = pd.DataFrame({"task": "a", "text": texts, "document_id": list("0123"), "floor_nll_nats": math.nan})
    corpus = Corpus("c", ("a",), frame.assign(content=None, split=["train", "train", "test", "validation"]), ())
    whole, cut = (token_notes(tokenize(corpus, tokenizer, most)) for most in (64, 5))
    assert whole == ["1 document with no token but the end token"]
    assert cut[1].startswith("1 document longer than model.max_tokens=5 cut: 5.6% of all tokens are lost; model.long")
    assert cut[2:] == ["1 document of validation and test with the same tokens as a training document"]


def test_unknown_words_are_counted_in_a_note():
    known, mixed = (tokenize(corpus_of("w0 w1", text), make_tokenizer(), 16) for text in ("w2", "w2 xylophone quantum"))
    assert token_notes(known) == []
    assert [note for note in token_notes(mixed) if note.startswith("2 of 9 tokens stand for text that the tokenizer")]


@given(st.integers(1, 40), st.lists(st.integers(2, 60), max_size=3, unique=True).map(sorted), st.integers(0, 1000))
def test_rows_are_padded_to_a_multiple_but_not_beyond_a_limit_or_the_longest(bucket, limits, seed):
    corpus = make_corpus()
    lengths = np.diff(corpus.offsets)
    rng = np.random.default_rng(seed)
    for document_B in group_by_length(corpus, rng.permutation(len(lengths))[:7], limits):
        longest, width = lengths[document_B].max(), width_of(corpus, document_B, bucket, limits)
        assert longest <= width <= corpus.longest
        assert width % bucket == 0 or width == corpus.longest or width in limits
        assert width - longest < bucket
        assert not any(longest <= limit < width for limit in limits)
