"""`method=task_prompt`: the task's name before each text, given and not scored.

Shapes: C sequences, K tasks.
"""

from dataclasses import replace

import numpy as np

from bora_sweep.config import Config
from bora_sweep.data.encode import Encoder
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError


def name_tokens(config: Config, encoder: Encoder, tasks: tuple[str, ...]) -> list[list[int]]:
    """The tokens of `search.task_prompt` for each task; none for a fit of another method.

    Args:
        config: Of the fit.
        encoder: Of the tokenizer.
        tasks: Their names.
    """
    if config.method != "task_prompt":
        return [[] for _ in tasks]
    return encoder.encode(config.search.task_prompt, [{"task": task} for task in tasks])


def with_task_names(config: Config, corpus: TokenizedCorpus, encoder: Encoder) -> TokenizedCorpus:
    """The corpus that a fit of `task_prompt` reads: each sequence has the task's name after its start symbol.

    Nothing else changes: the same tokens are scored, also where a text was cut at `model.max_tokens`. So a sequence may
    be longer than that by its task's name.

    Args:
        config: Of the fit.
        corpus: As the other fits read it.
        encoder: Of the tokenizer.

    Raises:
        InputError: The documents are not running text.
    """
    if corpus.form != "text":
        raise InputError(
            "search.baselines: task_prompt puts the task's name before running text, and these documents have prompts "
            "of their own; drop task_prompt, or put {task} into data.prompt, which holds for every fit"
        )
    name_K = name_tokens(config, encoder, corpus.tasks)
    name_C = [name_K[task] for task in corpus.task_C.tolist()]
    length_C = np.array([len(name) for name in name_C])
    place_n = np.repeat(corpus.offsets[:-1] + len(encoder.start), length_C)
    return replace(
        corpus,
        tokens=np.insert(corpus.tokens, place_n, np.concatenate([*name_C, []]).astype(corpus.tokens.dtype)),
        scored=np.insert(corpus.scored, place_n, values=False),
        offsets=corpus.offsets + np.concatenate([[0], np.cumsum(length_C)]),
    )
