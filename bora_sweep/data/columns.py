"""Which columns of a source hold what: the shape of its rows is recognised by their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bora_sweep.config import DataConfig
from bora_sweep.config.data import COMPLETION, TEXT
from bora_sweep.config.template import check_template
from bora_sweep.data.table import check_columns
from bora_sweep.errors import InputError

Shape = Literal["text", "prompt", "messages"]
SHAPES: dict[Shape, dict[str, str]] = {
    "text": {"text_column": TEXT},
    "prompt": {"prompt_column": "prompt", "completion_column": COMPLETION},
    "messages": {"messages_column": "messages"},
}
"""The keys that name the columns of each shape of rows, with the columns that they name where they are left out."""
SHAPE_IN_WORDS = {"text": "running text", "prompt": "a prompt and a completion", "messages": "a conversation"}
TOOLS = "tools"
"""The column with the tools that a conversation may call, where it has one."""
NESTED = ("data.prompt_column", "data.completion_column", "data.messages_column", "data.choices_column", TOOLS)
"""Columns whose values may be lists."""
NAMES = ("data.task_column", "data.group_column", "data.id_column")
"""Columns whose values are names: text or whole numbers."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a source."""

    shape: Shape
    of: dict[str, str]
    """From what asks for a column, such as the key `data.text_column` or a placeholder `{question}`, to its name."""

    @property
    def scored(self) -> str:
        """The column with the text, the completion or the conversation."""
        return self.of[f"data.{list(SHAPES[self.shape])[-1]}"]

    @property
    def filled_in(self) -> list[str]:
        """Columns that `data.prompt` and `data.template` name, beside the task and what is scored."""
        return [name for key, name in self.of.items() if key.startswith("{")]


def choose_columns(source: object, existing: Sequence[str], config: DataConfig) -> Columns:
    """The columns that `config` names, and those by which the shape of the rows is recognised.

    Args:
        source: The file or data set, for messages.
        existing: The names of all its columns.
        config: Names the columns.

    Raises:
        InputError: A column is missing or occurs twice, or the shape of the rows is not clear.
    """
    shape = _shape(source, existing, config)
    names = {f"data.{key}": getattr(config, key) or usual for key, usual in SHAPES[shape].items()}
    for key in ("task_column", "group_column", "id_column", "time_column", "split_column", "choices_column"):
        if (name := getattr(config, key)) is not None:
            names[f"data.{key}"] = name
    if shape == "messages":
        refuse_templates(source, config)
    else:
        known = {"task", TEXT, names["data.text_column" if shape == "text" else "data.completion_column"]}
        for key, template in {"data.prompt": config.prompt or "", "data.template": config.template}.items():
            for name in check_template(template, key):
                if name not in known:
                    if name not in existing:
                        raise InputError(
                            f"{key}={template!r}: {source} has no column {name!r}; its columns are "
                            f"{', '.join(map(repr, existing))}"
                        )
                    names[f"{{{name}}}"] = name
        prompt = names.get("data.prompt_column")
        if prompt is not None and config.prompt is not None and f"{{{prompt}}}" not in names:
            raise InputError(
                f"data.prompt={config.prompt!r}: leaves out the prompts, column {prompt!r} of {source}; write "
                f"{{{prompt}}} where they belong, or data.text_column={names['data.completion_column']} if they do not"
            )
        unused = next((name for name in SHAPES["prompt"].values() if name in existing), None)
        if shape == "text" and config.text_column is None and unused and f"{{{unused}}}" not in names:
            raise InputError(
                f"{source}: has columns 'text' and {unused!r}; if the rows are running text, say so by "
                f"data.text_column=text; if {unused!r} is given before it, by data.prompt={{{unused}}}"
            )
    if shape != "text" and TOOLS in existing:
        names[TOOLS] = TOOLS
    check_columns(source, existing, names)
    return Columns(shape, names)


def _shape(source: object, existing: Sequence[str], config: DataConfig) -> Shape:
    """The shape whose columns the configuration names, else the one whose usual columns are there."""
    named: dict[Shape, list[str]] = {
        shape: [key for key in keys if getattr(config, key) is not None] for shape, keys in SHAPES.items()
    }
    chosen: list[Shape] = [shape for shape, keys in named.items() if keys]
    if not chosen:
        chosen = [shape for shape, keys in SHAPES.items() if set(keys.values()) <= set(existing)]
        if len(chosen) > 1:
            clear = " or ".join(f"data.{list(SHAPES[s])[-1]}={list(SHAPES[s].values())[-1]}" for s in chosen)
            raise InputError(
                f"{source}: its rows could be {' or '.join(SHAPE_IN_WORDS[shape] for shape in chosen)}, by the columns "
                f"{', '.join(repr(name) for shape in chosen for name in SHAPES[shape].values())}; say which by {clear}"
            )
    elif len(chosen) > 1:
        keys = [f"data.{key}={getattr(config, key)}" for shape in chosen for key in named[shape]]
        raise InputError(f"{source}: {' and '.join(keys)} name rows of different shapes; keep one shape")
    if chosen:
        return chosen[0]
    raise InputError(
        f"{source}: no column 'text' (data.text_column), no 'prompt' with 'completion' (data.prompt_column, "
        f"data.completion_column), and no 'messages' (data.messages_column). The columns are "
        f"{', '.join(map(repr, existing))}: name those that there are, as in data.text_column=NAME"
    )


def refuse_templates(source: object, config: DataConfig) -> None:
    """Refuse templates of plain text where the chat template writes the text."""
    for key, default in (("prompt", None), ("template", "{text}")):
        if (value := getattr(config, key)) != default:
            raise InputError(
                f"data.{key}={value!r}: {source} has conversations, which the chat template writes; drop it, or give "
                "data.chat_template"
            )
