"""The answers that metrics compare with.

Shapes: N documents of validation and test that have an answer.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class References:
    """The answers of the N documents of validation and test that have one.

    Equal tuples are shared between documents, so that workers unpickle each of them once.
    """

    document_N: np.ndarray
    """Index of each document in the corpus, a row of `TokenizedCorpus.documents`."""
    given_N: np.ndarray
    """Tokens of the document before its answer, at least 1: its prompt is the beginning of its first sequence."""
    text_N: tuple[str, ...]
    """The right answers as text."""
    choices_N: tuple[tuple[str, ...], ...]
    """The candidate answers of each document, the right one among them; () without `accuracy`."""
    choice_tokens_N: tuple[tuple[tuple[int, ...], ...], ...]
    """Their tokens after the prompt, the end token included; () without `accuracy`."""
    end_tokens: tuple[int, ...]
    """Tokens that end a generated answer: the end token, the end of a turn."""

    @property
    def largest_choice_token(self) -> int:
        """The largest token of any candidate answer; 0 without any."""
        distinct = {id(choices): choices for choices in self.choice_tokens_N}.values()
        return max((token for choices in distinct for tokens in choices for token in tokens), default=0)

    @property
    def longest_choice_N(self) -> np.ndarray:
        """Tokens of the longest candidate answer of each document; 0 where it has none."""
        longest_of = {id(choices): max(map(len, choices), default=0) for choices in self.choice_tokens_N}
        return np.array([longest_of[id(choices)] for choices in self.choice_tokens_N], dtype=np.int64)
