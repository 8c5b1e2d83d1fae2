"""Section `data`: what is read, which tasks and documents are kept, and how they are split."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from bora_sweep.config.paths import expand_home, local_path
from bora_sweep.config.template import check_template
from bora_sweep.errors import require

Source = Literal["synthetic", "file", "hub", "talk_of_norway"]
Selection = Literal["all", "paper", "published_code"]
COLUMNS = {"text_column": "text", "task_column": "task", "id_column": None, "time_column": None}
"""Keys that name the columns of a source, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Settings of the embedded corpus (`bora_sweep.data.synthetic`)."""

    num_tasks: int = 12
    """Number of speakers, one task each."""
    similarity: float = 0.5
    """Correlation between the shifts of any two speakers away from the world language. 0: unrelated. 1: all alike."""
    shift: float = 1.8
    """How far each speaker is from the world language, in logits. The base model was trained on that language."""
    min_documents: int = 14
    """Documents of the speaker with the fewest, over all splits."""
    max_documents: int = 100
    """Documents of the speaker with the most, over all splits."""
    seed: int = 0
    """Random seed of the languages, the documents and the base model."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"data.synthetic.seed={self.seed}: need 0 or more")
        require(self.num_tasks >= 2, f"data.synthetic.num_tasks={self.num_tasks}: need at least 2 tasks")
        require(0 <= self.similarity <= 1, f"data.synthetic.similarity={self.similarity}: need a value from 0 to 1")
        require(0 <= self.shift < math.inf, f"data.synthetic.shift={self.shift}: need a finite value of 0 or more")
        require(
            6 <= self.min_documents <= self.max_documents,
            f"data.synthetic.min_documents={self.min_documents}, max_documents={self.max_documents}: "
            "need 6 <= min_documents <= max_documents",
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
    text_column: str = "text"
    """Column with the text of a document."""
    task_column: str = "task"
    """Column with the name of a document's task."""
    id_column: str | None = None
    """Column with the name of a document. Left out: its row in the source, counted from 0."""
    time_column: str | None = None
    """Column with the time of a document. It orders the tasks, for `max_tasks`, each by its earliest document."""
    min_documents: int = 6
    """Fewest documents of a task. Tasks with fewer are left out."""
    max_documents: int | None = None
    """Most documents of a task. The first ones in the source are kept. Left out: all."""
    max_tasks: int | None = None
    """Most tasks. The first ones by name are kept, or by time if `time_column` is given. Left out: all."""
    min_characters: int = 1
    """Fewest characters of a document. Shorter documents are left out."""
    max_characters: int = 100_000
    """Most characters of a document. Longer documents are cut here, and counted."""
    train_fraction: float = 0.50
    """Share of each task's documents to train on."""
    validation_fraction: float = 0.17
    """Share of each task's documents that chooses the epoch and tau."""
    test_fraction: float = 0.33
    """Share of each task's documents that is reported, and chooses nothing."""
    seed: int = 0
    """Random seed of the splits."""
    split: Literal["by_text", "sample"] = "by_text"
    """How documents are split. `by_text`: by a hash of the text, so that equal texts share a split. `sample`: by
    `pandas.sample` within each task, as in the published code; equal texts may then be in several splits."""
    split_from: str | None = None
    """Folder of a run or an export whose splits are kept. Documents that it knows, by their text, stay in its splits;
    only the others are drawn. Left out: the export that `init_from` or a merged `model.name` is part of, else none."""
    prompt: str | None = None
    """Text before each document, in place of the start symbol. It is not scored. `{task}` is the name of the document's
    task; write `{{` and `}}` for braces."""
    template: str = "{text}"
    """What is scored of a document, together with the end token. `{text}` is its text, `{task}` its task's name."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Settings of the embedded corpus."""

    def __post_init__(self) -> None:
        if self.path is not None:
            object.__setattr__(self, "path", local_path(self.path, "data.path"))
        if self.split_from is not None:
            object.__setattr__(self, "split_from", expand_home(self.split_from, "data.split_from"))
        require(
            self.min_documents >= 3, f"data.min_documents={self.min_documents}: need at least 3, one for each split"
        )
        require(
            self.max_documents is None or self.max_documents >= self.min_documents,
            f"data.max_documents={self.max_documents}: need at least data.min_documents={self.min_documents}",
        )
        require(
            self.max_tasks is None or self.max_tasks >= 2, f"data.max_tasks={self.max_tasks}: need at least 2 tasks"
        )
        require(
            0 < self.min_characters <= self.max_characters,
            f"data.min_characters={self.min_characters}: need 1 to data.max_characters={self.max_characters}",
        )
        fractions = (self.train_fraction, self.validation_fraction, self.test_fraction)
        require(
            min(fractions) > 0 and math.isclose(sum(fractions), 1.0, abs_tol=1e-6),
            f"data.train_fraction, validation_fraction, test_fraction = {fractions}: "
            "need three parts above 0 that sum to 1",
        )
        if self.prompt is not None:
            check_template(self.prompt, "data.prompt", ["task"])
        require(
            check_template(self.template, "data.template", ["text", "task"]).count("text") == 1,
            f"data.template={self.template!r}: need {{text}} in it once, such as ' [text] {{text}}'",
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
        for name, default in unused.items():
            value = getattr(self, name)
            require(
                value == default,
                f"data.{name}={value}: data.source={self.kind}, the source here, does not use it; also give "
                "data.path=… or data.source=…, or drop it",
            )

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
