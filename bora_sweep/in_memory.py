"""Data and models that a program has in memory: written into the run's folder, so that the run stands on its own.

A run is resumed, exported and handed on by its folder alone. So what a notebook gives as an object becomes a file
there, which the run's `config.yaml` names.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bora_sweep.config import DataConfig, Setting, load_config
from bora_sweep.data.read import with_label_names
from bora_sweep.data.split import SPLITS
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.placement import placed
from bora_sweep.runs.folder import RUNS
from bora_sweep.runs.places import BASE, DATA, file_of_split
from bora_sweep.runs.storage import atomic_write, give_usual_modes

KEYS = {"train": "path", "validation": "validation_path", "test": "test_path"}
"""The key of section `data` that names a split's file."""
ROW = "bora_sweep_row"
"""A column with the names of documents whose rows have moved, since a task left."""


@contextmanager
def stored(
    settings: Sequence[Setting], command: str, *, data: Any = None, model: Any = None, tokenizer: Any = None
) -> Iterator[list[Setting]]:
    """Within, settings under which a run reads `data` and `model` from its folder, where they are written.

    What was written is removed if no run comes of it.

    Args:
        settings: Of the run.
        command: `fit` or `sweep`.
        data: A DataFrame, a `Dataset`, or a `DatasetDict` of train, validation and test; None: the settings name it.
        model: A causal language model of transformers; None: the settings name it.
        tokenizer: The model's.

    Raises:
        InputError: They are of another type, cannot be written, or are not those that the run began with.
    """
    if data is None and model is None:
        yield list(settings)
        return
    output = load_config(settings).output or str(RUNS / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{command}")
    if "://" in output:
        raise InputError(f"output={output}: data or a model in memory is written there, which must be on this machine")
    run, written = Path(output).absolute(), list[Path]()
    try:
        more: dict[str, Any] = {"output": str(run)}
        if data is not None:
            if (path := load_config(settings).data.path) not in (None, str(run / DATA)):
                raise InputError(f"data.path={path}: data is given as an object too; drop one of the two")
            more["data"] = _store_data(data, run, written)
        if model is not None:
            more["model"] = _store_model(model, tokenizer, run, written)
        yield [*settings, more]
    except InputError as error:
        if (run / "config.yaml").exists():  # a user can look at the files
            raise
        raise InputError(_without_paths(str(error), run)) from None
    finally:
        if not (run / "config.yaml").exists():
            for path in written:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if run.is_dir() and not any(run.iterdir()):
                run.rmdir()


def _without_paths(message: str, run: Path) -> str:
    """A message that names what was given, `data`, in the place of the file that it was written to."""
    for split in SPLITS:
        file, given = str(run / file_of_split(split)), "data" if split == "train" else f"data[{split!r}]"
        message = message.replace(f"data.{KEYS[split]}={file}", given).replace(file, given)
    return message


def _store_data(data: Any, run: Path, written: list[Path]) -> dict[str, str]:
    """The settings that name the data's files."""
    if not isinstance(data, (pd.DataFrame, datasets.Dataset, datasets.DatasetDict)):
        raise InputError(f"data={type(data).__name__}: give a DataFrame, a Dataset, or a dictionary of settings")
    if not isinstance(data, datasets.DatasetDict):
        return {"path": _store_table(data, run / DATA, written)}
    if unknown := sorted(map(str, set(data) - set(SPLITS))):
        raise InputError(
            f"data: a DatasetDict with the split {unknown[0]!r}; give one with train, validation and test, or one "
            "split alone, which is then split"
        )
    if "train" not in data:
        raise InputError("data: a DatasetDict without the split 'train', so that there is nothing to learn from")
    return {KEYS[str(split)]: _store_table(data[split], run / file_of_split(str(split)), written) for split in data}


def _store_table(data: pd.DataFrame | datasets.Dataset, path: Path, written: list[Path]) -> str:
    """Write a table as Parquet; a file that is there already must hold the same."""
    try:
        if isinstance(data, pd.DataFrame):
            table = pa.Table.from_pandas(data, preserve_index=False)
        else:
            table: Any = data.with_format("arrow")[:]
            table = table.replace_schema_metadata(data.features.arrow_schema.metadata)  # the names of labels
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"data: cannot be written as Parquet ({one_line(error)}); give plain columns") from None
    if path.exists():
        if not pa_parquet.read_table(path).equals(table):
            raise InputError(f"data: differs from {path}, with which the run began; give the same, or another output")
        return str(path)
    written.append(path)
    atomic_write(path, lambda file: pa_parquet.write_table(table, file, compression="zstd"))
    return str(path)


def take_out_of_data(run: Path, data: DataConfig, tasks: Collection[str]) -> dict[str, str] | None:
    """Take tasks out of the data that `stored` wrote into a run's folder.

    Documents that were named by their rows keep these names, in a column of their own.

    Args:
        run: The run's folder.
        data: Of its configuration.
        tasks: Names of tasks.

    Returns:
        What changes in section `data` of the configuration; None where the run has no data of its own.
    """
    given = {split: getattr(data, key) for split, key in KEYS.items()}
    files = {
        split: run / file_of_split(split)
        for split, path in given.items()
        if path and Path(path).name == file_of_split(split)
    }
    files = {split: file for split, file in files.items() if file.is_file()}
    for split, file in files.items():
        _take_out_of_file(file, data, tasks, "" if split == "train" else f"{split}/")
    return {"id_column": data.id_column or ROW} if files else None


def _take_out_of_file(file: Path, data: DataConfig, tasks: Collection[str], prefix: str) -> None:
    with pa_parquet.ParquetFile(file) as opened:
        table = with_label_names(file, opened.read(), opened.schema_arrow).replace_schema_metadata(None)
    before = table.num_rows, table.column_names
    for place, column in enumerate(table.columns):  # a dictionary, or the names of labels, would keep a task's name
        if pa.types.is_dictionary(column.type):
            table = table.set_column(place, table.column_names[place], column.cast(column.type.value_type))
    if data.id_column is None and ROW not in table.column_names:
        table = table.append_column(ROW, pa.array([f"{prefix}{row}" for row in range(table.num_rows)]))
    names = table.column(data.task_column).cast(pa.large_string()).to_pylist()
    table = table.filter(pa.array([name not in tasks for name in names]))
    if (table.num_rows, table.column_names) != before:
        atomic_write(file, lambda part: pa_parquet.write_table(table, part, compression="zstd"))


def _store_model(model: Any, tokenizer: Any, run: Path, written: list[Path]) -> dict[str, str]:
    """The settings that name the model: the files that it came from, if they still hold its weights, else a copy."""
    if not isinstance(model, PreTrainedModel) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"model={type(model).__name__}, tokenizer={type(tokenizer).__name__}: give a model of transformers that is "
            "loaded and its tokenizer, as in fit(model=model, tokenizer=tokenizer)"
        )
    settings = {"dtype": str(model.dtype).removeprefix("torch.")}
    source, folder = Path(model.config.name_or_path or "-"), run / BASE
    if _holds(source, model) and tokenizer.name_or_path == model.config.name_or_path:
        return settings | {"name": str(source.absolute())}
    if folder.exists():
        if not _holds(folder, model):
            raise InputError(
                f"model: differs from {folder}, with which the run began; give the same, or another output"
            )
        return settings | {"name": str(folder)}
    written.append(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    give_usual_modes(folder)
    return settings | {"name": str(folder)}


def _holds(folder: Path, model: PreTrainedModel) -> bool:
    """Whether the folder's files have the model's weights, in its precision."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    weights, tied = model.state_dict(), set(model._tied_weights_keys or {})  # type: ignore[arg-type]
    seen = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, no dictionary
                if name not in weights or not torch.equal(opened.get_tensor(name).to(weights[name]), weights[name]):
                    return False
                seen.add(name)
    return bool(files) and weights.keys() - seen <= tied


@contextmanager
def given_back(model: PreTrainedModel) -> Iterator[None]:
    """Within, a model may be frozen and moved; after it, it is as it was given."""
    device, training = model.device, model.training
    needs_gradient = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        placed(model, device).train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needs_gradient[name])
