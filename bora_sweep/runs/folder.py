"""A run's folder: where it is, what was asked for in it, and who works on it."""

import shlex
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bora_sweep.config import Config, Setting, load_config, with_values
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import Folder, exists, folder_at, read_local, write_bytes

FREE_ON_RESUME = ("output", "ray.", "search.num_trials", "tracking", "train.checkpoint_minutes")
HOME = Path("runs")


def new_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
    """The configuration that `settings` ask for, and the folder of a run that is not there yet.

    Raises:
        InputError: The settings are wrong, or the folder holds a run or cannot be made.
    """
    config = _absolute(load_config(settings))
    run = folder_at(config.output or HOME / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{command}")
    _refuse_no_folder(run)
    if exists(run / "config.yaml"):
        again = f"bora-sweep {command} --resume output={shlex.quote(str(run))}"
        raise InputError(f"output={run}: holds a run already; go on with it by {again}, or give another output")
    return config, run


def _refuse_no_folder(run: Folder) -> None:
    """Refuse, before any long work, a folder that cannot be made or written in."""
    if not isinstance(run, Path):
        return
    try:
        there = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"output={run}: cannot be made or written in ({error.strerror}); give another output"
        ) from None


def reopen_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
    """The configuration of a run that was begun, with what may change on the way, and its folder.

    Raises:
        InputError: There is no such run, or the settings would change what its results mean.
    """
    asked = load_config(settings).output
    found = sorted(HOME.glob(f"????-??-??T??-??-??-{command}/config.yaml"))
    if asked is None and not found:
        raise InputError(f"--resume: no run of `{command}` in {HOME}/; name its folder with output=…")
    run = folder_at(asked) if asked is not None else found[-1].parent
    if not exists(run / "config.yaml"):
        raise InputError(f"output={run}: no config.yaml there, so no run to go on with; drop --resume to begin one")
    before = config_of(run)
    config = _absolute(load_config(settings, base=before))
    for key, value in _flat(config.to_dict()).items():
        if value != _flat(before.to_dict())[key] and not key.startswith(FREE_ON_RESUME):
            raise InputError(
                f"{key}={value}: the run was begun with {_flat(before.to_dict())[key]}; give another output for this"
            )
    return config, run


def config_of(run: Folder) -> Config:
    """What the run was begun with.

    Raises:
        InputError: `config.yaml` is not there, is damaged, or has keys that this version does not know.
    """
    path = run / "config.yaml"

    def read(file: Path) -> Config:
        if not file.is_file():
            raise FileNotFoundError
        try:
            return load_config([file])
        except InputError as error:
            said = str(error).replace(str(file), str(path))
            raise InputError(f"{said}; the file is as another version of bora_sweep wrote it, or was changed") from None

    try:
        return read_local(path, read)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def create_run(config: Config, run: Folder) -> None:
    """Make the folder and write the resolved configuration, whole or not at all."""
    write_bytes(run / "config.yaml", config.to_yaml().encode())


def _absolute(config: Config) -> Config:
    """Local paths made absolute, so that a resume or a worker elsewhere finds them from any folder."""
    changes: dict[str, Any] = {}
    if config.data.path is not None and (config.data.kind != "hub" or Path(config.data.path).exists()):
        changes["data"] = {"path": str(Path(config.data.path).absolute())}
    if config.data.split_from is not None and "://" not in config.data.split_from:
        split_from = str(Path(config.data.split_from).absolute())
        changes["data"] = {**changes.get("data", {}), "split_from": split_from}
    if config.model.name is not None and Path(config.model.name).is_dir():
        changes["model"] = {"name": str(Path(config.model.name).absolute())}
    if config.init_from is not None:
        changes["init_from"] = str(Path(config.init_from).absolute())
    return with_values(config, **changes)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"prior": {"tau": 1.0}}` as `{"prior.tau": 1.0}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
