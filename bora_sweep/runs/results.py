"""The results of a run: four Parquet tables, one file per trial in each, written whole or not at all.

`RUN/results/{trials,task_scores,curves,document_scores}/TRIAL.parquet`: plain Parquet with plain types, so that
`pd.read_parquet("RUN/results/task_scores")` reads a table where this package is not installed.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bora_sweep.errors import InputError, one_line
from bora_sweep.runs.storage import Folder, atomic_write, exists, folder_at, list_files, read_bytes

FORMAT = 1
"""Of the tables; a release that gives a column another meaning raises it. Files without it are of before it."""
FORMAT_KEY = b"bora_sweep_format"

_OURS = re.compile(r"[\w=+-][\w=+.-]*\.parquet")  # names that a trial's files have; copies have spaces or brackets
_SCORES = [("nll_nats", pa.float64()), ("num_tokens", pa.int64()), ("perplexity", pa.float64())]

SCHEMAS: dict[str, pa.Schema] = {
    "trials": pa.schema(
        [
            ("trial_id", pa.string()),
            ("status", pa.string()),  # running, finished, interrupted, failed
            ("protocol", pa.string()),  # ours, paper, published_code; null in older results
            ("method", pa.string()),  # map, zero_shot, fine_tuned, average, ties, dare, pfedme, vi
            ("tau", pa.float64()),  # null where there is no prior: zero_shot, merges
            ("learning_rate", pa.float64()),
            ("parametrization", pa.string()),
            ("solver", pa.string()),
            ("lora_rank", pa.int64()),
            ("lora_alpha", pa.float64()),
            ("lora_variant", pa.string()),
            ("prior_groups", pa.string()),  # JSON of tau per group, null where one tau holds for all
            ("started_from", pa.string()),  # trials whose adapters it began with or is made of, joined by commas
            ("seed", pa.int64()),
            ("attempts", pa.int64()),  # how often it was begun or taken up again
            ("epochs", pa.int64()),
            ("best_epoch", pa.int64()),
            *[(name, pa.float64()) for name in ("tau_estimate", "tau_low", "tau_high")],  # from the shared fit alone
            ("stopped_by", pa.string()),  # patience, max_epochs, divergence, asha, median
            *[(f"{split}_{name}", kind) for split in ("validation", "test") for name, kind in _SCORES],
            ("validation_macro_perplexity", pa.float64()),
            ("test_macro_perplexity", pa.float64()),
            ("reported_perplexity", pa.float64()),  # the protocol's, null where that is test_perplexity
            ("reported_as", pa.string()),  # what it is: of which split and epoch, and whether padding counts
            ("train_tokens", pa.int64()),  # scored, by this trial alone
            ("train_seconds", pa.float64()),
            ("tokens_per_second", pa.float64()),
            ("non_padding_fraction", pa.float64()),  # of what training passed through the model
            ("peak_memory_bytes", pa.int64()),
            ("device", pa.string()),
            ("host", pa.string()),
            ("versions", pa.string()),
            ("config_json", pa.string()),
            ("error", pa.string()),
            ("notes", pa.string()),  # what happened on the way: less memory than asked for, a damaged checkpoint
            ("started_at", pa.timestamp("us", tz="UTC")),
            ("ended_at", pa.timestamp("us", tz="UTC")),
        ]
    ),
    "task_scores": pa.schema(
        [
            ("trial_id", pa.string()),
            ("tau", pa.float64()),
            ("task", pa.string()),
            ("split", pa.string()),  # train (sizes alone), validation, test
            ("num_documents", pa.int64()),
            ("num_tokens", pa.int64()),
            ("nll_nats", pa.float64()),  # null for train, which is not scored
            ("perplexity", pa.float64()),
            ("floor_nll_nats", pa.float64()),  # of the true source, null where it is not known
            ("distance_to_global", pa.float64()),
            ("reported_perplexity", pa.float64()),  # the protocol's, beside the split that it is of
            ("posterior_std", pa.float64()),  # root mean square over the task's parameters; null but for vi
        ]
    ),
    "curves": pa.schema(
        [
            ("trial_id", pa.string()),
            ("epoch", pa.int64()),  # 0 is the model before training
            ("step", pa.int64()),
            ("split", pa.string()),  # train (over the epoch, adapters moving), validation
            ("nll_nats", pa.float64()),
            ("num_tokens", pa.int64()),
            ("log_prior", pa.float64()),  # Eq. 5 without its constant, see docs/results.md
            ("learning_rate", pa.float64()),
            ("seconds", pa.float64()),
        ]
    ),
    "document_scores": pa.schema(
        [
            ("trial_id", pa.string()),
            ("task", pa.string()),
            ("split", pa.string()),  # validation, test
            ("document_id", pa.string()),
            ("num_tokens", pa.int64()),
            ("nll_nats", pa.float64()),
            ("floor_nll_nats", pa.float64()),
        ]
    ),
}


@dataclass(frozen=True)
class Results:
    """The tables of one run or of several, in the columns of `SCHEMAS` and `run`, the run's folder."""

    trials: pd.DataFrame
    task_scores: pd.DataFrame
    curves: pd.DataFrame
    document_scores: pd.DataFrame


def write_table(run: Folder, table: str, trial_id: str, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    """Replace `trial_id`'s file in `table`, atomically; columns that `rows` lacks are null."""
    schema = SCHEMAS[table]
    frame = pd.DataFrame(rows).assign(trial_id=trial_id)
    columns = [_column(frame, name, kind) for name, kind in zip(schema.names, schema.types, strict=True)]
    made = pa.Table.from_arrays(columns, schema=schema.with_metadata({FORMAT_KEY: str(FORMAT)}))
    # Readers of a folder of Parquet skip names that begin with a dot, as a file's does until it is whole.
    atomic_write(run / "results" / table / f"{trial_id}.parquet", lambda file: pq.write_table(made, file))


def _column(frame: pd.DataFrame, name: str, kind: pa.DataType) -> pa.Array:
    return pa.array(frame[name], kind, from_pandas=True) if name in frame else pa.nulls(len(frame), kind)


def read_trial_row(run: Folder, trial_id: str) -> dict[str, Any] | None:
    """`trial_id`'s row of `trials`, None where it has none yet."""
    try:
        return _read_file(run / "results" / "trials" / f"{trial_id}.parquet", "trials").to_pylist()[0]
    except FileNotFoundError:
        return None


def trial_rows(run: Folder, trial_id: str | None = None) -> list[dict[str, Any]]:
    """The rows of `trials`, by trial; those of `trial_id` and of the path that it heads, where it is given."""
    pattern = "*.parquet" if trial_id is None else f"{trial_id}.*parquet"
    return [row for found in _tables(run, "trials", pattern) for row in found.to_pylist()]


def read_results(run: str | Folder | list[str | Folder]) -> Results:
    """The tables of a run, or of several below one another.

    Args:
        run: A run's folder, or a list of them; also `s3://…` and `gs://…`.

    Raises:
        InputError: The folder is not a run's or is given twice, no trial has written a result yet, or a file is damaged
            or of a newer version.
    """
    runs = [folder_at(path) for path in (run if isinstance(run, list) else [run])]
    for place, path in enumerate(runs):
        if path.absolute() in [other.absolute() for other in runs[:place]]:
            raise InputError(f"{path}: is given twice, and its documents would count twice; keep one")
        refuse_no_run(path)
        if next(_tables(path, "trials"), None) is None:
            raise InputError(f"{path}: no trial has begun yet; `bora-sweep status {path}` says how it stands")
    return Results(**{table: pd.concat([_read(path, table) for path in runs], ignore_index=True) for table in SCHEMAS})


def refuse_no_run(path: Folder) -> None:
    """Refuse a folder that holds neither a run's configuration nor results.

    Raises:
        InputError: It holds neither.
    """
    if not (exists(path / "config.yaml") or exists(path / "results" / "trials")):
        why = "" if exists(path) else ", for nothing is there"
        raise InputError(
            f"{path}: not a run's folder{why}; give the folder that `bora-sweep fit` or `bora-sweep sweep` wrote"
        )


def _read(run: Folder, table: str) -> pd.DataFrame:
    parts = list(_tables(run, table))
    joined = pa.concat_tables(parts) if parts else SCHEMAS[table].empty_table()
    return joined.to_pandas().assign(run=str(run))


def _tables(run: Folder, table: str, pattern: str = "*.parquet") -> Iterator[pa.Table]:
    """What `write_table` wrote, each file named by its trial; copies, and what systems leave, are passed over."""
    for file in list_files(run / "results" / table, pattern):
        if _OURS.fullmatch(file.name):
            found = _read_file(file, table)
            if len(found) and found["trial_id"][0].as_py() == file.name.removesuffix(".parquet"):
                yield found


def _read_file(file: Folder, table: str) -> pa.Table:
    """In the columns of `SCHEMAS`: those that an older version did not write are null."""
    content = read_bytes(file)
    try:
        opened = pq.ParquetFile(pa.BufferReader(content))
        written = int((opened.schema_arrow.metadata or {}).get(FORMAT_KEY, b"0"))
        if written > FORMAT:
            raise InputError(
                f"{file}: written by a newer bora_sweep (results format {written}, this one reads up to {FORMAT}); "
                "install the version that its `versions` column names"
            )
        found = opened.read()
        columns = [
            found[name].cast(kind) if name in found.column_names else pa.nulls(len(found), kind)
            for name, kind in zip(SCHEMAS[table].names, SCHEMAS[table].types, strict=True)
        ]
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file}: damaged ({one_line(error, limit=200)}); remove it, and --resume makes it anew"
        ) from None
    return pa.Table.from_arrays(columns, schema=SCHEMAS[table])


def objective(row: dict[str, Any]) -> float:
    """What a search minimises: validation nats per token of a row of `trials`; NaN where it has none."""
    tokens = row["validation_num_tokens"]
    return row["validation_nll_nats"] / tokens if tokens else math.nan


def perplexity(nll_nats: float, num_tokens: int) -> float:
    """exp(nats / tokens); NaN without tokens, inf where it overflows."""
    if not num_tokens:
        return math.nan
    try:
        return math.exp(nll_nats / num_tokens)
    except OverflowError:
        return math.inf
