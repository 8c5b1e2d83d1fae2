"""What is read, which tasks and documents are kept, and how they are split."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from bora_sweep.config.bounds import need
from bora_sweep.config.paths import expand_home, local_path
from bora_sweep.config.template import check_template

Source = Literal["synthetic", "file", "hub", "talk_of_norway"]
Selection = Literal["all", "paper", "published_code"]
COLUMNS = {"text_column": "text", "task_column": "task", "id_column": None, "time_column": None}
"""Keys that name a source's columns, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The embedded family of languages (`bora_sweep.data.synthetic`)."""

    num_tasks: int = 12
    """Speakers."""
    similarity: float = 0.5
    """The dial: correlation of any two speakers' shifts away from the world language. 0: unrelated, 1: all alike."""
    shift: float = 1.8
    """How far, in logits, each speaker stands from the world language that the base model was trained on."""
    min_documents: int = 14
    """Documents of the speaker with the least text, all splits together."""
    max_documents: int = 100
    """Documents of the speaker with the most text, all splits together."""
    seed: int = 0
    """Fixes the languages, the documents and the base model."""

    def __post_init__(self) -> None:
        need(self.seed >= 0, f"data.synthetic.seed={self.seed}: need 0 or more")
        need(self.num_tasks >= 2, f"data.synthetic.num_tasks={self.num_tasks}: need at least 2 tasks")
        need(0 <= self.similarity <= 1, f"data.synthetic.similarity={self.similarity}: need a value from 0 to 1")
        need(0 <= self.shift < math.inf, f"data.synthetic.shift={self.shift}: need a finite value of 0 or more")
        need(
            6 <= self.min_documents <= self.max_documents,
            f"data.synthetic.min_documents={self.min_documents}, max_documents={self.max_documents}: "
            "need 6 <= min_documents <= max_documents",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, which tasks and documents are kept, and how they are split."""

    source: Source | None = None
    """`synthetic`: the embedded corpus; `file`: a file or folder at `path`; `hub`: `path` is a Hugging Face data set;
    `talk_of_norway`: the speeches of the Norwegian parliament, 1998 to 2016, at `path`. Left out: `file` where `path`
    is given, else `synthetic`."""
    path: str | None = None
    """A .parquet, .csv, .jsonl file (also .gz), a folder with one subfolder of .txt files per task, or a data set. With
    `talk_of_norway` its ton.csv, the archive that holds it, or the folder that holds either."""
    download: bool = False
    """With `talk_of_norway` alone: fetch the corpus's archive into the folder `path` where it is not there yet."""
    selection: Selection = "paper"
    """Speakers of `talk_of_norway`. `paper`: those with more than 100 speeches, the first 25 by their first speech, as
    the paper's text has it; `published_code`: those with more than 200 and fewer than 1,000 speeches, the first 25 by
    name, which Table A.1 agrees with; `all`: everyone, for `min_documents` and `max_tasks` to choose from."""
    hub_config: str | None = None
    """Configuration name of a Hugging Face data set that has several."""
    hub_split: str = "train"
    """Which of a Hugging Face data set's own splits is read; ours are made from it."""
    text_column: str = "text"
    """Column that holds a document."""
    task_column: str = "task"
    """Column that names a document's task."""
    id_column: str | None = None
    """Column that names a document; left out: its 0-based row in the source."""
    time_column: str | None = None
    """Column by which tasks are ordered in time, each at its earliest document, for `max_tasks`."""
    min_documents: int = 6
    """Tasks with fewer documents are left out."""
    max_documents: int | None = None
    """Documents kept of each task, the first in the source's order."""
    max_tasks: int | None = None
    """Tasks kept: the first by name, or by time where `time_column` is named."""
    min_characters: int = 1
    """Shorter documents are left out."""
    max_characters: int = 100_000
    """Longer documents are cut here, and counted."""
    train_fraction: float = 0.50
    """Share of each task's documents that is trained on."""
    validation_fraction: float = 0.17
    """Share that selects the epoch and tau."""
    test_fraction: float = 0.33
    """Share that is only reported."""
    seed: int = 0
    """Fixes which document goes to which split."""
    split: Literal["by_text", "sample"] = "by_text"
    """`by_text`: by a hash of the text, equal texts in one split; `sample`: by `pandas.sample` for each task, as the
    published code draws them, where an equal text may be in several."""
    split_from: str | None = None
    """A run's folder, or an export's: documents that it knows by their text stay in its splits, only others are drawn.
    Left out: the export that `init_from`, or a merged `model.name`, is of, else none."""
    prompt: str | None = None
    """What stands before a document in place of the start symbol and is not scored, `{task}` for its task's name;
    `{{` and `}}` are braces themselves."""
    template: str = "{text}"
    """What is scored of a document, its end token beside: `{text}` for its text, `{task}` for its task's name."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The embedded corpus's own settings."""

    def __post_init__(self) -> None:
        if self.path is not None:
            object.__setattr__(self, "path", local_path(self.path, "data.path"))
        if self.split_from is not None:
            object.__setattr__(self, "split_from", expand_home(self.split_from, "data.split_from"))
        need(self.min_documents >= 3, f"data.min_documents={self.min_documents}: need at least 3, one for each split")
        need(
            self.max_documents is None or self.max_documents >= self.min_documents,
            f"data.max_documents={self.max_documents}: need at least data.min_documents={self.min_documents}",
        )
        need(self.max_tasks is None or self.max_tasks >= 2, f"data.max_tasks={self.max_tasks}: need at least 2 tasks")
        need(
            0 < self.min_characters <= self.max_characters,
            f"data.min_characters={self.min_characters}: need 1 to data.max_characters={self.max_characters}",
        )
        fractions = (self.train_fraction, self.validation_fraction, self.test_fraction)
        need(
            min(fractions) > 0 and math.isclose(sum(fractions), 1.0, abs_tol=1e-6),
            f"data.train_fraction, validation_fraction, test_fraction = {fractions}: "
            "need three parts above 0 that sum to 1",
        )
        if self.prompt is not None:
            check_template(self.prompt, "data.prompt", ["task"])
        need(
            check_template(self.template, "data.template", ["text", "task"]).count("text") == 1,
            f"data.template={self.template!r}: need {{text}} in it once, such as ' [text] {{text}}'",
        )
        need(
            self.split == "by_text" or 0 <= self.seed < 2**32,
            f"data.seed={self.seed}: data.split=sample needs a value from 0 to 2^32 - 1",
        )
        if self.source in ("file", "hub", "talk_of_norway"):
            need(self.path is not None, f"data.source={self.source}: also give data.path=…")
        self._refuse_what_the_source_has_not()
        if self.source == "synthetic":
            need(self.path is None, f"data.source=synthetic reads no file: drop data.path={self.path}, or data.source")

    def _refuse_what_the_source_has_not(self) -> None:
        if self.source != "talk_of_norway":
            for name, default in (("download", False), ("selection", "paper")):
                value = getattr(self, name)
                need(value == default, f"data.{name}={value}: only data.source=talk_of_norway has it; drop it")
            return
        for name, default in COLUMNS.items():
            value = getattr(self, name)
            need(value == default, f"data.{name}={value}: data.source=talk_of_norway knows its own columns; drop it")

    def refuse_unread(self) -> None:
        """Refuse what the source would not go by, before it is read: another one was meant.

        Raises:
            InputError: Such a key has not its default.
        """
        unread: dict[str, Any] = {} if self.kind == "hub" else {"hub_config": None, "hub_split": "train"}
        unread |= COLUMNS if self.kind == "synthetic" else {"synthetic": SyntheticConfig()}
        for name, default in unread.items():
            value = getattr(self, name)
            need(
                value == default,
                f"data.{name}={value}: data.source={self.kind}, as it is here, does not go by it; also give "
                "data.path=… or data.source=…, or drop it",
            )

    @property
    def tasks_by(self) -> str:
        """What puts the tasks in order, in words."""
        if self.kind == "talk_of_norway":
            return f"data.selection={self.selection}"
        return "name" if self.time_column is None else f"{self.time_column} (data.time_column)"

    @property
    def kind(self) -> Source:
        """`source`, or what follows from `path` where it is left out."""
        if self.source is not None:
            return self.source
        return "synthetic" if self.path is None else "file"
