"""Section `data`: what is read, which tasks and documents are kept, and how they are split."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from bora_sweep.config.bounds import Bounds, Count, NotNegative, Number, Part, Several, check_bounds
from bora_sweep.config.paths import expand_home, local_path
from bora_sweep.config.template import check_template
from bora_sweep.errors import InputError, one_line, require

Source = Literal["synthetic", "file", "hub", "talk_of_norway"]
Selection = Literal["all", "paper", "published_code"]
COLUMNS = {
    "text_column": None, "prompt_column": None, "completion_column": None, "messages_column": None,
    "task_column": "task", "group_column": None, "id_column": None, "time_column": None, "split_column": None,
    "choices_column": None,
}  # fmt: skip
"""Keys that name the columns of a source, with their defaults."""
TEXT, COMPLETION = "text", "completion"
"""Names of the columns with what is scored, where no key says otherwise."""
GROUP = "group"
"""The column of the embedded corpus with the group of a speaker."""
SMALL = 6
"""Documents below which `data.small_tasks=leave_out` leaves a task out."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Settings of the embedded corpus (`bora_sweep.data.synthetic`)."""

    num_tasks: Several = 12
    """Number of speakers, one task each."""
    similarity: Annotated[float, Bounds(0, 1, with_high=True)] = 0.5
    """Correlation between the shifts of any two speakers away from the world language. 0: unrelated. 1: all alike."""
    num_groups: Count = 1
    """Number of groups of speakers who are more alike within a group: speaker k is in group k modulo this number. 1:
    there are no groups."""
    group_similarity: Annotated[float, Bounds(0, 1, with_high=True)] = 0.5
    """With several groups: correlation, within a group, of what `similarity` leaves to differ."""
    shift: NotNegative = 1.8
    """How far each speaker is from the world language, in logits. The base model was trained on that language."""
    min_documents: Annotated[int, Bounds(6)] = 14
    """Documents of the speaker with the fewest, over all splits."""
    max_documents: Annotated[int, Bounds(6)] = 100
    """Documents of the speaker with the most, over all splits."""
    seed: Number = 0
    """Random seed of the languages, the documents and the base model."""

    def __post_init__(self) -> None:
        check_bounds(self, "data.synthetic")
        require(
            self.min_documents <= self.max_documents,
            f"data.synthetic.min_documents={self.min_documents}, max_documents={self.max_documents}: "
            "need min_documents <= max_documents",
        )
        require(
            self.num_groups <= self.num_tasks,
            f"data.synthetic.num_groups={self.num_groups}, num_tasks={self.num_tasks}: need a speaker in each group",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, which tasks and documents are kept, and how they are split."""

    source: Source | None = None
    """Where the text comes from. `synthetic`: the embedded corpus. `file`: a file or folder at `path`. `hub`: the
    Hugging Face data set `path`. `talk_of_norway`: the speeches of the Norwegian parliament from 1998 to 2016, at
    `path`. Left out: `file` if `path` is given, else `synthetic`."""
    path: str | None = None
    """A .parquet, .csv or .jsonl file (also .gz), a folder with one subfolder of .txt files per task, or a data set.
    With `talk_of_norway`: its ton.csv, the archive with that file, or the folder with either."""
    download: bool = False
    """With `talk_of_norway` only: download the corpus's archive into the folder `path` if it is not there yet."""
    selection: Selection = "paper"
    """With `talk_of_norway` only: which speakers are taken. `paper`: of those with more than 100 speeches, the 25 who
    spoke first, as the paper's text says. `published_code`: of those with more than 200 and fewer than 1,000 speeches,
    the first 25 by name, which agrees with Table A.1. `all`: everyone; choose by `min_documents` and `max_tasks`."""
    hub_config: str | None = None
    """Name of the configuration, for a Hugging Face data set that has several."""
    hub_split: str = "train"
    """Which of a Hugging Face data set's own splits is read. Our three splits are made from it."""
    text_column: str | None = None
    """Column with the text of a document, where rows are running text. Left out: `text`."""
    prompt_column: str | None = None
    """Column with what is given of a document and not scored, where rows are a prompt and its completion: text, or a
    list of messages. Left out: `prompt`."""
    completion_column: str | None = None
    """Column with what follows the prompt and is scored: text, or a list of messages. Left out: `completion`."""
    messages_column: str | None = None
    """Column with a whole conversation, a list of messages with `role` and `content`. Left out: `messages`."""
    choices_column: str | None = None
    """Column with the candidate answers of a document, a list of texts, for `metrics=[accuracy]`. Left out: the
    distinct completions of the training split, if they are at most 64."""
    task_column: str = "task"
    """Column with the name of a document's task."""
    group_column: str | None = None
    """Column with the group of a document's task, such as the party of a speaker: a level between the tasks and all of
    them, see `prior.tau_2`. Every task is in one group. `group` in the embedded corpus. Left out: there are no
    groups."""
    groups_path: str | None = None
    """A .csv, .parquet or .jsonl file with columns `task` and `group`, for data without such a column. It has every
    task of the data. Left out: as `group_column` says."""
    id_column: str | None = None
    """Column with the name of a document. Left out: its row in the source, counted from 0."""
    time_column: str | None = None
    """Column with the time of a document. It orders the tasks, for `max_tasks`, each by its earliest document."""
    exclude_tasks: list[str] = field(default_factory=list, hash=False)
    """Names of tasks that are left out before all else, as if the source had no row of them."""
    small_tasks: Literal["keep", "leave_out"] = "keep"
    """Tasks with few documents. `keep`: one document is trained on, a second one validates, and a third one tests; so
    such a task gets an adapter, and maybe no test score of its own. `leave_out`: tasks with fewer than 6 documents are
    left out."""
    min_documents: Count | None = None
    """Fewest documents of a task. Tasks with fewer are left out. Left out: as `small_tasks` says."""
    max_documents: Count | None = None
    """Most documents of a task. The first ones in the source are kept. Left out: all."""
    max_tasks: Several | None = None
    """Most tasks. The first ones by name are kept, or by time if `time_column` is given. Left out: all."""
    min_characters: Count = 1
    """Fewest characters of a document. Shorter documents are left out."""
    max_characters: Count = 100_000
    """Most characters of a document. Longer documents are cut here, and counted."""
    train_fraction: Part = 0.50
    """Share of each task's documents to train on."""
    validation_fraction: Part = 0.17
    """Share of each task's documents that chooses the epoch and tau."""
    test_fraction: Part = 0.33
    """Share of each task's documents that is reported, and chooses nothing."""
    hold_out_from: Count = 1
    """Fewest documents of a task from which on some validate and test. A task with fewer trains on all of them, with no
    score of its own. `add` starts from 20."""
    split_column: str | None = None
    """Column with the split of a document: train, validation or test. A split that no document names is drawn from
    those of training. Left out: splits are drawn."""
    validation_path: str | None = None
    """A file of documents to validate on, with the columns of `path`. Left out: they are drawn from `path`."""
    test_path: str | None = None
    """A file of documents to test on, with the columns of `path`. Left out: they are drawn from `path`."""
    keep_together: Literal["prompt", "document"] = "prompt"
    """Which documents share a split. `prompt`: those with the same prompt, so that no question is both trained on and
    tested. `document`: only those that are equal as a whole, for prompts that say nothing of their own."""
    seed: int = 0
    """Random seed of the splits."""
    split: Literal["by_text", "sample"] = "by_text"
    """How documents are split. `by_text`: by a hash of the text, so that equal texts share a split. `sample`: by
    `pandas.sample` within each task, as in the published code; equal texts may then be in several splits."""
    split_from: str | None = None
    """Folder of a run or an export whose splits are kept. Documents that it knows, by their text, stay in its splits;
    only the others are drawn. Left out: the export that `init_from` or a merged `model.name` is part of, else none."""
    prompt: str | None = None
    """Text before each document. It is given, not scored. `{task}` is the name of the document's task, and any other
    name in braces is a column of its row; write `{{` and `}}` for braces. Left out: the prompt column, where rows have
    one. A prompt without a column replaces the start symbol."""
    template: str = "{text}"
    """What is scored of a document, together with the end token. `{text}` is its text or completion, `{task}` its
    task's name, and any other name in braces a column of its row."""
    truncate: Literal["end", "prompt"] = "end"
    """Where a document with more than `model.max_tokens` is cut. `end`: at its end; if nothing that is scored is left,
    it is left out, and counted. `prompt`: at the left of its prompt, so that the answer stays."""
    loss_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """What is scored of a conversation. `assistant`: every turn of the assistant, with the token that ends it.
    `last_assistant`: the last one. `all`: all turns; where rows are a prompt and a completion, the whole completion."""
    chat_template: str | None = None
    """Chat template of conversations: a file with a Jinja template, which is read at once, or the template itself. Left
    out: the tokenizer's own."""
    template_kwargs: dict[str, str | bool | int | float] = field(default_factory=dict, hash=False)
    """Variables for the chat template, such as `{enable_thinking: false}`."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Settings of the embedded corpus."""

    def __post_init__(self) -> None:
        check_bounds(self, "data")
        if self.path is not None:
            object.__setattr__(self, "path", local_path(self.path, "data.path"))
        if self.split_from is not None:
            object.__setattr__(self, "split_from", expand_home(self.split_from, "data.split_from"))
        for name in ("validation_path", "test_path", "groups_path"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, local_path(value, f"data.{name}"))
        require(
            self.max_documents is None or self.max_documents >= self.fewest_documents,
            f"data.max_documents={self.max_documents}: need at least data.min_documents={self.fewest_documents}",
        )
        require(
            self.min_characters <= self.max_characters,
            f"data.min_characters={self.min_characters}: need 1 to data.max_characters={self.max_characters}",
        )
        require(
            math.isclose(sum(self.fractions), 1.0, abs_tol=1e-6),
            f"data.train_fraction, validation_fraction, test_fraction = {self.fractions}: need three parts that sum "
            "to 1",
        )
        if self.chat_template is not None and "{" not in self.chat_template:
            object.__setattr__(self, "chat_template", _read_template(self.chat_template))
        self._check_templates()
        self._check_splits()
        require(
            self.group_column is None or self.groups_path is None,
            f"data.group_column={self.group_column}, data.groups_path={self.groups_path}: both say which task is in "
            "which group; drop one",
        )
        require(
            self.split == "by_text" or 0 <= self.seed < 2**32,
            f"data.seed={self.seed}: data.split=sample needs a value from 0 to 2^32 - 1",
        )
        if self.source not in (None, "synthetic"):
            require(self.path is not None, f"data.source={self.source}: also give data.path=…")
        self._check_source_keys()
        if self.source == "synthetic":
            require(
                self.path is None, f"data.source=synthetic reads no file: drop data.path={self.path}, or data.source"
            )

    def _check_templates(self) -> None:
        """Refuse templates without the text that is scored, and prompts that would give it away."""
        if self.prompt is not None:
            given = check_template(self.prompt, "data.prompt")
            scored = next((name for name in given if name in self.scored_names), None)
            require(
                scored is None,
                f"data.prompt={self.prompt!r}: {{{scored}}} is what is scored, and would be given; drop it",
            )
        placeholders = check_template(self.template, "data.template")
        require(
            sum(name in self.scored_names for name in placeholders) == 1,
            f"data.template={self.template!r}: need {{text}} in it once, such as ' [text] {{text}}'",
        )

    def _check_splits(self) -> None:
        """Refuse two sources of the same splits."""
        files = {"validation_path": self.validation_path, "test_path": self.test_path}
        given = {f"data.{name}": value for name, value in {"split_column": self.split_column, **files}.items() if value}
        for key in given:
            require(
                self.split == "by_text", f"{key}={given[key]}: gives the splits; drop it, or data.split={self.split}"
            )
            require(
                self.split_from is None,
                f"{key}={given[key]}: gives the splits; drop it, or data.split_from={self.split_from}",
            )
        require(
            self.split_column is None or len(given) == 1,
            f"data.split_column={self.split_column}: the splits are in the column or in files of their own; drop one",
        )
        named = next((name for name, value in files.items() if value), None)
        require(
            named is None or (self.path is not None and self.kind == "file"),
            f"data.{named}={files.get(named or '')}: goes with data.path=FILE, the documents to train on",
        )

    def _check_source_keys(self) -> None:
        """Refuse keys that another source has, as far as `source` alone tells."""
        if self.source != "talk_of_norway":
            for name, default in (("download", False), ("selection", "paper")):
                value = getattr(self, name)
                require(value == default, f"data.{name}={value}: only data.source=talk_of_norway uses it; drop it")
            return
        for name, default in COLUMNS.items():
            value = getattr(self, name)
            require(value == default, f"data.{name}={value}: data.source=talk_of_norway has its own columns; drop it")

    def refuse_unused_keys(self) -> None:
        """Refuse keys that the source does not use. Whoever sets one probably meant another source.

        Raises:
            InputError: Such a key differs from its default.
        """
        unused: dict[str, Any] = {} if self.kind == "hub" else {"hub_config": None, "hub_split": "train"}
        unused |= COLUMNS if self.kind == "synthetic" else {"synthetic": SyntheticConfig()}
        if self.kind == "synthetic" and self.synthetic.num_groups > 1 and self.group_column == GROUP:
            del unused["group_column"]
        for name, default in unused.items():
            value = getattr(self, name)
            require(
                value == default,
                f"data.{name}={value}: data.source={self.kind}, the source here, does not use it; also give "
                "data.path=… or data.source=…, or drop it",
            )

    @property
    def has_groups(self) -> bool:
        """Whether tasks are in groups."""
        return self.group_column is not None or self.groups_path is not None

    @property
    def fractions(self) -> tuple[float, float, float]:
        """The shares of train, validation and test."""
        return self.train_fraction, self.validation_fraction, self.test_fraction

    @property
    def scored_names(self) -> set[str]:
        """Placeholders that stand for what is scored."""
        return {TEXT, self.text_column or TEXT, self.completion_column or COMPLETION}

    @property
    def fewest_documents(self) -> int:
        """`min_documents`, or what `small_tasks` makes of it."""
        if self.min_documents is not None:
            return self.min_documents
        return 1 if self.small_tasks == "keep" else SMALL

    @property
    def tasks_by(self) -> str:
        """What orders the tasks, in words."""
        if self.kind == "talk_of_norway":
            return f"data.selection={self.selection}"
        return "name" if self.time_column is None else f"{self.time_column} (data.time_column)"

    @property
    def kind(self) -> Source:
        """`source`; left out: `file` if there is a path, else `synthetic`."""
        if self.source is not None:
            return self.source
        return "synthetic" if self.path is None else "file"


def _read_template(file: str) -> str:
    """The text of a file with a chat template."""
    try:
        template = Path(local_path(file, "data.chat_template")).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.chat_template={file}: cannot be read ({one_line(error)}); give a Jinja file") from None
    require("{" in template, f"data.chat_template={file}: holds no Jinja template, not one brace")
    return template
