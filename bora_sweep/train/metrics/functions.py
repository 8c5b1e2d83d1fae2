"""The score of one generated answer beside the right one: exact match, ROUGE-L, or a function of the user's own."""

import os
import re
import socket
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any

from bora_sweep.config import Config
from bora_sweep.errors import InputError, one_line

ScoreFunction = Callable[[str, str], float]
"""(reference, prediction) -> score; higher is better."""

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts without spaces between words, by the first word of their characters' names: each character is a word."""
_ASCII_WORD = re.compile("[a-z0-9]+")


def exact_match(reference: str, prediction: str) -> float:
    """1 where the texts are the same but for white space around them, else 0."""
    return float(reference.strip() == prediction.strip())


def rouge_l(reference: str, prediction: str) -> float:
    """The F-measure of ROUGE-L (Lin 2004) by the package rouge-score, over the words of `Words`.

    A text without letters and digits has no words, and then the score is 0, as in that package.
    """
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second

    return RougeScorer(["rougeL"], tokenizer=Words())


class Words:
    """Splits a text into lower-case words of letters, digits and their marks, of all scripts.

    rouge-score's own tokenizer drops all letters but a to z; of a text in these both give the same words.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of the text in order."""
        lower = unicodedata.normalize("NFC", text).lower()
        return _ASCII_WORD.findall(lower) if lower.isascii() else "".join(map(_spaced, lower)).split()


@cache
def _spaced(character: str) -> str:
    if unicodedata.category(character)[0] not in "LMN":
        return " "
    is_word = unicodedata.name(character, "").split(" ")[0] in UNSPACED
    return f" {character} " if is_word else character


def score_function(metric: str) -> ScoreFunction:
    """The function of a metric of generated text.

    Args:
        metric: `exact_match`, `rouge_l` or `module:function`.

    Raises:
        InputError: The module or the function is not there on this machine.
    """
    own = {"exact_match": exact_match, "rouge_l": rouge_l}
    return own[metric] if metric in own else _import(metric)


def _import(metric: str) -> ScoreFunction:
    module, _, name = metric.partition(":")
    mend = (
        "it must be importable on every worker: run in the folder that holds it, put that on PYTHONPATH, or, on a "
        "cluster, name it in Ray's runtime_env"
    )
    try:
        function = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # the user's code
        reason = f"cannot be imported on {socket.gethostname()} ({one_line(error, limit=200)})"
        raise InputError(f"metrics: {metric} {reason}; {mend}") from error
    try:
        signature(function).bind("reference", "prediction")
    except TypeError as error:
        takes = f"need a function score(reference: str, prediction: str) -> float ({one_line(error, limit=200)})"
        raise InputError(f"metrics: {metric}: {takes}") from None
    except ValueError:  # a builtin without a signature
        pass
    return function


def check_metrics(config: Config) -> None:
    """Import the functions of the user's own, before anything is fitted.

    The working directory becomes importable, as with `python -m`. Ray makes it so for the workers of this machine.

    Raises:
        InputError: One cannot be imported, or is no function of two texts.
    """
    if any(":" in metric for metric in config.metrics) and os.getcwd() not in map(os.path.abspath, sys.path):
        sys.path.insert(0, os.getcwd())
    for metric in config.metrics:
        if metric != "accuracy":
            score_function(metric)


def scores_of(metric: str, references: Sequence[str], predictions: Sequence[str], names: Sequence[str]) -> list[float]:
    """The metric's score of each document.

    Args:
        metric: As for `score_function`.
        references: The right answers.
        predictions: The generated ones.
        names: What a message calls the documents.

    Raises:
        InputError: The user's function fails, or returns no finite number.
    """
    function, scores = score_function(metric), []
    for reference, prediction, name in zip(references, predictions, names, strict=True):
        try:
            value: Any = function(reference, prediction)
        except Exception as error:  # the user's code
            raise InputError(f"metrics: {metric} fails for {name} ({one_line(error, limit=200)}); mend it") from error
        scores.append(_finite(value, metric, name))
    return scores


def _finite(value: Any, metric: str, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, str) else None
    except (TypeError, ValueError):
        number = None
    if number is None or not abs(number) < float("inf"):
        raise InputError(f"metrics: {metric} returned {value!r:.100} for {name}; let it return a finite number")
    return number
