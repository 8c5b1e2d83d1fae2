"""A corpus of documents with a prompt and an answer, for the tests of metrics."""

from dataclasses import replace

import numpy as np
from tiny import WORDS, make_corpus, make_tokenizer

from bora_sweep.data.references import References
from bora_sweep.data.tokens import TokenizedCorpus

END = 2
"""The end token of the tiny tokenizer."""


def with_answers(corpus: TokenizedCorpus, seed: int = 0, choices: int = 5) -> TokenizedCorpus:
    """The corpus, where most documents of validation and test end with an answer of one to three words.

    Each of these documents has the answer that its text ends with among its candidates. Prompts have unlike lengths.
    """
    rng, tokenizer = np.random.default_rng(seed), make_tokenizer()
    others = tuple(" ".join(rng.choice(WORDS, rng.integers(1, 5), replace=False)) for _ in range(choices - 1))
    document_N, given_N, text_N, choices_N, tokens_N = [], [], [], [], []
    shared: dict[str, tuple] = {}
    for n in sorted([*corpus.split("validation"), *corpus.split("test")])[1:]:  # one has no answer
        body = corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1] - 1].tolist()
        words = int(rng.integers(1, min(3, len(body) - 1) + 1))
        text = tokenizer.decode(body[-words:])
        if text not in shared:
            place = int(rng.integers(0, choices))
            candidates = (*others[:place], text, *others[place:])
            ids = tokenizer(list(candidates), add_special_tokens=False)["input_ids"]
            shared[text] = candidates, tuple((*answer, END) for answer in ids)
        document_N.append(n)
        given_N.append(len(body) - words)
        text_N.append(text)
        choices_N.append(shared[text][0])
        tokens_N.append(shared[text][1])
    references = References(
        document_N=np.array(document_N),
        given_N=np.array(given_N),
        text_N=tuple(text_N),
        choices_N=tuple(choices_N),
        choice_tokens_N=tuple(tokens_N),
        end_tokens=(END,),
    )
    return replace(corpus, references=references)


def make_answers(sizes: dict[str, int] | None = None, seed: int = 0) -> TokenizedCorpus:
    """`with_answers` of a corpus of random words."""
    return with_answers(make_corpus(sizes, seed), seed)
