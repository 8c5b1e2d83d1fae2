"""From the rows of a table to documents: values are checked, and each row says what is given and what is scored."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bora_sweep.config import DataConfig
from bora_sweep.data.columns import TOOLS, Columns, refuse_templates
from bora_sweep.data.conversation import (
    ASSISTANT,
    Message,
    are_messages_as_json,
    is_list,
    messages_of,
    text_of,
    values_of,
)
from bora_sweep.data.split import SPLITS
from bora_sweep.errors import InputError, plural


def documents_of(source: object, table: pa.Table, columns: Columns, config: DataConfig) -> pd.DataFrame:
    """The rows of `table` as documents.

    Args:
        source: The file or data set, for messages.
        table: Has the columns.
        columns: Which column is which.
        config: What is scored of a conversation.

    Returns:
        Columns task, text (what is learnt, in plain words), content, document_id, floor_nll_nats (NaN), time, split
        (None where it is to be drawn) and, with `data.group_column`, group, in the order of the rows. `content` is what
        the text alone does not say, None or a dictionary that JSON can hold: `prompt` and the columns that templates
        name; or of a conversation `messages`, `num_given` (those of the prompt, None without) and `tools`. With
        `data.choices_column` it has `choices`.

    Raises:
        InputError: A value is missing or has the wrong type, or an id occurs twice.
    """
    reader = _Reader(source, table, columns)
    documents = pd.DataFrame(
        {
            "task": reader.strings("data.task_column", is_name=True),
            "document_id": np.arange(table.num_rows).astype(str),
            "floor_nll_nats": np.nan,
            "time": 0,
            "split": None,
        }
    )
    scored = _conversations(reader, config) if reader.has_conversations() else _plain(reader, config)
    documents["text"], documents["content"] = scored
    if "data.choices_column" in columns.of:
        documents["content"] = reader.with_choices(documents)
    if "data.id_column" in columns.of:
        documents["document_id"] = ids = reader.strings("data.id_column", is_name=True)
        if ids.duplicated().any():
            second = int(ids.duplicated().argmax())
            first = int((ids == ids[second]).argmax())
            raise InputError(
                f"{source}: rows {first} and {second} (counted from 0) both have {ids[second]!r} in column "
                f"{config.id_column!r}; data.id_column needs a column without repeats, or drop it to use row numbers"
            )
    if "data.group_column" in columns.of:
        documents["group"] = reader.strings("data.group_column", is_name=True)
    if "data.time_column" in columns.of:
        documents["time"] = reader.times()
    if "data.split_column" in columns.of:
        documents["split"] = reader.splits()
    return documents


def _plain(reader: "_Reader", config: DataConfig) -> tuple[pd.Series, list[dict[str, Any] | None]]:
    """Texts, and what templates need beside them."""
    columns = reader.columns
    _refuse_unused(reader.source, config, ("loss_on", "chat_template", "template_kwargs"), "conversations")
    if columns.shape == "text":
        texts, prompts = reader.strings("data.text_column"), None
    else:
        texts, prompts = reader.strings("data.completion_column"), reader.strings("data.prompt_column")
        is_blank = texts.str.strip() == ""
        if is_blank.any():
            raise InputError(
                f"{reader.source}: row {int(is_blank.argmax())} (counted from 0): the completion in column "
                f"{columns.scored!r} is empty{_and_more(int(is_blank.sum()))}; fill it, or remove the row"
            )
    filled = {name: reader.strings(f"{{{name}}}") for name in columns.filled_in}
    if prompts is not None and config.prompt is None:
        filled["prompt"] = prompts  # under a name of its own, whatever the column is called
    if not filled:
        _refuse_unused(reader.source, config, ("truncate",), "rows with prompts")
        return texts, [None] * len(texts)
    return texts, pd.DataFrame(filled).to_dict("records")  # type: ignore[return-value]


def _refuse_unused(source: object, config: DataConfig, keys: Sequence[str], used_by: str) -> None:
    """Refuse keys that say what to do with rows of another shape. Whoever sets one expects them."""
    usual = DataConfig()
    for key in keys:
        if (value := getattr(config, key)) != getattr(usual, key):
            shown = str(value) if len(str(value)) <= 60 else f"{str(value)[:59]}…"
            raise InputError(f"data.{key}={shown}: is for {used_by}, and {source} has none; drop it")


def _conversations(reader: "_Reader", config: DataConfig) -> tuple[list[str], list[dict[str, Any] | None]]:
    """The turns that are learnt, in plain words, and the conversations."""
    columns, source = reader.columns, reader.source
    refuse_templates(source, config)
    keys = ["data.messages_column"] if columns.shape == "messages" else ["data.prompt_column", "data.completion_column"]
    parts = [reader.conversations(key) for key in keys]
    tools = reader.tools() if TOOLS in columns.of else [None] * len(parts[0])
    texts, contents = [], []
    for row, pieces in enumerate(zip(*parts, strict=True)):
        messages = [message for piece in pieces for message in piece]
        num_given = len(pieces[0]) if len(pieces) > 1 else None
        learnt = [turn for turn in messages[num_given or 0 :] if turn["role"] == ASSISTANT or config.loss_on == "all"]
        learnt = learnt[-1:] if config.loss_on == "last_assistant" else learnt
        where = f"{source}: row {row} (counted from 0)"
        if not learnt:
            roles = ", ".join(dict.fromkeys(turn["role"] for turn in messages))
            raise InputError(
                f"{where}: no turn of the assistant in column {columns.scored!r}, so nothing is learnt from it; its "
                f"roles are {roles}. Name the role 'assistant', or remove the row"
            )
        if any(not turn["content"].strip() and not turn.get("tool_calls") for turn in learnt):
            raise InputError(
                f"{where}: a turn to learn in column {columns.scored!r} is empty; fill it, or remove the row"
            )
        content: dict[str, Any] = {"messages": messages, "num_given": num_given}
        texts.append(text_of(learnt))
        contents.append(content if tools[row] is None else content | {"tools": tools[row]})
    return texts, contents


def prompt_of(text: str, content: dict[str, Any] | None, config: DataConfig) -> str:
    """What documents that share a split have in common: the prompt, or the text where there is none.

    Of a plain document the prompt is what `data.prompt` names of its row; of a conversation it is what comes before the
    first turn of the assistant. With `data.keep_together=document` it is the whole document.

    Args:
        text: What is learnt.
        content: As in `documents_of`.
        config: `keep_together`, and which columns the prompt names.
    """
    if content is None:
        return text
    if config.keep_together == "document":
        return json.dumps([content, text], ensure_ascii=False)
    if "messages" in content:
        messages, num_given = content["messages"], content["num_given"]
        first = next((i for i, turn in enumerate(messages) if turn["role"] == ASSISTANT), len(messages))
        given = messages[: first if num_given is None else num_given]
        return json.dumps(given, ensure_ascii=False) if given else text
    given = {name: value for name, value in content.items() if f"{{{name}}}" in (config.prompt or "{prompt}")}
    return "\n".join(given.values()) or text


class _Reader:
    """Reads the columns of a table, with messages that name the source, the column and the row."""

    def __init__(self, source: object, table: pa.Table, columns: Columns) -> None:
        self.source, self.table, self.columns = source, table, columns

    def strings(self, key: str, is_name: bool = False) -> pd.Series:
        """The column that `key` asks for. No value may be missing. Names may be whole numbers, but not blank."""
        name = self.columns.of[key]
        column, shown = self._decoded(name), f"{name!r} ({key})" if not key.startswith("{") else repr(name)
        kind = column.type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        is_number = pa.types.is_integer(kind) and (is_name or key.startswith("{"))
        if not (is_text or pa.types.is_null(kind) or is_number):
            needed = "text or whole numbers (1, not 1.0)" if is_name else "text"
            raise InputError(f"{self.source}: column {shown} holds values of type {kind}; it needs {needed}")
        strings = column.cast(pa.large_string()).to_pandas()
        missing = strings.isna() | (strings.str.strip() == "") if is_name else strings.isna()
        if missing.any():
            raise InputError(
                f"{self.source}: column {shown} has no value in {plural(int(missing.sum()), 'row')}, the first "
                f"is row {int(missing.argmax())} (counted from 0); fill the gaps, or remove these rows"
            )
        return strings

    def has_conversations(self) -> bool:
        """Whether rows are lists of messages.

        Raises:
            InputError: Prompts are lists and completions are texts, or the other way round.
        """
        if self.columns.shape != "prompt":
            return self.columns.shape == "messages"
        keys = ("data.prompt_column", "data.completion_column")
        lists = [
            is_list(self._decoded(self.columns.of[key]), self._field(key)) or self._is_json(self.columns.of[key])
            for key in keys
        ]
        if lists[0] != lists[1]:
            names = [self.columns.of[key] for key in keys]
            raise InputError(
                f"{self.source}: column {names[lists.index(True)]!r} holds lists and {names[lists.index(False)]!r} "
                "texts; write both as text, or both as lists of messages"
            )
        return lists[0]

    def _is_json(self, name: str) -> bool:
        """Whether a column of texts holds messages as JSON, as in CSV.

        Raises:
            InputError: Some texts are messages as JSON, and others are not.
        """
        column = self._decoded(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return False
        are_messages = [text is not None and are_messages_as_json(text) for text in column.to_pylist()]
        if any(are_messages) and not all(are_messages):
            raise InputError(
                f"{self.source}: row {are_messages.index(True)} (counted from 0) of column {name!r} holds messages as "
                f"JSON, and row {are_messages.index(False)} a text; write all rows alike"
            )
        return bool(are_messages) and all(are_messages)

    def conversations(self, key: str) -> list[list[Message]]:
        """The messages of each row."""
        name = self.columns.of[key]
        values = values_of(self.source, self._decoded(name), self._field(key), "list of messages")
        where = f"{self.source}: row {{}} (counted from 0), column {name!r}"
        return [messages_of(where.format(row), value) for row, value in enumerate(values)]

    def tools(self) -> list[Any]:
        """The tools of each conversation, None where it has none."""
        found = values_of(self.source, self._decoded(TOOLS), self._field(TOOLS), "list of tools")
        for row, tools in enumerate(found):
            if isinstance(tools, str):  # JSON within JSON, as some sets have it
                with suppress(ValueError):
                    found[row] = tools = json.loads(tools)
            if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
                raise InputError(f"{self.source}: row {row} (counted from 0): column {TOOLS!r} holds no list of tools")
        return [tools or None for tools in found]

    def with_choices(self, documents: pd.DataFrame) -> list[dict[str, Any]]:
        """The content of each document with its candidate answers, among which its own answer must be."""
        key = "data.choices_column"
        name, contents = self.columns.of[key], documents["content"]
        values = values_of(self.source, self._decoded(name), self._field(key), "list of answers")
        for row, (choices, answer) in enumerate(zip(values, documents["text"], strict=True)):
            where = f"{self.source}: row {row} (counted from 0): the choices in column {name!r}"
            if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
                raise InputError(f"{where} are no list of two texts or more")
            if len(set(choices)) < len(choices):
                raise InputError(f"{where} hold the same text twice; write each once")
            if answer not in choices:
                raise InputError(f"{where} do not hold the answer, {_shown(answer)}; write it among them")
        return [{**(content or {}), "choices": choices} for content, choices in zip(contents, values, strict=True)]

    def splits(self) -> pd.Series:
        """The split that each row names."""
        key = "data.split_column"
        splits = self.strings(key)
        unknown = ~splits.isin(SPLITS)
        if unknown.any():
            row = int(unknown.argmax())
            value = str(splits.iloc[row])
            other = _SPELLINGS.get(value.strip().lower())
            mend = f"write {other!r}" if other else f"write {', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
            raise InputError(
                f"{self.source}: row {row} (counted from 0): {_shown(value)} in column {self.columns.of[key]!r} "
                f"({key}) is no split{_and_more(int(unknown.sum()))}; {mend}"
            )
        return splits

    def times(self) -> pd.Series:
        """The column of times as numbers, else as dates.

        Booleans, durations and times of day are neither, nor are words such as `now`, whose date would be that of the
        run.
        """
        column = self._decoded(self.columns.of["data.time_column"])
        kinds = ("string", "large_string", "string_view", "integer", "floating", "decimal", "date", "timestamp")
        if not any(getattr(pa.types, f"is_{kind}")(column.type) for kind in kinds):
            raise self._not_a_time(column, 0)
        values = column.to_pandas()
        numbers = pd.Series(pd.to_numeric(values, errors="coerce"))
        finite = np.isfinite(numbers)
        if not column.null_count and finite.all():
            rounded = numbers.dtype.kind == "f" and values.astype(str).str.fullmatch(r"[+-]?\d+").all()
            return values.map(int).astype(object) if rounded else numbers
        texts = values.astype(str)
        dates = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)
        is_no_date = dates.isna() | texts.isin(["now", "today"])  # pandas reads them as the current day
        if is_no_date.any():
            neither = is_no_date & ~finite
            raise self._not_a_time(column, int((neither if neither.any() else is_no_date).argmax()))
        return dates

    def _not_a_time(self, column: pa.ChunkedArray, row: int) -> InputError:
        value = column[row].as_py()
        shown = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
        shown = shown.lower() if isinstance(value, bool) else shown[:60]
        return InputError(
            f"{self.source}: row {row} (counted from 0): {shown} in column {self.columns.of['data.time_column']!r} "
            f"(data.time_column) is not a time, of type {column.type}; write numbers throughout, or dates such as "
            "1998-10-07"
        )

    def _decoded(self, name: str) -> pa.ChunkedArray:
        """The column, with the values of a dictionary in place of its codes."""
        column = self.table.column(name)
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def _field(self, key: str) -> pa.Field:
        return self.table.schema.field(self.columns.of[key])


_SPELLINGS = {
    "training": "train", "valid": "validation", "val": "validation", "dev": "validation", "development": "validation",
    "eval": "validation", "evaluation": "validation", "testing": "test", "heldout": "test", "held_out": "test",
} | {split: split for split in SPLITS}  # fmt: skip
"""Other spellings of a split, in lower case, so that a message can name the right one."""


def _and_more(count: int) -> str:
    return f" ({count - 1:,} more are alike)" if count > 1 else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
