"""Conversations as a source holds them: lists of messages with a role and a content, checked row by row."""

import json
from typing import Any

import pyarrow as pa

from bora_sweep.data.table import JSON
from bora_sweep.errors import InputError

Message = dict[str, Any]
ASSISTANT = "assistant"
ROLES = {
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant",
    "chatgpt": "assistant", "user": "user", "human": "user", "system": "system", "tool": "tool",
}  # fmt: skip
"""Other spellings of a role, in lower case."""


def is_list(column: pa.ChunkedArray, field: pa.Field) -> bool:
    """Whether a column holds lists, as Arrow's or as JSON."""
    return field.metadata == JSON or pa.types.is_list(column.type) or pa.types.is_large_list(column.type)


def values_of(source: object, column: pa.ChunkedArray, field: pa.Field, what: str) -> list[Any]:
    """The values of a column of lists or objects; a text is read as JSON.

    Args:
        source: The file, for messages.
        column: The column.
        field: Its name and metadata.
        what: What the values should be, for messages.

    Raises:
        InputError: A text is not JSON.
    """
    cells = column.to_pylist()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [_without_nulls(cell) for cell in cells]
    values = []
    for row, cell in enumerate(cells):
        try:
            values.append(None if cell is None else json.loads(cell))
        except ValueError:
            raise InputError(
                f"{source}: row {row} (counted from 0): {_short(cell)} in column {field.name!r} is no {what}; write "
                "one as JSON, or name another column"
            ) from None
    return values


def are_messages_as_json(text: str) -> bool:
    """Whether a text is a JSON list of objects with a role."""
    if not text.lstrip().startswith("["):
        return False
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return bool(value) and all(isinstance(message, dict) and "role" in message for message in value)


def messages_of(where: str, value: Any) -> list[Message]:
    """A conversation's messages, checked.

    Args:
        where: The file, row and column, for messages.
        value: What is there.

    Raises:
        InputError: It is not a list of messages, each with a role and a text.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: {_short(value)} is no conversation; write a list of messages, " + _EXAMPLE)
    for turn, message in enumerate(value):
        at = f"{where}, turn {turn}"
        if not isinstance(message, dict):
            raise InputError(f"{at}: {_short(message)} is no message; write {_EXAMPLE}")
        if {"from", "value"} <= message.keys() and "role" not in message:
            raise InputError(f"{at}: has 'from' and 'value'; rename them to 'role' and 'content'")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role.strip():
            raise InputError(f"{at}: the role is {_short(role)}; write system, user, assistant or tool")
        usual = ROLES.get(role.strip().lower(), role)
        if usual != role:  # a template may take it, and the turn would not be learnt
            raise InputError(f"{at}: the role is {_short(role)}; write {usual!r}")
        calls = bool(message.get("tool_calls"))
        if isinstance(content, list):
            message["content"] = content = _joined_parts(at, content)
        if content is None and calls:
            message["content"] = ""
        elif not isinstance(content, str):
            raise InputError(f"{at}: the content is {_short(content)}; it needs text")
    return value


_EXAMPLE = '{"role": "user", "content": "…"}'


def _joined_parts(at: str, parts: list[Any]) -> str:
    """The text of a content that is a list of parts."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            raise InputError(f"{at}: a part of the content is {_short(part)}; only text is read")
    return "".join(part["text"] for part in parts)


def _without_nulls(value: Any) -> Any:
    """The value without the keys that Arrow fills with null where another row has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def text_of(messages: list[Message]) -> str:
    """The contents in plain words, a paragraph for each turn."""
    return "\n\n".join(message["content"] or json.dumps(message.get("tool_calls", "")) for message in messages)
