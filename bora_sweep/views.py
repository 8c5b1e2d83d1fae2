"""What a program looks at before, during and after a run: `describe`, `status` and `generate` in Python.

Errors are those of the commands, with the names of arguments in the place of options.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from bora_sweep.config import Config, Setting, is_section, load_config, settings_of
from bora_sweep.console import as_html
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import Folder, folder_at
from bora_sweep.tune.status import RunStatus, run_status

OPTIONS = {"task": "tasks", "trial": "trial", "max-new-tokens": "max_new_tokens", "temperature": "temperature",
           "seed": "seed", "column": "columns", "messages": "messages", "chat": "chat", "system": "system"}  # fmt: skip
"""Options of commands that are arguments here."""


@dataclass(frozen=True)
class Description:
    """A corpus: what is in it, and what may be wrong with it. A notebook shows the tables, `print` the same."""

    name: str
    tasks: pd.DataFrame
    """A row for each task: its documents, and its tokens where a model is named; the columns are (kind, split)."""
    documents: pd.DataFrame
    """A row for each document."""
    notes: list[str]
    """What was left out, and what may be wrong."""
    example: str | None
    """One document token by token, what is scored in brackets; None where no model is named."""
    parts: list[RenderableType] = field(repr=False)
    """What `bora-sweep data describe` prints."""

    def __str__(self) -> str:
        return as_html(Group(*self.parts))[1]

    def _repr_html_(self) -> str:
        return as_html(Group(*self.parts))[0]


def describe_config(config: Config, *, in_color: bool = False) -> Description:
    """The corpus of a configuration.

    Args:
        config: Its settings.
        in_color: Whether the example shows what is scored in green, else in brackets.

    Raises:
        InputError: The corpus or the tokenizer cannot be read.
    """
    from bora_sweep.data import describe as describing
    from bora_sweep.data.corpus import load_corpus
    from bora_sweep.data.known_documents import record_folders
    from bora_sweep.data.tokens import token_notes, tokenize_for
    from bora_sweep.model.base import load_tokenizer

    corpus = load_corpus(config.data, record_folders(config))
    if config.model.name is None and config.data.kind != "synthetic":
        parts, notes = describing.describe(corpus), describing.corpus_notes(corpus)
        return Description(corpus.name, describing.sizes(corpus), corpus.documents, notes, None, parts)
    tokenizer = load_tokenizer(config.model, config.data)
    tokenized = tokenize_for(config, corpus, tokenizer)
    more, table = token_notes(tokenized), tokenized.table()
    example = describing.example(tokenized, tokenizer, in_color=in_color)
    parts = [
        *describing.describe(corpus, table),
        *(Text(f"• {note}") for note in more),
        example,
    ]
    notes = [*describing.corpus_notes(corpus), *more]
    return Description(corpus.name, describing.sizes(corpus, table), corpus.documents, notes, example.plain, parts)


def describe(*settings: Setting, data: Any = None, **sections: Any) -> Description:
    """The tasks, documents, tokens and splits of a corpus, and what may be wrong with it.

        bora_sweep.describe("speeches.parquet", "data.task_column=speaker")
        bora_sweep.describe(data=frame, model={"name": "facebook/opt-350m"}).tasks

    Args:
        settings: As for `fit`; a path that is no YAML file is that of the corpus.
        data: The section `data`; or a corpus: its path, a DataFrame, a `Dataset` or a `DatasetDict` of `datasets`.
        sections: More settings, for example `model={"name": "facebook/opt-350m"}`, whose tokens are then counted.

    Raises:
        InputError: A setting or the corpus is wrong.
    """
    from bora_sweep.in_memory import stored

    together = [_path_as_data(setting) for setting in settings_of(settings)]
    if isinstance(data, (str, Path)):
        data = {"path": str(data)}
    if data is not None and is_section(data):
        sections, data = sections | {"data": data}, None
    together += [sections] if sections else []
    if data is None:
        return describe_config(load_config(together))
    with ExitStack() as stack:
        output = {"output": stack.enter_context(tempfile.TemporaryDirectory())}
        settled = stack.enter_context(stored([*together, output], "describe", data=data))
        return describe_config(load_config(settled))


def _path_as_data(setting: Setting) -> Setting:
    """A path that is no YAML file as the corpus's."""
    is_path = isinstance(setting, (str, Path)) and "=" not in str(setting)
    if is_path and not str(setting).endswith((".yaml", ".yml")) and Path(str(setting)).exists():
        return {"data": {"path": str(setting)}}
    return setting


def status(run: str | Folder) -> RunStatus:
    """The state of a run: its trials, the best so far, the process that works on it.

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.

    Raises:
        InputError: Not a run's folder, or one of another version.
    """
    return run_status(folder_at(run))


def generate(
    run: str | Folder,
    prompts: str | Sequence[Any],
    tasks: str | Sequence[str],
    *,
    trial: str = "best",
    chat: bool = False,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    settings: Sequence[Setting] = (),
) -> pd.DataFrame:
    """Texts by the base model, by Theta and by the adapters of tasks.

        bora_sweep.generate("runs/mine", "I will", ["romeo", "juliet"], temperature=0.8)

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.
        prompts: What the texts begin with, one or several: a text, where it stands in training; or a conversation, a
            list of messages with `role` and `content`.
        tasks: Names of tasks; `_global` is Theta, which is there in any case.
        trial: The ID of a finished trial; `best`: the MAP fit that is best on validation.
        chat: Whether a text is what a user says, which the chat template writes; so it is after a fit on conversations.
        system: With `chat`: the system's message before it.
        columns: Values of further columns that `data.prompt` names.
        max_new_tokens: Most tokens of a text.
        temperature: 0 takes the likeliest token.
        seed: Of the draws, the same for each adapter.
        settings: Where the base and the documents are now, if they have moved, such as `model.name=/models/opt-350m`.

    Returns:
        Columns `prompt`, `adapter` (`base model`, `_global` or a task) and `text`, which is without the prompt.

    Raises:
        InputError: There is no such trial or task; the base cannot be loaded, or is not the run's; or a prompt does not
            fit the run's documents.
    """
    from bora_sweep.serve import generate as generating

    given = [prompts] if isinstance(prompts, str) else _listed(prompts)
    with _as_arguments():
        made = [_prompt(place, one, chat=chat, system=system, columns=columns or {}) for place, one in enumerate(given)]
        sampling = generating.Sampling(max_new_tokens, temperature, seed)
        named = [tasks] if isinstance(tasks, str) else [*tasks]
        replies = generating.generate(folder_at(run), made, named, trial, sampling, settings=settings)
        rows = [(prompt.shown, name, text) for prompt, texts in replies for name, text in texts]
    return pd.DataFrame(rows, columns=["prompt", "adapter", "text"])


def _listed(prompts: Any) -> list[Any]:
    """Several prompts; one conversation is a list too."""
    if isinstance(prompts, Sequence) and not prompts:
        raise InputError("prompts: empty; give a text, a conversation, or a list of them")
    if not isinstance(prompts, Sequence):
        raise InputError(f"prompts: a {type(prompts).__name__}; give a text, a conversation, or a list of them")
    return [prompts] if isinstance(prompts[0], Mapping) else [*prompts]


def _prompt(place: int, given: Any, *, chat: bool, system: str | None, columns: Mapping[str, str]) -> Any:
    from bora_sweep.data.conversation import messages_of
    from bora_sweep.serve.generate import Prompt, prompts_of

    if isinstance(given, str):
        pairs = [f"{name}={value}" for name, value in columns.items()]
        return prompts_of(given, chat=chat, system=system, file=None, columns=pairs)[0]
    if not isinstance(given, Sequence):
        raise InputError(f"prompts[{place}]: a {type(given).__name__}; give a text or a list of messages")
    if chat or system is not None or columns:
        raise InputError(f"prompts[{place}]: a whole conversation; drop chat, system and columns")
    return Prompt(messages=tuple(messages_of(f"prompts[{place}]", [*given])))


@contextmanager
def _as_arguments() -> Iterator[None]:
    """Within, an InputError names arguments in the place of options."""
    try:
        yield
    except InputError as error:
        named = re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: OPTIONS.get(found[1], found[0]), str(error))
        raise InputError(named) from None
