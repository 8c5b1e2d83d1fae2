"""From files and `key=value` to a configuration: OmegaConf merges and checks them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from bora_sweep.config.bounds import need
from bora_sweep.config.whole import Config
from bora_sweep.errors import InputError

Setting: TypeAlias = str | Path | Mapping[str, Any] | Config
"""A YAML file, `key=value`, a dictionary of sections, or a whole configuration."""
PROTOCOLS = {path.stem: path for path in (Path(__file__).parent / "protocol").glob("*.yaml")}
"""Settings that a name stands for, `protocol`; part of the package, so that they are there wherever it is installed."""


def read_config(text: str) -> Config:
    """What `Config.to_json` wrote; keys that it lacks have their defaults.

    Raises:
        InputError: It has keys or values that this version does not know.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), json.loads(text)))  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(f"{_say(error)}; another version of bora_sweep wrote it") from None


def load_config(arguments: Sequence[Setting] = (), base: Config | None = None) -> Config:
    """`base`, the settings of `protocol`, whole configurations and YAML files, then `key=value` and dictionaries.

    Merged in that order and checked. A protocol that `base` already has is not laid over it again.

    Args:
        arguments: Paths of YAML files and dotted `key=value` settings, as on the command line; from Python also
            dictionaries such as `{"prior": {"tau": 100}}`, and configurations.
        base: What they are merged into; left out: the defaults.

    Raises:
        InputError: A file that cannot be read, an unknown key, a value of the wrong type or out of bounds.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(Config if base is None else base)
    parts = [(_name(source), _part(source)) for source in sorted(arguments, key=_is_setting)]
    protocol = str(next((part["protocol"] for _, part in reversed(parts) if "protocol" in part), merged.protocol))
    if protocol in PROTOCOLS and protocol != merged.protocol:
        parts.insert(0, (f"protocol={protocol}", _load_yaml(PROTOCOLS[protocol])))
    for name, part in parts:
        try:
            merged = OmegaConf.merge(merged, part)
        except OmegaConfBaseException as error:
            raise InputError(f"{name}: {_say(error)}") from None
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def _is_setting(source: Setting) -> bool:
    return isinstance(source, Mapping) or (isinstance(source, str) and "=" in source)


def _name(source: Setting) -> str:
    """How a message calls it."""
    return json.dumps(source, default=str) if isinstance(source, Mapping) else str(source)


def _part(source: Setting) -> Any:
    """What OmegaConf merges."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(source, Config):
        return OmegaConf.structured(source)
    try:
        if isinstance(source, Mapping):
            return OmegaConf.create(_plain(source))
        return OmegaConf.from_dotlist([str(source)]) if _is_setting(source) else _load_yaml(Path(source))
    except OmegaConfBaseException as error:
        raise InputError(f"{_name(source)}: {_say(error)}") from None


def _plain(value: Any) -> Any:
    """Paths within a dictionary as text."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, Path) else value


def _load_yaml(path: Path) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    need(path.suffix in (".yaml", ".yml"), f"{path}: give a .yaml file or a setting such as prior.tau=100")
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    need(isinstance(loaded, DictConfig), f"{path}: need sections of keys, such as `prior:` with `tau: 100` under it")
    return loaded


def _say(error: Exception) -> str:
    """OmegaConf's message without its trailing type names; an unknown key with the nearest known one."""
    return str(error).splitlines()[0]
