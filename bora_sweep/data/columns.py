"""Read the documents of a table: check the columns that the configuration names, and convert their values."""

import numpy as np
import pandas as pd
import pyarrow as pa

from bora_sweep.config import DataConfig
from bora_sweep.errors import InputError, plural


def named_columns(config: DataConfig) -> dict[str, str]:
    """The columns that the configuration names: configuration key to column name."""
    columns = {
        "data.text_column": config.text_column,
        "data.task_column": config.task_column,
        "data.id_column": config.id_column,
        "data.time_column": config.time_column,
    }
    return {key: name for key, name in columns.items() if name is not None}


def documents_of(table: pa.Table, config: DataConfig) -> pd.DataFrame:
    """The rows of `table` as documents.

    Args:
        table: Has the columns that `config` names.
        config: Which column is which.

    Returns:
        Columns task, text, document_id, floor_nll_nats (NaN) and time, in the order of the rows.

    Raises:
        InputError: A value is missing or has the wrong type, or an id occurs twice.
    """
    documents = pd.DataFrame(
        {
            "task": _strings(table, "data.task_column", config, is_name=True),
            "text": _strings(table, "data.text_column", config, is_name=False),
            "document_id": np.arange(table.num_rows).astype(str),
            "floor_nll_nats": np.nan,
            "time": 0,
        }
    )
    if config.id_column is not None:
        documents["document_id"] = ids = _strings(table, "data.id_column", config, is_name=True)
        if ids.duplicated().any():
            second = int(ids.duplicated().argmax())
            first = int((ids == ids[second]).argmax())
            raise InputError(
                f"{config.path}: rows {first} and {second} (counted from 0) both have {ids[second]!r} in column "
                f"{config.id_column!r}; data.id_column needs a column without repeats, or drop it to use row numbers"
            )
    if config.time_column is not None:
        documents["time"] = _times(_decoded(table, config.time_column), config)
    return documents


def _strings(table: pa.Table, key: str, config: DataConfig, is_name: bool) -> pd.Series:
    """The column that `key` names, as strings. No value may be missing. Names may be whole numbers, but not blank."""
    name = named_columns(config)[key]
    column = _decoded(table, name)
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_null(kind) or (is_name and pa.types.is_integer(kind))):
        needed = "text or whole numbers (1, not 1.0)" if is_name else "text"
        raise InputError(f"{config.path}: column {name!r} ({key}) holds values of type {kind}; it needs {needed}")
    strings = column.cast(pa.large_string()).to_pandas()
    missing = strings.isna() | (strings.str.strip() == "") if is_name else strings.isna()
    if missing.any():
        raise InputError(
            f"{config.path}: column {name!r} ({key}) has no value in {plural(int(missing.sum()), 'row')}, the first "
            f"is row {int(missing.argmax())} (counted from 0); fill the gaps, or remove these rows"
        )
    return strings


def _decoded(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column, with the values of a dictionary in place of its codes."""
    column = table.column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _times(column: pa.ChunkedArray, config: DataConfig) -> pd.Series:
    """The column as numbers, else as dates.

    Booleans, durations and times of day are neither, nor are words such as `now`, whose date would be that of the run.
    """
    kinds = ("string", "large_string", "string_view", "integer", "floating", "decimal", "date", "timestamp")
    if not any(getattr(pa.types, f"is_{kind}")(column.type) for kind in kinds):
        raise _not_a_time(column, 0, config)
    values = column.to_pandas()
    numbers = pd.Series(pd.to_numeric(values, errors="coerce"))
    finite = np.isfinite(numbers)
    if not column.null_count and finite.all():
        rounded = numbers.dtype.kind == "f" and values.astype(str).str.fullmatch(r"[+-]?\d+").all()
        return values.map(int).astype(object) if rounded else numbers
    texts = values.astype(str)
    dates = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)
    is_no_date = dates.isna() | texts.isin(["now", "today"])  # pandas reads them as the current day
    if is_no_date.any():
        neither = is_no_date & ~finite
        raise _not_a_time(column, int((neither if neither.any() else is_no_date).argmax()), config)
    return dates


def _not_a_time(column: pa.ChunkedArray, row: int, config: DataConfig) -> InputError:
    value = column[row].as_py()
    shown = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    shown = shown.lower() if isinstance(value, bool) else shown[:60]
    return InputError(
        f"{config.path}: row {row} (counted from 0): {shown} in column {config.time_column!r} (data.time_column) is "
        f"not a time, of type {column.type}; write numbers throughout, or dates such as 1998-10-07"
    )
