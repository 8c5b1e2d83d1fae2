import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.config import SyntheticConfig
from bora_sweep.data.synthetic import (
    END_PROBABILITY,
    MAX_WORDS,
    VOCABULARY,
    Chain,
    cross_entropy_nats,
    documents,
    log_normalizer,
    log_probability,
    sample,
    speaker_language,
    unit_shift,
    world_documents,
    world_language,
)

SMALL = SyntheticConfig(num_tasks=5, min_documents=6, max_documents=12)


def tiny_chain(seed: int, zeros: bool = False) -> Chain:
    """Three words and an end; with `zeros`, word 2 never follows word 0."""
    weights = np.random.default_rng(seed).dirichlet(np.ones(4), size=4)
    weights[0, 2] *= not zeros
    weights[3, 3] = 0  # the last row is the first symbol's: no document is empty
    weights /= weights.sum(1, keepdims=True)
    return Chain(start_N=weights[3], next_NN=np.vstack([weights[:3], np.eye(4)[3]]))


def all_documents(max_words: int) -> np.ndarray:
    texts = [words for n in range(1, max_words + 1) for words in itertools.product(range(3), repeat=n)]
    return np.array([[*words, *[3] * (max_words + 1 - len(words))] for words in texts])


@given(seed=st.integers(0, 10_000), max_words=st.integers(1, 5), zeros=st.booleans())
@settings(max_examples=30, deadline=None)
def test_probabilities_of_all_documents_sum_to_one(seed, max_words, zeros):
    log_p_B = log_probability(tiny_chain(seed, zeros), all_documents(max_words), max_words)
    assert np.exp(log_p_B).sum() == pytest.approx(1)


@given(seed=st.integers(0, 10_000), max_words=st.integers(1, 5), zeros=st.booleans())
@settings(max_examples=30, deadline=None)
def test_cross_entropy_is_the_sum_over_all_documents(seed, max_words, zeros):
    p, q = tiny_chain(seed, zeros), tiny_chain(seed + 1)
    log_p_B, log_q_B = (log_probability(chain, all_documents(max_words), max_words) for chain in (p, q))
    possible = log_p_B > -np.inf
    expected = -(np.exp(log_p_B) * np.where(possible, log_q_B, 0)).sum()
    assert cross_entropy_nats(p, q, max_words) == pytest.approx(expected)
    assert cross_entropy_nats(p, p, max_words) <= expected + 1e-12


def test_documents_are_drawn_as_often_as_they_are_probable():
    chain, max_words, n = tiny_chain(3, zeros=True), 3, 40_000
    drawn_BT = sample(chain, n, max_words, np.random.default_rng(0))
    every_BT = all_documents(max_words)
    assert drawn_BT.shape == (n, max_words + 1)
    counts = (drawn_BT[:, None] == every_BT).all(2).sum(0)
    expected = n * np.exp(log_probability(chain, every_BT, max_words))
    assert counts.sum() == n
    assert not counts[expected == 0].any()
    assert np.all(np.abs(counts - expected) <= 4.5 * np.sqrt(expected) + 1e-9)


def test_mean_floor_is_the_entropy_of_the_speakers_language():
    config = SyntheticConfig(num_tasks=3, min_documents=3000, max_documents=3000)
    by_speaker = documents(config)["floor_nll_nats"].to_numpy().reshape(3, 3000)
    for speaker, floors in enumerate(by_speaker):
        language = speaker_language(config, speaker)
        error = floors.mean() - cross_entropy_nats(language, language, MAX_WORDS)
        assert abs(error) < 4 * floors.std() / math.sqrt(len(floors))


def test_floor_is_minus_log_p_of_the_text_as_it_is_read():
    corpus = documents(SMALL)
    speakers = list(corpus["task"].unique())
    for task, text, floor in zip(corpus["task"], corpus["text"], corpus["floor_nll_nats"], strict=True):
        language = speaker_language(SMALL, speakers.index(task))
        words = text.replace(".", " .").split()
        stop, end = len(VOCABULARY) - 1, len(VOCABULARY)
        # The first word is as after a full stop, given that there is one.
        log_p, before = -math.log1p(-END_PROBABILITY), stop
        for symbol in [*map(VOCABULARY.index, words), end]:
            log_p += math.log(language.next_NN[before, symbol])
            before = symbol
        assert floor == pytest.approx(-log_p + log_normalizer(language, MAX_WORDS))


def test_another_speakers_language_scores_worse_and_less_so_with_similarity():
    def mean_divergence(similarity):
        config = SyntheticConfig(similarity=similarity)
        languages = [speaker_language(config, speaker) for speaker in range(6)]
        return np.mean(
            [
                cross_entropy_nats(p, q, MAX_WORDS) - cross_entropy_nats(p, p, MAX_WORDS)
                for p, q in itertools.permutations(languages, 2)
            ]
        )

    divergences = [mean_divergence(similarity) for similarity in (0, 0.25, 0.5, 0.75, 0.95)]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[0] > 2 * divergences[-1] > 0
    assert mean_divergence(1) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("group_similarity", [0, 0.4, 1])
def test_speakers_of_a_group_are_more_alike_by_what_similarity_leaves(group_similarity):
    config = SyntheticConfig(num_tasks=12, similarity=0.3, num_groups=3, group_similarity=group_similarity)
    shifts = np.stack([unit_shift(config, speaker).ravel() for speaker in range(12)])
    correlation = np.corrcoef(shifts)
    is_same = np.arange(12)[:, None] % 3 == np.arange(12) % 3
    is_other = ~is_same
    np.fill_diagonal(is_same, False)
    assert correlation[is_same].mean() == pytest.approx(0.3 + 0.7 * group_similarity, abs=0.04)
    assert correlation[is_other].mean() == pytest.approx(0.3, abs=0.05)


def test_groups_are_a_column_and_one_group_changes_nothing():
    frame = documents(SyntheticConfig(num_tasks=6, num_groups=2))
    assert dict(frame.groupby("task")["group"].unique().str[0])["Ada"] == "group 1"
    assert frame.groupby("task")["group"].nunique().eq(1).all()
    assert frame["group"].nunique() == 2
    assert "group" not in documents(SyntheticConfig(num_tasks=6))


@pytest.mark.parametrize("similarity", [0, 0.31, 0.69, 1])
def test_similarity_is_the_correlation_of_two_speakers_shifts(similarity):
    config = SyntheticConfig(similarity=similarity)
    shifts = np.corrcoef([unit_shift(config, speaker).ravel() for speaker in range(40)])
    mean = shifts[np.triu_indices(40, 1)].mean()
    assert mean == pytest.approx(similarity, abs=0.03)
    assert np.mean([unit_shift(config, speaker).std() for speaker in range(40)]) == pytest.approx(1, abs=0.03)


def test_without_shift_every_speaker_speaks_the_world_language():
    config = SyntheticConfig(shift=0)
    for speaker in range(3):
        assert (speaker_language(config, speaker).next_NN == world_language(config).next_NN).all()


@pytest.mark.parametrize("shift", [0, 1.8, 1e4])
def test_languages_are_distributions_with_the_worlds_full_stops(shift):
    config = SyntheticConfig(shift=shift)
    world, language = world_language(config), speaker_language(config, 0)
    assert language.start_N.sum() == pytest.approx(1)
    assert language.next_NN.sum(1) == pytest.approx(1)
    assert language.start_N[-2:].tolist() == [0, 0]
    assert (language.next_NN[:, -2:] == world.next_NN[:, -2:]).all()


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    pd.testing.assert_frame_equal(documents(SMALL), documents(SMALL), check_exact=True)
    other = documents(replace(SMALL, seed=1))
    assert set(documents(SMALL)["text"]).isdisjoint(other["text"][other["text"].str.len() > 60])
    assert not np.array_equal(world_language(SMALL).next_NN, world_language(replace(SMALL, seed=1)).next_NN)


def test_more_speakers_leave_the_first_ones_as_they_are():
    few, many = (SyntheticConfig(num_tasks=n, min_documents=7, max_documents=7) for n in (3, 60))
    pd.testing.assert_frame_equal(documents(few), documents(many).head(len(documents(few))))
    assert world_documents(few, 5) == world_documents(many, 5)


def test_amounts_of_text_are_unequal_and_do_not_follow_the_name():
    config = SyntheticConfig(num_tasks=9, min_documents=6, max_documents=96)
    counts = documents(config).groupby("task", sort=False).size()
    assert sorted(counts) == [6, 8, 12, 17, 24, 34, 48, 68, 96]
    assert list(counts) != sorted(counts)


def test_names_are_unique_beyond_the_list():
    corpus = documents(SyntheticConfig(num_tasks=120, min_documents=6, max_documents=6))
    assert len(set(corpus["task"])) == 120
    assert corpus["document_id"].is_unique


def test_text_reads_as_sentences_of_known_words():
    texts = world_documents(SMALL, 2000)
    assert len(texts) == 2000
    tokens = [text.replace(".", " .").split() for text in texts]
    assert {word for words in tokens for word in words} == set(VOCABULARY)
    assert all(words[-1] == "." and 2 < len(words) <= MAX_WORDS for words in tokens)
    assert not any(" ." in text or ".." in text for text in texts)
    num_stops = sum(words.count(".") for words in tokens)
    num_words = sum(map(len, tokens)) - num_stops
    assert 4 < num_words / num_stops < 8
    assert 20 < num_words / len(texts) < 32
    language = world_language(SMALL)
    nats = cross_entropy_nats(language, language, MAX_WORDS)
    assert 11 < math.exp(nats * len(texts) / (num_words + num_stops + len(texts))) < 25
