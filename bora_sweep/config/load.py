"""Make a configuration from YAML files, `key=value` and dictionaries: read each by the schema, then merge in order."""

import json
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bora_sweep.config.config import Config
from bora_sweep.config.dotted import nest
from bora_sweep.config.paths import local_path
from bora_sweep.config.schema import annotation_of, build, coerce, is_container, union_members
from bora_sweep.config.yaml import parse_yaml, read_yaml
from bora_sweep.errors import InputError

Setting: TypeAlias = str | Path | Mapping[str, Any] | Config
"""A YAML file, `key=value`, a dictionary of sections, or a whole configuration."""
PROTOCOLS = {path.stem: path for path in (Path(__file__).parent / "protocol").glob("*.yaml")}
"""The YAML file of each `protocol`; the files are part of the package."""
KINDS = (
    "a setting is a .yaml file, 'key=value', a dictionary of sections or a Config; a corpus goes in by data=…, a "
    "loaded model by model=…"
)
LONGEST_PATH = 4096
DATA_SUFFIXES = (".parquet", ".csv", ".jsonl")


def read_config(text: str) -> Config:
    """The configuration that `Config.to_json` wrote. Keys that it lacks get their defaults.

    Raises:
        InputError: It has keys or values that this version does not know.
    """
    try:
        return build(Config, coerce(json.loads(text), Config, ""))
    except ValueError as error:
        raise InputError(f"{error}; another version of bora_sweep wrote it") from None


def load_config(arguments: Setting | Sequence[Setting] = (), base: Config | None = None) -> Config:
    """Merge settings into a configuration and check it. Later settings win.

        load_config("prior.tau=1")
        load_config(["conf/model.yaml", {"train": {"max_epochs": 3}}])

    The order is: `base`; the settings of `protocol`, unless `base` has that protocol already; configurations and YAML
    files; `key=value` and dictionaries. Text is taken to the letter: it holds no comments and no references, and it is
    a number only where the key wants one.

    Args:
        arguments: One setting or several: YAML files and `key=value` with a dotted key, as on the command line. Python
            may also give dictionaries such as `{"prior": {"tau": 100}}`, and configurations. `key=null` is None where
            the key allows it, and `[a,b]` is a list.
        base: The configuration to merge into; left out: the defaults.

    Raises:
        InputError: A file cannot be read, a key is unknown, or a value has the wrong type or is out of bounds.
    """
    merged = coerce(Config() if base is None else base, Config, "")
    parts = [_read_setting(setting) for setting in sorted(settings_of(arguments), key=_is_explicit)]
    protocol = next((part["protocol"] for part in reversed(parts) if "protocol" in part), merged["protocol"])
    if protocol in PROTOCOLS and protocol != merged["protocol"]:
        parts.insert(0, _read_setting(PROTOCOLS[protocol]))
    for part in parts:
        merged = _merge(merged, part)
    return build(Config, merged)


def settings_of(arguments: Setting | Sequence[Setting]) -> list[Setting]:
    """One setting as a list of it; several as a list.

    Raises:
        InputError: It is neither. The message has its type alone, since it may hold a user's text.
    """
    if isinstance(arguments, (str, Path, Mapping, Config)):
        return [arguments]
    if not isinstance(arguments, (list, tuple)):
        raise InputError(f"settings: a {type(arguments).__name__}; {KINDS}")
    for place, setting in enumerate(arguments, start=1):
        if not isinstance(setting, (str, Path, Mapping, Config)):
            raise InputError(f"setting {place}: a {type(setting).__name__}; {KINDS}")
    return [*arguments]


def is_section(value: Any) -> bool:
    """Whether it is a section's settings; a `DatasetDict` is a dictionary too, and is none."""
    return (isinstance(value, Mapping) or is_dataclass(value)) and not hasattr(value, "num_rows")


def is_setting(argument: Setting) -> bool:
    """Whether it is `key=value`. A path with a folder before the `=` is not."""
    return isinstance(argument, str) and "=" in argument and "/" not in argument.partition("=")[0]


def explicit_settings(settings: Sequence[Setting]) -> dict[str, Any]:
    """What `key=value` and dictionaries give. They are meant for this run; a file may serve several runs."""
    merged: dict[str, Any] = {}
    for setting in filter(_is_explicit, settings):
        merged = _merge(merged, _read_setting(setting))
    return merged


def _is_explicit(setting: Setting) -> bool:
    return isinstance(setting, Mapping) or is_setting(setting)


def _read_setting(setting: Setting) -> dict[str, Any]:
    """The keys that the setting gives, with values of the schema's types."""
    if isinstance(setting, (Config, Mapping)):
        return coerce(setting, Config, "")
    if isinstance(setting, str) and ("\n" in setting or len(setting) > LONGEST_PATH) and not is_setting(setting):
        raise InputError(f"a text of {len(setting):,} characters; {KINDS}")
    if isinstance(setting, str) and is_setting(setting):
        return _read_key_value(setting)
    path = Path(local_path(str(setting)))
    is_data = os.path.exists(path) or Path(path.name.removesuffix(".gz")).suffix in DATA_SUFFIXES
    if is_data and path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{setting}: give a .yaml file or a setting; for the corpus write data.path={setting}")
    values = read_yaml(path)
    try:
        return coerce(values, Config, "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _read_key_value(setting: str) -> dict[str, Any]:
    key, _, text = setting.partition("=")
    annotation = annotation_of(Config, key)
    try:
        return coerce(nest(key, _parse_value(text, annotation, key)), Config, "")
    except InputError as error:
        if annotation is not None:
            raise
        hint = f"; the file of that name is ./{setting}" if os.path.isfile(setting) else ""
        raise InputError(f"{setting}: {error}{hint}") from None


def _parse_value(text: str, annotation: Any, key: str) -> Any:
    """The text after `key=`. Where the key allows them, null, lists and dictionaries are parsed."""
    members = union_members(annotation)
    if text == "null" and type(None) in members:
        return None
    if not any(map(is_container, members)):
        return text
    try:
        parsed = parse_yaml(text)
    except InputError as error:
        if str in members:
            return text
        raise InputError(f"{key}={text}: {error}") from None
    return parsed if isinstance(parsed, list) or str not in members else text


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both dictionaries merged, at every depth; the values of `over` win."""
    return {
        **under,
        **{
            name: _merge(under[name], value) if isinstance(value, dict) and name in under else value
            for name, value in over.items()
        },
    }
