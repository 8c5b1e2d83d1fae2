"""From files and `key=value` to a configuration: OmegaConf merges and checks them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bora_sweep.config.bounds import need
from bora_sweep.config.whole import Config
from bora_sweep.errors import InputError

PROTOCOLS = {path.stem: path for path in (Path(__file__).parent / "protocol").glob("*.yaml")}
"""Settings that a name stands for, `protocol`; part of the package, so that they are there wherever it is installed."""


def read_config(text: str) -> Config:
    """What `Config.to_json` wrote; keys that it lacks have their defaults."""
    from omegaconf import OmegaConf

    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), json.loads(text)))  # type: ignore[return-value]


def load_config(arguments: Sequence[str] = (), base: Config | None = None) -> Config:
    """`base`, then the settings of `protocol`, then YAML files, then `key=value`, merged in that order and checked.

    A protocol that `base` already has is not laid over it again.

    Args:
        arguments: Paths of YAML files and dotted `key=value` settings, as on the command line.
        base: What they are merged into; left out: the defaults.

    Raises:
        InputError: A file that cannot be read, an unknown key, a value of the wrong type or out of bounds.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(Config if base is None else base)
    files = [argument for argument in arguments if "=" not in argument]
    settings = [argument for argument in arguments if "=" in argument]
    parts = [(str(source), _load(source)) for source in [*files, *settings]]
    protocol = str(next((part["protocol"] for _, part in reversed(parts) if "protocol" in part), merged.protocol))
    if protocol in PROTOCOLS and protocol != merged.protocol:
        parts.insert(0, (f"protocol={protocol}", _load_yaml(PROTOCOLS[protocol])))
    for source, part in parts:
        try:
            merged = OmegaConf.merge(merged, part)
        except OmegaConfBaseException as error:
            raise InputError(f"{source}: {_say(error)}") from None
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def _load(source: str) -> Any:
    """What a file or a `key=value` says."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.from_dotlist([source]) if "=" in source else _load_yaml(Path(source))
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {_say(error)}") from None


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
