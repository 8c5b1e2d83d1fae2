"""Where a run's inputs are: the keys that say so, inputs within the run's folder, and inputs that have moved.

A key of `PLACES` says where something is, and not what it is. So it may change while the content stays the same, which
`bora_sweep.trials.fingerprints` compares.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bora_sweep.config import Config, Setting, explicit_settings, flatten, is_setting, load_config, with_values
from bora_sweep.config.dotted import nest
from bora_sweep.errors import InputError
from bora_sweep.runs.storage import Folder

MODEL = "model.name"
DOCUMENTS = ("data.path", "data.validation_path", "data.test_path", "data.groups_path")
"""Keys that say where the documents are."""
PLACES = (MODEL, *DOCUMENTS, "data.split_from", "init_from")
"""Keys that may change on a resume."""
OF_EXPORTS = (MODEL, *DOCUMENTS)
"""Keys that may change where a run's adapters are used."""
DATA, BASE = "data.parquet", "base"
"""In a run's folder: data and a model that a program gave as objects (`bora_sweep.in_memory`)."""
INPUTS = "inputs"
"""In a packed run's folder: `inputs/KEY/NAME` is what the key named (`bora_sweep.packing`)."""


def file_of_split(split: str) -> str:
    """The name, in a run's folder, of the file with a split of data that a program gave as an object."""
    return DATA if split == "train" else f"{split}.parquet"


_OWN = {
    MODEL: BASE, "data.path": DATA, "data.validation_path": file_of_split("validation"),
    "data.test_path": file_of_split("test"),
}  # fmt: skip


def is_place(word: str) -> bool:
    """Whether a word of the command line says where an input is now: `model.name=…`, `data.path=…`."""
    return word.partition("=")[0] in PLACES and "=" in word


def given_places(settings: Sequence[Setting], command: str) -> dict[str, str]:
    """Where inputs are now, by key.

    Args:
        settings: Of a command that uses a run's adapters.
        command: Its name, for the message.

    Raises:
        InputError: A setting says something else, or is wrong.
    """
    other = next((one for one in settings if not isinstance(one, Mapping) and not is_setting(one)), None)
    if other is not None:
        raise InputError(f"{other}: {command} takes only where things are now: {_written(OF_EXPORTS)}")
    given = flatten(explicit_settings(settings))
    for key, value in given.items():
        if key not in OF_EXPORTS:
            raise InputError(f"{key}={value}: {command} takes only where things are now: {_written(OF_EXPORTS)}")
        if value is None:
            raise InputError(f"{key}=null: is no place; give the path, or drop it")
    return {key: str(value) for key, value in given.items()}


def with_places(config: Config, places: Mapping[str, str]) -> Config:
    """The configuration with other places, local ones as absolute paths.

    Raises:
        InputError: A value is none that the key may have, or the run reads no documents of a file.
    """
    for key in places:
        if key != MODEL and value_of(config, key) is None:
            raise InputError(f"{key}={places[key]}: the run was begun without {key}; drop it")
    return with_absolute_paths(load_config([nest(key, value) for key, value in places.items()], base=config))


def with_own_inputs(config: Config, run: Folder) -> Config:
    """The configuration with the inputs that are in the run's folder, wherever that is by now."""
    if not isinstance(run, Path):
        return config
    for key in PLACES:
        found = _own_input(run.absolute(), key, value_of(config, key))
        if found is not None:
            config = _with_place(config, key, str(found))
    return config


def _own_input(run: Path, key: str, value: str | None) -> Path | None:
    packed = sorted(path for path in (run / INPUTS / key).glob("*") if not path.name.startswith("."))
    if packed:
        return packed[0]
    name = _OWN.get(key)
    is_own = name is not None and value is not None and Path(value).name == name and (run / name).exists()
    return run / name if is_own and name is not None else None


def refuse_missing(
    run: Folder, config: Config, keys: Iterable[str], mend: str = "say where it is now by {key}=…"
) -> None:
    """Refuse a configuration whose inputs are no longer where it says.

    Args:
        run: The run's folder, for the message.
        config: Of the run.
        keys: Those to check.
        mend: What to do about it, with `{key}` for the key.

    Raises:
        InputError: An input is not there; the message names the key to give.
    """
    for key in keys:
        value = value_of(config, key)
        if value is not None and "://" not in value and Path(value).is_absolute() and not Path(value).exists():
            raise InputError(f"{run}: {key}={value} is not there; {mend.format(key=key)}")


def moved_places(before: Config, config: Config) -> list[str]:
    """The keys of places in which two configurations differ."""
    return [key for key in PLACES if value_of(before, key) != value_of(config, key)]


def at_places_of(config: Config, other: Config) -> Config:
    """The configuration with the places that another one of the same run names."""
    for key in moved_places(config, other):
        if (value := value_of(other, key)) is not None:
            config = _with_place(config, key, value)
    return config


def with_absolute_paths(config: Config) -> Config:
    """Local paths made absolute, so that a worker or a later resume finds them from any working folder."""
    for key in PLACES:
        value = value_of(config, key)
        if value is not None and _is_local(config, key, value):
            config = _with_place(config, key, str(Path(value).absolute()))
    return config


def _is_local(config: Config, key: str, value: str) -> bool:
    if key == MODEL:
        return Path(value).is_dir()
    if key == "data.path":
        return config.data.kind != "hub" or Path(value).exists()
    return "://" not in value


def value_of(config: Config, key: str) -> str | None:
    """What a configuration names at a key of `PLACES`."""
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


def _with_place(config: Config, key: str, value: str) -> Config:
    changes: dict[str, Any] = nest(key, value)
    return with_values(config, **changes)


def _written(keys: Sequence[str]) -> str:
    return ", ".join(f"{key}=…" for key in keys)
