"""What the configuration's keys are: read from the dataclasses and the strings under their fields."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

from bora_sweep.config.bounds import bounds_of
from bora_sweep.config.config import Config
from bora_sweep.config.schema import members_of, name_of_type
from bora_sweep.errors import InputError

PAGES = {
    "data": "data", "data.download": "reproduction", "data.selection": "reproduction", "data.synthetic": "synthetic",
    "model": "performance", "model.max_tokens": "data", "model.long_documents": "data", "model.chunk_overlap": "data",
    "model.max_text_tokens": "data", "model.name": "data", "lora": "adapters", "prior": "method", "train": "method",
    "train.padding": "reproduction", "train.independent": "reproduction", "train.reported": "reproduction",
    "train.initial_noise": "reproduction", "train.batches": "reproduction", "train.bank": "many_tasks",
    "train.tasks_per_batch": "many_tasks", "train.update": "many_tasks", "train.micro_batch_size": "performance",
    "train.precision": "performance", "train.gradient_checkpointing": "performance",
    "train.length_bucket": "performance", "train.pass_tokens": "performance", "train.compile": "performance",
    "train.parallel": "parallel", "train.shard_base": "parallel", "train.checkpoint_minutes": "reliability",
    "train.steps_without_validation": "new_tasks", "search": "method", "search.objective": "metrics",
    "search.estimate_tau": "results", "search.unseen_folds": "results", "search.scheduler": "results",
    "search.grace_epochs": "results", "model.trust_remote_code": "reliability",
    "search.pack": "performance", "ray": "cluster", "ray.address": "reliability", "ray.trial_timeout": "reliability",
    "ray.workers_per_trial": "parallel", "metrics": "metrics", "metric": "metrics", "protocol": "reproduction",
    "init_from": "serving", "method": "method", "tracking": "live", "output": "results",
}  # fmt: skip
"""The page under docs/ that explains keys of these beginnings; the longest one counts."""
SENTENCE = re.compile(r"(?<!Eq)[.;] ")


@dataclass(frozen=True)
class Key:
    """A dotted key."""

    name: str
    annotation: Any
    """The type of its field."""
    default: Any
    owner: type
    """The dataclass that has the field."""

    @property
    def text(self) -> str:
        """What it does: the string under its field."""
        return _field_docstrings(self.owner).get(self.name.rpartition(".")[2], "")

    @property
    def section(self) -> str:
        """The section, or a key that stands in none."""
        return self.name.partition(".")[0]

    @property
    def assignment(self) -> str:
        """`key=default`, as the command line takes it."""
        return f"{self.name}={show_default(self.default)}"

    @property
    def summary(self) -> str:
        """The first sentence of the text."""
        return f"{SENTENCE.split(self.text)[0].rstrip('.')}."

    @property
    def kind(self) -> str:
        """The type in words, with bounds and choices."""
        return " or ".join(map(_in_words, members_of(self.annotation)))

    @property
    def choices(self) -> list[str]:
        """The values that stand for themselves, such as `lora`, `true` and `null`; items of a list also."""
        return [choice for member in members_of(self.annotation) for choice in _choices(member)]

    @property
    def page(self) -> str:
        """The page that explains it."""
        parts = self.name.split(".")
        beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return f"docs/{next(PAGES[beginning] for beginning in beginnings if beginning in PAGES)}.md"


@cache
def all_keys() -> tuple[Key, ...]:
    """Every key, in the order of the configuration."""
    return tuple(_keys(Config, ""))


def describe_keys(sections: Sequence[str]) -> str:
    """Two lines for each key of these sections: the key with its default, and what it does."""
    return "\n".join(f"  {key.assignment}\n      {key.text}" for key in all_keys() if key.section in sections)


def describe_sections(sections: Sequence[str]) -> list[tuple[str, str]]:
    """Each section with a line on what it holds; a key that stands in none with its summary."""
    types = {field.name: field.type for field in dataclasses.fields(Config)}
    return [
        (name, _first_line(types[name]) if dataclasses.is_dataclass(types[name]) else find_keys(name)[0].summary)
        for name in sections
    ]


def find_keys(word: str) -> list[Key]:
    """The keys of a section, or the key of that name; else those with the word in their name or their text.

    Raises:
        InputError: There is none. The message has the nearest names.
    """
    inside = [key for key in all_keys() if f"{key.name}.".startswith(f"{word}.")]
    lower = word.lower()
    found = inside or [key for key in all_keys() if lower in key.name.lower() or lower in key.text.lower()]
    if not found:
        raise InputError(f"keys {word}: no section, key or text of a key has it{_nearest(lower)}")
    return found


def show_default(value: Any) -> str:
    """A default as the command line takes it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return text.replace("\n", "\\n")


def _nearest(word: str) -> str:
    name_of = {name: name for name in _sections()}
    for key in all_keys():
        name_of |= {key.name: key.name, key.name.rpartition(".")[2]: key.name}
    near = list(dict.fromkeys(name_of[name] for name in get_close_matches(word, name_of, n=3, cutoff=0.6)))
    return f"; near are {', '.join(near)}" if near else f"; the sections are {', '.join(_sections())}"


def _sections() -> list[str]:
    return list(dict.fromkeys(key.section for key in all_keys() if "." in key.name))


def _keys(section: type, prefix: str) -> Iterator[Key]:
    """Each key below `section`."""
    for field in dataclasses.fields(section):
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        if dataclasses.is_dataclass(default):
            yield from _keys(type(default), f"{prefix}{field.name}.")
        else:
            yield Key(f"{prefix}{field.name}", field.type, default, section)


@cache
def _field_docstrings(section: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    texts = {}
    for field, docstring in pairwise(ast.parse(inspect.getsource(section)).body[0].body):  # type: ignore[attr-defined]
        match field, docstring:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _first_line(section: Any) -> str:
    return inspect.getdoc(section).partition("\n")[0]  # type: ignore[union-attr]


def _in_words(annotation: Any) -> str:
    """A member of a union in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{_in_words(inner[0])} ({bounds_of(annotation)})"
    if origin is list:
        return f"a list, each {_in_words(inner[0])}"
    if origin is dict:
        return f"names, each with {' or '.join(map(_in_words, members_of(inner[1])))}"
    return name_of_type(annotation)


def _choices(annotation: Any) -> list[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return list(inner)
    if origin is list:
        return _choices(inner[0])
    return {bool: ["true", "false"], type(None): ["null"]}.get(annotation, [])
