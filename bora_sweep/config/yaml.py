"""YAML whose scalars are text: what a text means is for the schema to say, not for YAML."""

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from bora_sweep.config.bounds import need
from bora_sweep.errors import InputError

LARGEST_BYTES = 2**20
"""Of a file; a longer one is no configuration."""
KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """Of unquoted scalars null alone is more than text; a key that is given twice is refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as PyYAML has it
        first: [(tag, pattern) for tag, pattern in pairs if tag in KEPT]
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
    """Text with line breaks or other marks is escaped: between single quotes YAML reads some of them as others."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def parse_yaml(content: bytes | str) -> Any:
    """Dictionaries, lists, texts and None.

    Raises:
        InputError: It is not YAML; what and where.
    """
    try:
        return yaml.load(content, _Loader)  # a SafeLoader, by which YAML makes no objects
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise InputError(f"{where}cannot be read as YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"cannot be read as YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a file; none of an empty one.

    Raises:
        InputError: It is not there, cannot be read, or has no sections.
    """
    need(path.suffix in (".yaml", ".yml"), f"{path}: give a .yaml file or a setting such as prior.tau=100")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    need(len(content) <= LARGEST_BYTES, f"{path}: has more than {LARGEST_BYTES:,} bytes, so is no configuration")
    try:
        loaded = parse_yaml(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    need(
        loaded is None or isinstance(loaded, dict),
        f"{path}: need sections of keys, such as `prior:` with `tau: 100` under it",
    )
    return loaded or {}


def dump_yaml(values: dict[str, Any]) -> str:
    """What `parse_yaml` reads back, numbers as text."""
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False, default_flow_style=False)
