"""YAML in which every scalar is text, except null: the schema says what a text means, not YAML."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from bora_sweep.errors import InputError, require

LARGEST_BYTES = 2**20
"""Size of a file; a longer one is no configuration."""
RESOLVED = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """Reads unquoted scalars as text, except null. Refuses a key that is given twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as in PyYAML
        first: [(tag, pattern) for tag, pattern in pairs if tag in RESOLVED]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        given: set[str] = set()
        for name, _ in node.value:
            if str(name.value) in given:
                raise ComposerError(None, None, f"{name.value} is given twice; keep one", name.start_mark)
            given.add(str(name.value))
        return node


class _Dumper(yaml.SafeDumper):
    """Escapes text that has line breaks or other control characters: in single quotes YAML changes some of them."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def parse_yaml(content: bytes | str) -> Any:
    """The content as dictionaries, lists, texts and None.

    Raises:
        InputError: It is not YAML. The message says what is wrong and where.
    """
    try:
        return yaml.load(content, _Loader)  # a SafeLoader: YAML creates no Python objects
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise InputError(f"{where}cannot be read as YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"cannot be read as YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file; an empty file has none.

    Raises:
        InputError: The file does not exist, cannot be read, or has no sections.
    """
    require(path.suffix in (".yaml", ".yml"), f"{path}: give a .yaml file or a setting such as prior.tau=100")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    require(
        len(content) <= LARGEST_BYTES,
        f"{path}: has more than {LARGEST_BYTES:,} bytes; give a configuration, and name the corpus by data.path",
    )
    try:
        loaded = parse_yaml(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    require(
        loaded is None or isinstance(loaded, dict),
        f"{path}: need sections of keys, such as `prior:` with `tau: 100` under it",
    )
    return loaded or {}


def dump_list(values: Sequence[str]) -> str:
    """Texts as a YAML list on one line, as `key=[a,b]` has it."""
    return yaml.dump([*values], Dumper=_Dumper, allow_unicode=True, default_flow_style=True, width=math.inf).strip()


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that `parse_yaml` reads back, with numbers as text."""
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False, default_flow_style=False)
