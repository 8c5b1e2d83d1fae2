"""The folder of a run and the configuration in it: begin a new run, or reopen one."""

import json
import shlex
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from bora_sweep.config import Config, Setting, explicit_settings, flatten, load_config, with_values
from bora_sweep.errors import InputError, plural
from bora_sweep.runs.places import (
    DOCUMENTS,
    MODEL,
    PLACES,
    moved_places,
    refuse_missing,
    with_absolute_paths,
    with_own_inputs,
)
from bora_sweep.runs.storage import Folder, exists, folder_at, list_files, read_bytes, read_local, write_bytes

EXTENSIBLE = (
    "search.num_trials",
    "search.taus",
    "search.baselines",
    "search.ranks",
    "search.learning_rates",
    "search.seeds",
)
"""Keys of which a sweep may get more when it is resumed (`bora_sweep.tune.numbering`)."""
FREE_ON_RESUME = ("output", "ray.", "search.unseen_folds", "tracking", "train.checkpoint_minutes", *EXTENSIBLE)
"""Beginnings of the keys that may change when a run is resumed. Those of `bora_sweep.runs.places` may too, where the
content is the same."""
FIT = "fit"
"""The trial of a run that `fit` began."""
FINGERPRINTS = "fingerprints.json"
"""In a run's folder: digests of its inputs (`bora_sweep.trials.fingerprints`)."""
PACKED = "packed.json"
"""In a run's folder that a pack was made of (`bora_sweep.packing`): what was left out of it, as JSON."""
FORGETTING = "forgetting.json"
"""In a run's folder while tasks are taken out of it (`bora_sweep.forgetting`): what is under way, as JSON."""
GLOBAL, GROUP, ADD = "global", "group", "add"
"""The trials of a run that `add` began: the new tasks under Theta as it is; where they are in groups, each under the
Theta_g of its group; then with adapters of their own."""
RUNS = Path("runs")
"""Folder of the runs whose `output` is left out."""


def new_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
    """The configuration that `settings` ask for, and the folder of a run that does not exist yet.

    Raises:
        InputError: The settings are wrong, the folder holds a run already, or it cannot be made.
    """
    config = with_absolute_paths(load_config(settings))
    run = folder_at(config.output or RUNS / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{command}")
    _check_writable(run)
    if exists(run / "config.yaml"):
        again = f"bora-sweep {command} --resume output={shlex.quote(str(run))}"
        raise InputError(f"output={run}: holds a run already; resume it by {again}, or give another output")
    return config, run


def _check_writable(run: Folder) -> None:
    """Refuse, before any long work, a local folder that cannot be made or written to."""
    if not isinstance(run, Path):
        return
    try:
        existing = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"output={run}: cannot be made or written to ({error.strerror}); give another output"
        ) from None


def reopen_run(settings: Sequence[Setting], command: str) -> tuple[Config, Folder]:
    """The configuration of a run that was begun, updated with `settings`, and the run's folder.

    Without `output` it is the newest run of `command` in `RUNS`.

    Raises:
        InputError: There is no such run, the settings would change what its results mean, or something that it needs
            is not there.
    """
    output = load_config(settings).output
    dated = sorted(RUNS.glob(f"????-??-??T??-??-??-{command}/config.yaml"))
    if output is None and not dated:
        raise InputError(f"--resume: no run of `{command}` in {RUNS}/; name its folder with output=…")
    run = folder_at(output) if output is not None else dated[-1].parent
    if not exists(run / "config.yaml"):
        raise InputError(f"output={run}: no config.yaml there, so no run to resume; drop --resume to begin one")
    refuse_half_forgotten(run)
    _refuse_incomplete(run)
    if command_of(run) not in (command, None):
        again = f"bora-sweep {command_of(run)} --resume output={shlex.quote(str(run))}"
        raise InputError(f"output={run}: `{command_of(run)}` began this run, not `{command}`; resume it by {again}")
    before = config_of(run)
    config = _with_numbers(with_absolute_paths(load_config(settings, base=before)), before)
    values_before = flatten(before.to_dict())
    given = flatten(explicit_settings(settings))
    for key, value in sorted(flatten(config.to_dict()).items(), key=lambda item: item[0] not in given):
        if value != values_before[key] and not key.startswith(FREE_ON_RESUME) and not _may_move(before, key, value):
            raise InputError(f"{key}={value}: the run was begun with {values_before[key]}; give another output")
    if (moved := moved_places(before, config)) and not exists(run / FINGERPRINTS):
        raise InputError(
            f"{moved[0]}={values_before[moved[0]]}: the run has no {FINGERPRINTS}, so nothing says whether what is "
            "elsewhere is the same; put it back there, or give another output"
        )
    refuse_missing(run, config, [MODEL, *DOCUMENTS, *moved])  # the others are read at the beginning alone
    return config, run


def refuse_half_forgotten(run: Folder) -> None:
    """Refuse a run out of which tasks are being taken.

    Raises:
        InputError: That was cut off, and is to be finished first.
    """
    if exists(run / FORGETTING):
        raise InputError(
            f"{run}: tasks are being taken out of this run, which was cut off; first run bora-sweep forget "
            f"{shlex.quote(str(run))} again"
        )


def _with_numbers(config: Config, before: Config) -> Config:
    """With what the run has where `auto` is asked for, which was decided when it began."""
    asked = [name for name in ("learning_rate", "pass_tokens") if getattr(config.train, name) == "auto"]
    return with_values(config, train={name: getattr(before.train, name) for name in asked})


def _may_move(before: Config, key: str, value: object) -> bool:
    """Whether a key only says where an input is. A run on the embedded base may name its folder."""
    return key in PLACES and value is not None and (key == MODEL or flatten(before.to_dict())[key] is not None)


def _refuse_incomplete(run: Folder) -> None:
    """Refuse to resume a run that was unpacked from a pack without all of its trials."""
    if left_out := trials_left_out(run):
        raise InputError(
            f"output={run}: was packed without the files of {plural(left_out, 'trial')}, which a resume needs; resume "
            "it where it was packed, or pack it with --all-trials"
        )


def trials_left_out(run: Folder) -> int:
    """The trials whose files a pack left out, of which the run was unpacked; 0 where it was not.

    Raises:
        InputError: The file that says so is damaged.
    """
    if not exists(run / PACKED):
        return 0
    try:
        return int(json.loads(read_bytes(run / PACKED))["trials_left_out"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{run / PACKED}: damaged; unpack the run again") from None


def command_of(run: Folder) -> str | None:
    """The command that began the run, by the names of its trials; None where it has none yet."""
    files = list_files(run / "results" / "trials", "*.parquet")
    return command_of_trials({file.name.removesuffix(".parquet") for file in files})


def command_of_trials(trials: set[str]) -> str | None:
    """The command that begins trials of these names; None without any."""
    if not trials:
        return None
    return FIT if FIT in trials else ADD if GLOBAL in trials else "sweep"


def config_of(run: Folder) -> Config:
    """The configuration that the run was begun with; inputs in the run's own folder are where that is now.

    Raises:
        InputError: There is no `config.yaml`, it is damaged, or it has keys that this version does not know.
    """
    path = run / "config.yaml"

    def read(file: Path) -> Config:
        if not file.is_file():
            raise FileNotFoundError
        try:
            return with_own_inputs(load_config([file]), run)
        except InputError as error:
            message = str(error).replace(str(file), str(path))
            raise InputError(f"{message}; another version of bora_sweep wrote the file, or it was edited") from None

    try:
        return read_local(path, read)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def create_run(config: Config, run: Folder) -> None:
    """Make the folder and write the resolved configuration, atomically."""
    write_bytes(run / "config.yaml", config.to_yaml().encode())
