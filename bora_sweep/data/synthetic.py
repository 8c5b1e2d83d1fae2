"""The embedded corpus: speakers with known true languages, so that a model's score has a known lower bound.

A language is a first-order Markov chain over `VOCABULARY` and an end symbol that is not text. A grammar of word classes
keeps sentences readable. Low-rank random logits on top of it give the world language, and a further low-rank shift
gives the language of each speaker. docs/synthetic.md has the equations.

Shape suffixes: N symbols (words, full stop, end; the end is last), S symbols that a word may follow (words, full stop),
W words, B documents, T symbols of a document.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bora_sweep.config import SyntheticConfig

MAX_WORDS = 62
"""Words and full stops of the longest document: 64 tokens with a start and an end symbol."""
END_PROBABILITY = 1 / 8
"""Probability that the document ends after a full stop."""
WORLD_RANK, WORLD_SCALE = 8, 0.6
"""Rank and standard deviation of the world language's random logits."""
SHIFT_RANK = 3
"""Rank of the common shift, and of each speaker's own shift."""

_CLASSES = {
    "determiner": "the some many three seven these most",
    "adjective": "brave gentle clever quiet young patient merry curious sleepy",
    "noun": "foxes sailors bakers children birds teachers rabbits painters bears dancers farmers owls pilots poets "
    "dogs sisters",
    "transitive": "follow carry love paint find watch remember hide build visit draw guard share",
    "intransitive": "sing dance sleep wait laugh rest dream travel",
    "possessive": "their our my your her",
    "quality": "golden silver wooden distant hidden bright small green warm old",
    "thing": "rivers gardens lanterns bridges windows letters boats stones clouds mountains forests lamps roads songs "
    "clocks trees",
    "preposition": "near under beside behind between beyond",
    "adverb": "softly together again slowly",
    "conjunction": "and while",
    "stop": ".",
}
_SUBJECT = {"determiner": 0.4, "adjective": 0.25, "noun": 0.35}
_OBJECT = {"possessive": 0.35, "quality": 0.3, "thing": 0.35}
_GRAMMAR = {
    "determiner": {"adjective": 0.4, "noun": 0.6},
    "adjective": {"noun": 1.0},
    "noun": {"transitive": 0.65, "intransitive": 0.35},
    "transitive": _OBJECT,
    "intransitive": {"preposition": 0.45, "adverb": 0.15, "conjunction": 0.1, "stop": 0.3},
    "possessive": {"quality": 0.4, "thing": 0.6},
    "quality": {"thing": 1.0},
    "thing": {"preposition": 0.2, "adverb": 0.1, "conjunction": 0.1, "stop": 0.6},
    "preposition": _OBJECT,
    "adverb": {"conjunction": 0.2, "stop": 0.8},
    "conjunction": _SUBJECT,
    "stop": _SUBJECT,
}
"""Probability of each class after each class, before random logits. A class that is not named never follows."""

VOCABULARY: tuple[str, ...] = tuple(word for words in _CLASSES.values() for word in words.split())
"""The words, and the full stop last."""

_SIZE = {name: len(words.split()) for name, words in _CLASSES.items()}
_CLASS_S = [name for name, size in _SIZE.items() for _ in range(size)]
with np.errstate(divide="ignore"):
    _GRAMMAR_SW = np.log([[_GRAMMAR[a].get(b, 0.0) / _SIZE[b] for b in _CLASS_S[:-1]] for a in _CLASS_S])
_STOP_S = np.array([_GRAMMAR[a].get("stop", 0.0) for a in _CLASS_S])

_NAMES = (
    "Ada Bruno Clara Daniel Elena Felix Greta Hugo Ines Jonas Karin Liam Mira Nils Olga Pablo Quinn Rosa Samir Tilda "
    "Umar Vera Walter Xenia Yusuf Zoe Amara Boris Celia Dmitri Edith Farid Gloria Henrik Irene Jamal Kaisa Leon Maya "
    "Noor Oscar Petra Ravi Sofia Tomas Ulla Viktor Wanda"
)

# Independent streams of random numbers.
_WORLD, _WORLD_TEXT, _COMMON, _OWN, _TEXT, _AMOUNTS, _GROUP = range(7)


@dataclass(frozen=True)
class Chain:
    """A first-order Markov chain over N symbols; the last one, the end of the document, is absorbing."""

    start_N: np.ndarray
    """Probability of the first symbol."""
    next_NN: np.ndarray
    """Probability of the next symbol (column) after a symbol (row)."""


def log_normalizer(chain: Chain, max_words: int) -> float:
    """log Z = log p(at most `max_words` words and full stops), forward over the chain."""
    p_N = chain.start_N
    for _ in range(max_words):
        p_N = p_N @ chain.next_NN
    return math.log(p_N[-1])


def log_probability(chain: Chain, symbols_BT: np.ndarray, max_words: int) -> np.ndarray:
    """log p(document | at most `max_words` words) of each row, in nats, the end symbol included.

    Args:
        chain: The language.
        symbols_BT: Documents, each with one end symbol or more after its words, none longer than `max_words`.
        max_words: The bound on words and full stops.
    """
    with np.errstate(divide="ignore"):
        log_start_N, log_next_NN = np.log(chain.start_N), np.log(chain.next_NN)
    steps_BT = log_next_NN[symbols_BT[:, :-1], symbols_BT[:, 1:]]
    return log_start_N[symbols_BT[:, 0]] + steps_BT.sum(1) - log_normalizer(chain, max_words)


def cross_entropy_nats(source: Chain, model: Chain, max_words: int) -> float:
    """-sum_x p(x) log q(x) over documents x of at most `max_words` words, with p of `source` and q of `model`.

    It is exact, by a backward recursion over the chain. For each symbol, with at most w words left, the recursion has
    the probability to end in time, and the mean of -log q over the ways that do. With `model` = `source` it is the
    entropy; the difference of the two is the KL divergence. `model` must allow every step that `source` allows, as the
    languages of all speakers do.
    """
    first_N = _minus_p_log_q(source.start_N, model.start_N)
    step_NN = _minus_p_log_q(source.next_NN, model.next_NN)
    ends_N = np.eye(len(source.start_N))[-1]
    nats_N = np.zeros_like(ends_N)
    for _ in range(max_words):
        ends_N, nats_N = source.next_NN @ ends_N, step_NN @ ends_N + source.next_NN @ nats_N
    nats = first_N @ ends_N + source.start_N @ nats_N
    return float(nats / (source.start_N @ ends_N)) + log_normalizer(model, max_words)


def _minus_p_log_q(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return -p * np.log(q, out=np.zeros_like(q), where=p > 0)


def sample(chain: Chain, num_documents: int, max_words: int, rng: np.random.Generator) -> np.ndarray:
    """Documents of at most `max_words` words as symbols_BT, T = max_words + 1, padded with end symbols."""
    end = len(chain.start_N) - 1
    kept_BT = np.empty((0, max_words + 1), dtype=np.int64)
    while len(kept_BT) < num_documents:
        drawn_BT = _sample_of_any_length(chain, 2 * num_documents, max_words + 1, rng)
        kept_BT = np.concatenate([kept_BT, drawn_BT[drawn_BT[:, -1] == end]])
    return kept_BT[:num_documents]


def _sample_of_any_length(chain: Chain, num_documents: int, num_symbols: int, rng: np.random.Generator) -> np.ndarray:
    """The first symbols of documents, by inverting each row's distribution function at a uniform number."""
    N = len(chain.start_N)
    cumulative_RN = np.vstack([chain.next_NN, chain.start_N]).cumsum(1)
    # Row r climbs from r to r + 1, exactly, so that one search serves all documents, each in the row it stands in.
    ladder = (cumulative_RN / cumulative_RN[:, -1:] + np.arange(N + 1)[:, None]).ravel()
    symbols_TB = np.empty((num_symbols, num_documents), dtype=np.int64)
    row_B = np.full(num_documents, N)
    for t in range(num_symbols):
        height_B = np.minimum(row_B + rng.random(num_documents), np.nextafter(row_B + 1.0, 0))
        row_B = symbols_TB[t] = np.searchsorted(ladder, height_B, side="right") - row_B * N
    return symbols_TB.T


def world_language(config: SyntheticConfig) -> Chain:
    """The language that the base model was trained on: the grammar and random logits of rank `WORLD_RANK`."""
    return _language(_world_logits(config))


def speaker_language(config: SyntheticConfig, speaker: int) -> Chain:
    """The language of one speaker: the world language's logits plus the speaker's shift."""
    return _language(_world_logits(config) + config.shift * unit_shift(config, speaker))


def group_of(config: SyntheticConfig, speaker: int) -> int:
    """The number of the speaker's group."""
    return speaker % config.num_groups


def unit_shift(config: SyntheticConfig, speaker: int) -> np.ndarray:
    """shift_SW at `config.shift` = 1: entries of two speakers correlate at `config.similarity` in expectation.

    Of what is left, entries of two speakers of one group correlate at `config.group_similarity`.
    """
    common_SW = _low_rank(_rng(config, _COMMON), SHIFT_RANK)
    own_SW = _low_rank(_rng(config, _OWN, speaker), SHIFT_RANK)
    if config.num_groups > 1:
        group_SW = _low_rank(_rng(config, _GROUP, group_of(config, speaker)), SHIFT_RANK)
        own_SW = math.sqrt(config.group_similarity) * group_SW + math.sqrt(1 - config.group_similarity) * own_SW
    return math.sqrt(config.similarity) * common_SW + math.sqrt(1 - config.similarity) * own_SW


def documents(config: SyntheticConfig) -> pd.DataFrame:
    """The corpus: one row per document.

    Returns:
        Columns task (the speaker), group (with several groups), text, document_id and floor_nll_nats: -log p(document)
        under the speaker's own language, with the end symbol and given `MAX_WORDS`. No model can beat it in
        expectation.
    """
    parts = []
    for speaker, amount in enumerate(_amounts(config)):
        name = _name(speaker)
        language = speaker_language(config, speaker)
        symbols_BT = sample(language, amount, MAX_WORDS, _rng(config, _TEXT, speaker))
        floors_B = -log_probability(language, symbols_BT, MAX_WORDS)
        group = f"group {group_of(config, speaker) + 1}"
        parts += [
            (name, group, text, f"{name}-{i}", floor)
            for i, (text, floor) in enumerate(zip(texts_of(symbols_BT), floors_B, strict=True))
        ]
    frame = pd.DataFrame(parts, columns=["task", "group", "text", "document_id", "floor_nll_nats"])
    return frame if config.num_groups > 1 else frame.drop(columns="group")


def world_documents(config: SyntheticConfig, num_documents: int) -> list[str]:
    """Text in the world language, for pretraining. It does not depend on the speakers."""
    return texts_of(sample(world_language(config), num_documents, MAX_WORDS, _rng(config, _WORLD_TEXT)))


def texts_of(symbols_BT: np.ndarray) -> list[str]:
    """Words with spaces between them and full stops attached, without the end symbols."""
    words = np.array([*VOCABULARY, ""])
    lengths_B = (symbols_BT < len(VOCABULARY)).sum(1)
    rows = (words[row[:length]] for row, length in zip(symbols_BT, lengths_B, strict=True))
    return [" ".join(row).replace(" .", ".") for row in rows]


def _rng(config: SyntheticConfig, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=stream))


def _low_rank(rng: np.random.Generator, rank: int) -> np.ndarray:
    """A random matrix_SW of this rank with entries of standard deviation 1."""
    S, W = _GRAMMAR_SW.shape
    matrix_SW = rng.standard_normal((S, rank)) @ rng.standard_normal((rank, W))
    return matrix_SW / matrix_SW.std()


def _world_logits(config: SyntheticConfig) -> np.ndarray:
    return WORLD_SCALE * _low_rank(_rng(config, _WORLD), WORLD_RANK)


def _language(logits_SW: np.ndarray) -> Chain:
    """The grammar with logits added among words. Full stops and ends keep their probability, and so do lengths."""
    tilted_SW = _GRAMMAR_SW + logits_SW
    words_SW = np.exp(tilted_SW - tilted_SW.max(1, keepdims=True))
    words_SW /= words_SW.sum(1, keepdims=True)
    S, W = words_SW.shape
    next_NN = np.zeros((S + 1, S + 1))
    next_NN[:S, :W] = (1 - _STOP_S)[:, None] * words_SW
    next_NN[:S, W] = _STOP_S
    next_NN[W, :W] *= 1 - END_PROBABILITY
    next_NN[W, S] = END_PROBABILITY
    next_NN[S, S] = 1
    return Chain(start_N=np.append(words_SW[W], [0, 0]), next_NN=next_NN)


def _amounts(config: SyntheticConfig) -> list[int]:
    """Documents of each speaker: a geometric series from the fewest to the most, in shuffled order."""
    amounts_K = np.geomspace(config.min_documents, config.max_documents, config.num_tasks).round().astype(int)
    return _rng(config, _AMOUNTS).permutation(amounts_K).tolist()


def _name(speaker: int) -> str:
    names = _NAMES.split()
    turn, place = divmod(speaker, len(names))
    return names[place] if turn == 0 else f"{names[place]} {turn + 1}"
