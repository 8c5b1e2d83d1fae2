"""A run's folder: where it is, and what was asked for in it."""

import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bora_sweep.config import Config, load_config, with_values
from bora_sweep.errors import InputError

FREE_ON_RESUME = ("output", "ray.", "search.num_trials")
HOME = Path("runs")


def new_run(settings: Sequence[str], command: str) -> tuple[Config, Path]:
    """The configuration that `settings` ask for, and the folder of a run that is not there yet.

    Raises:
        InputError: The settings are wrong, or the folder holds a run.
    """
    config = _absolute(load_config(settings))
    run = Path(config.output or HOME / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{command}")
    if (run / "config.yaml").exists():
        again = f"bora-sweep {command} --resume output={shlex.quote(str(run))}"
        raise InputError(f"output={run}: holds a run already; go on with it by {again}, or give another output")
    return config, run


def reopen_run(settings: Sequence[str], command: str) -> tuple[Config, Path]:
    """The configuration of a run that was begun, with what may change on the way, and its folder.

    Raises:
        InputError: There is no such run, or the settings would change what its results mean.
    """
    asked = load_config(settings).output
    found = sorted(HOME.glob(f"*-{command}/config.yaml"))
    if asked is None and not found:
        raise InputError(f"--resume: no run of `{command}` in {HOME}/; name its folder with output=…")
    run = Path(asked) if asked is not None else found[-1].parent
    if not (run / "config.yaml").exists():
        raise InputError(f"output={run}: no config.yaml there, so no run to go on with; drop --resume to begin one")
    before = load_config([str(run / "config.yaml")])
    config = _absolute(load_config(settings, base=before))
    for key, value in _flat(config.to_dict()).items():
        if value != _flat(before.to_dict())[key] and not key.startswith(FREE_ON_RESUME):
            raise InputError(
                f"{key}={value}: the run was begun with {_flat(before.to_dict())[key]}; give another output for this"
            )
    return config, run


def create_run(config: Config, run: Path) -> None:
    """Make the folder and write the resolved configuration, whole or not at all."""
    run.mkdir(parents=True, exist_ok=True)
    part = run / f".config.yaml.{os.getpid()}.part"
    part.write_text(config.to_yaml(), encoding="utf-8")
    part.replace(run / "config.yaml")


def _absolute(config: Config) -> Config:
    """Local paths made absolute, so that a resume or a worker elsewhere finds them from any folder."""
    changes: dict[str, Any] = {}
    if config.data.path is not None and config.data.kind == "file":
        changes["data"] = {"path": str(Path(config.data.path).absolute())}
    if config.model.name is not None and Path(config.model.name).is_dir():
        changes["model"] = {"name": str(Path(config.model.name).absolute())}
    return with_values(config, **changes)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"prior": {"tau": 1.0}}` as `{"prior.tau": 1.0}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
