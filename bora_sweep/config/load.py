"""From files and `key=value` to a configuration: each part is read by the schema, then laid over those before it."""

import json
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from bora_sweep.config.config import Config
from bora_sweep.config.paths import local_path
from bora_sweep.config.schema import built, holds_others, kind_at, kinds_of, typed
from bora_sweep.config.yaml import parse_yaml, read_yaml
from bora_sweep.errors import InputError

Setting: TypeAlias = str | Path | Mapping[str, Any] | Config
"""A YAML file, `key=value`, a dictionary of sections, or a whole configuration."""
PROTOCOLS = {path.stem: path for path in (Path(__file__).parent / "protocol").glob("*.yaml")}
"""Settings that a name stands for, `protocol`; part of the package, so that they are there wherever it is installed."""
DATA_SUFFIXES = (".parquet", ".csv", ".jsonl")


def read_config(text: str) -> Config:
    """What `Config.to_json` wrote; keys that it lacks have their defaults.

    Raises:
        InputError: It has keys or values that this version does not know.
    """
    try:
        return built(Config, typed(json.loads(text), Config, ""))
    except ValueError as error:
        raise InputError(f"{error}; another version of bora_sweep wrote it") from None


def load_config(arguments: Sequence[Setting] = (), base: Config | None = None) -> Config:
    """`base`, the settings of `protocol`, whole configurations and YAML files, then `key=value` and dictionaries.

    Merged in that order and checked. A protocol that `base` already has is not laid over it again. A text is what is
    written: nothing in it is a comment, a reference or a number where the key wants text.

    Args:
        arguments: Paths of YAML files and dotted `key=value` settings, as on the command line; from Python also
            dictionaries such as `{"prior": {"tau": 100}}`, and configurations. `key=null` is None where the key may be
            that, and a list is `[a,b]`.
        base: What they are merged into; left out: the defaults.

    Raises:
        InputError: A file that cannot be read, an unknown key, a value of the wrong type or out of bounds.
    """
    merged = typed(Config() if base is None else base, Config, "")
    parts = [_part(source) for source in sorted(arguments, key=_is_said)]
    protocol = next((part["protocol"] for part in reversed(parts) if "protocol" in part), merged["protocol"])
    if protocol in PROTOCOLS and protocol != merged["protocol"]:
        parts.insert(0, _part(PROTOCOLS[protocol]))
    for part in parts:
        merged = _laid_over(merged, part)
    return built(Config, merged)


def is_setting(source: Setting) -> bool:
    """Whether it is `key=value`; a path that has a folder and then `=` in it is none."""
    return isinstance(source, str) and "=" in source and "/" not in source.partition("=")[0]


def explicit_settings(settings: Sequence[Setting]) -> dict[str, Any]:
    """What `key=value` and dictionaries give: what is meant for this run alone, where a file may be of several."""
    together: dict[str, Any] = {}
    for source in filter(_is_said, settings):
        together = _laid_over(together, _part(source))
    return together


def _is_said(source: Setting) -> bool:
    return isinstance(source, Mapping) or is_setting(source)


def _part(source: Setting) -> dict[str, Any]:
    """The keys that `source` gives, of the schema's types."""
    if isinstance(source, (Config, Mapping)):
        return typed(source, Config, "")
    if not isinstance(source, (str, Path)):
        raise InputError(f"{source!r}: a setting is a .yaml file, 'key=value', a dictionary or a Config")
    if isinstance(source, str) and is_setting(source):
        return _given(source)
    path = Path(local_path(str(source)))
    is_data = os.path.exists(path) or Path(path.name.removesuffix(".gz")).suffix in DATA_SUFFIXES
    if is_data and path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{source}: give a .yaml file or a setting; for the corpus write data.path={source}")
    values = read_yaml(path)
    try:
        return typed(values, Config, "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _given(setting: str) -> dict[str, Any]:
    """What `key=value` gives."""
    key, _, text = setting.partition("=")
    kind = kind_at(Config, key)
    try:
        return typed(_nested(key, _meant(text, kind, key)), Config, "")
    except InputError as error:
        if kind is not None:
            raise
        is_file = f"; the file of that name is ./{setting}" if os.path.isfile(setting) else ""
        raise InputError(f"{setting}: {error}{is_file}") from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and 1 as `{"a": {"b": 1}}`."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _meant(text: str, kind: Any, key: str) -> Any:
    """What stands after `key=`: itself, but for null, lists and dictionaries, where the key has such."""
    kinds = kinds_of(kind)
    if text == "null" and type(None) in kinds:
        return None
    if not any(map(holds_others, kinds)):
        return text
    try:
        parsed = parse_yaml(text)
    except InputError as error:
        if str in kinds:
            return text
        raise InputError(f"{key}={text}: {error}") from None
    return parsed if isinstance(parsed, list) or str not in kinds else text


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, dictionaries within too; where both have a value, that of `over`."""
    return {
        **under,
        **{
            name: _laid_over(under[name], value) if isinstance(value, dict) and name in under else value
            for name, value in over.items()
        },
    }
