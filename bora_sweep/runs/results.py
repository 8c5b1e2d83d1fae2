"""The results of a run: Parquet tables with one file per trial, each written atomically.

The files are `RUN/results/TABLE/TRIAL.parquet`, with the tables of `SCHEMAS`; only a run with metrics has
`predictions`, and only one that was asked for its groups has `similarity` and `groups`. They are plain Parquet with
plain types: `pd.read_parquet("RUN/results/task_scores")` reads a table where this package is not installed.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bora_sweep.config import PERPLEXITY
from bora_sweep.errors import InputError, one_line
from bora_sweep.runs.results_text import results_html, summary_text
from bora_sweep.runs.storage import Folder, atomic_write, exists, folder_at, list_files, read_bytes, remove

FORMAT = 1
"""Version of the tables. A release that changes the meaning of a column raises it. Older files have none."""
FORMAT_KEY = b"bora_sweep_format"

_TRIAL_FILE = re.compile(r"[\w=+-][\w=+.-]*\.parquet")  # copies that a system makes have spaces or brackets
_SCORES = [("nll_nats", pa.float64()), ("num_tokens", pa.int64()), ("perplexity", pa.float64())]

SCHEMAS: dict[str, pa.Schema] = {
    "trials": pa.schema(
        [
            ("trial_id", pa.string()),
            ("status", pa.string()),  # running, finished, interrupted, failed
            ("protocol", pa.string()),  # ours, paper, published_code; null in older results
            ("method", pa.string()),  # map, zero_shot, fine_tuned, average, …, as `Method` has them
            ("tau", pa.float64()),  # null where there is no prior: zero_shot, merges
            ("tau_2", pa.float64()),  # of groups of tasks; null where there are none, and in older results
            ("tau_learnt", pa.bool_()),  # whether the fit found it (prior.tau=learn); null in older results
            ("learning_rate", pa.float64()),
            ("parametrization", pa.string()),
            ("solver", pa.string()),
            ("lora_rank", pa.int64()),
            ("lora_alpha", pa.float64()),
            ("lora_variant", pa.string()),
            ("prior_groups", pa.string()),  # JSON of tau per group, null where one tau holds for all
            ("started_from", pa.string()),  # trials that it began with or is made of, joined by commas; of add a folder
            ("seed", pa.int64()),
            ("attempts", pa.int64()),  # how often it was begun or taken up again
            ("epochs", pa.int64()),
            ("best_epoch", pa.int64()),
            *[(name, pa.float64()) for name in ("tau_estimate", "tau_low", "tau_high")],  # from the shared fit alone
            ("stopped_by", pa.string()),  # patience, steps, max_epochs, divergence, asha, median
            *[(f"{split}_{name}", kind) for split in ("validation", "test") for name, kind in _SCORES],
            ("validation_macro_perplexity", pa.float64()),
            ("test_macro_perplexity", pa.float64()),
            ("reported_perplexity", pa.float64()),  # the protocol's, null where that is test_perplexity
            ("reported_as", pa.string()),  # what it is: of which split and epoch, and whether padding counts
            ("search_objective", pa.string()),  # what chose tau: perplexity or a metric; null in older results
            ("validation_metrics", pa.string()),  # JSON: metric to its mean score over documents; null without metrics
            ("test_metrics", pa.string()),
            ("adapter_bytes", pa.int64()),  # of one exported adapter's weights; null in older results
            ("base_bytes", pa.int64()),  # of the base's weights in memory; null in older results
            ("cut_token_fraction", pa.float64()),  # of all tokens of the data; null in older results
            ("train_tokens", pa.int64()),  # scored, by this trial alone
            ("train_seconds", pa.float64()),
            ("tokens_per_second", pa.float64()),
            ("non_padding_fraction", pa.float64()),  # of what training passed through the model
            ("peak_memory_bytes", pa.int64()),
            ("device", pa.string()),
            ("dtype", pa.string()),  # of the base's weights; null in older results
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
            ("group", pa.string()),  # of the task; null where there are no groups, and in older results
            ("split", pa.string()),  # train (sizes alone), validation, test
            ("num_documents", pa.int64()),
            ("num_tokens", pa.int64()),
            ("nll_nats", pa.float64()),  # null for train, which is not scored
            ("perplexity", pa.float64()),
            ("floor_nll_nats", pa.float64()),  # of the true source, null where it is not known
            ("unseen_nll_nats", pa.float64()),  # under Theta of a fit without the task; null where it was not made
            ("distance_to_global", pa.float64()),
            ("reported_perplexity", pa.float64()),  # the protocol's, beside the split that it is of
            ("posterior_std", pa.float64()),  # root mean square over the task's parameters; null but for vi
            ("metrics", pa.string()),  # JSON: metric to its mean score over the documents; null without metrics
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
            ("learnt_tau", pa.float64()),  # with prior.tau=learn, which moves it; else null
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
    "predictions": pa.schema(
        [
            ("trial_id", pa.string()),
            ("task", pa.string()),
            ("split", pa.string()),  # validation, test
            ("document_id", pa.string()),
            ("metric", pa.string()),  # accuracy, exact_match, rouge_l, or module:function
            ("prediction", pa.string()),
            ("reference", pa.string()),
            ("score", pa.float64()),  # higher is better
        ]
    ),
    "similarity": pa.schema(
        [
            ("trial_id", pa.string()),  # whose Theta the gradients are taken at
            ("task", pa.string()),
            ("other", pa.string()),  # each pair is there once
            ("similarity", pa.float32()),  # cosine with the noise taken off, -1 to 1
            ("low", pa.float32()),  # 95% interval; null where a task has a single training document
            ("high", pa.float32()),
            ("adapter_similarity", pa.float32()),  # of the adapters' B A; null where they do not differ
        ]
    ),
    "groups": pa.schema(
        [
            ("trial_id", pa.string()),
            ("task", pa.string()),
            ("group", pa.string()),  # null: no structure
            ("place", pa.int64()),  # from left to right below the tree
            ("silhouette", pa.float64()),  # how much liker to its own group than to the next, -1 to 1
            ("p_value", pa.float64()),  # of "no groups", the same in all rows
        ]
    ),
}


@dataclass(frozen=True, repr=False)
class Results:
    """The tables of one run or of several. Columns: those of `SCHEMAS`, and `run`, the run's folder."""

    trials: pd.DataFrame
    task_scores: pd.DataFrame
    curves: pd.DataFrame
    document_scores: pd.DataFrame
    predictions: pd.DataFrame
    """Empty without metrics."""
    similarity: pd.DataFrame
    """How alike each two tasks are; empty until `bora-sweep groups`."""
    groups: pd.DataFrame
    """The group of each task; empty until `bora-sweep groups`."""

    def __repr__(self) -> str:
        return f"Results({summary_text(self)})"

    def _repr_html_(self) -> str:
        return results_html(self)


def write_table(run: Folder, table: str, trial_id: str, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    """Write one trial's rows of a table, in place of those that are there.

    Args:
        run: The run's folder.
        table: A name in `SCHEMAS`.
        trial_id: The trial.
        rows: The rows; columns that they lack are null.
    """
    schema = SCHEMAS[table]
    frame = pd.DataFrame(rows).assign(trial_id=trial_id)
    columns = [_column(frame, name, kind) for name, kind in zip(schema.names, schema.types, strict=True)]
    arrow = pa.Table.from_arrays(columns, schema=schema.with_metadata({FORMAT_KEY: str(FORMAT)}))
    # A file's name begins with a dot until it is complete, and readers of a folder of Parquet skip such names.
    atomic_write(run / "results" / table / f"{trial_id}.parquet", lambda file: pq.write_table(arrow, file))


def _column(frame: pd.DataFrame, name: str, kind: pa.DataType) -> pa.Array:
    return pa.array(frame[name], kind, from_pandas=True) if name in frame else pa.nulls(len(frame), kind)


def read_trial_table(run: Folder, table: str, trial_id: str) -> list[dict[str, Any]]:
    """The trial's rows of a table.

    Raises:
        FileNotFoundError: It has none yet.
    """
    return _read_file(run / "results" / table / f"{trial_id}.parquet", table).to_pylist()


def read_trial_row(run: Folder, trial_id: str) -> dict[str, Any] | None:
    """The trial's row of `trials`; None where it has none yet."""
    try:
        return read_trial_table(run, "trials", trial_id)[0]
    except FileNotFoundError:
        return None


def read_table(run: Folder, table: str, trial_id: str) -> pd.DataFrame | None:
    """One trial's rows of a table; None where it has none."""
    try:
        return _read_file(run / "results" / table / f"{trial_id}.parquet", table).to_pandas()
    except FileNotFoundError:
        return None


def remove_table(run: Folder, table: str, trial_id: str) -> None:
    """Remove one trial's rows of a table."""
    remove(run / "results" / table / f"{trial_id}.parquet")


def trial_rows(run: Folder, trial_id: str | None = None) -> list[dict[str, Any]]:
    """The rows of `trials`, sorted by trial; with `trial_id` those of that trial and of the path that it begins."""
    pattern = "*.parquet" if trial_id is None else f"{trial_id}.*parquet"
    return [row for table in _tables(run, "trials", pattern) for row in table.to_pylist()]


def read_results(run: str | Folder | list[str | Folder]) -> Results:
    """The tables of a run, or of several runs stacked.

    Args:
        run: A run's folder, or a list of them; also `s3://…` and `gs://…`.

    Raises:
        InputError: No folder is given, one is not a run's or is given twice, no trial has begun yet, or a file is
            damaged or written by a newer version.
    """
    runs = [folder_at(path) for path in (run if isinstance(run, list) else [run])]
    if not runs:
        raise InputError("read_results([]): no run is given; give a run's folder, or a list of them")
    for place, path in enumerate(runs):
        if path.absolute() in [other.absolute() for other in runs[:place]]:
            raise InputError(f"{path}: is given twice, so its documents would count twice; keep one")
        refuse_no_run(path)
        if next(_tables(path, "trials"), None) is None:
            raise InputError(f"{path}: no trial has begun yet; `bora-sweep status {path}` shows the progress")
    return Results(**{table: pd.concat([_read(path, table) for path in runs], ignore_index=True) for table in SCHEMAS})


def refuse_no_run(path: Folder) -> None:
    """Refuse a folder that holds neither a run's configuration nor results.

    Raises:
        InputError: It holds neither.
    """
    if not (exists(path / "config.yaml") or exists(path / "results" / "trials")):
        why = "" if exists(path) else ", there is nothing"
        raise InputError(
            f"{path}: not a run's folder{why}; give the folder that `bora-sweep fit` or `bora-sweep sweep` wrote"
        )


def _read(run: Folder, table: str) -> pd.DataFrame:
    parts = list(_tables(run, table))
    joined = pa.concat_tables(parts) if parts else SCHEMAS[table].empty_table()
    return joined.to_pandas().assign(run=str(run))


def _tables(run: Folder, table: str, pattern: str = "*.parquet") -> Iterator[pa.Table]:
    """The tables that `write_table` wrote, one per trial. Other files, such as copies, are skipped."""
    files = list_files(run / "results" / table, pattern)
    for file in sorted(files, key=lambda file: file.name.removesuffix(".parquet")):  # 003 before its seed 003-1
        if _TRIAL_FILE.fullmatch(file.name):
            rows = _read_file(file, table)
            if len(rows) and rows["trial_id"][0].as_py() == file.name.removesuffix(".parquet"):
                yield rows


def _read_file(file: Folder, table: str) -> pa.Table:
    """One file in the columns of `SCHEMAS`; columns that an older version did not write are null."""
    content = read_bytes(file)
    try:
        opened = pq.ParquetFile(pa.BufferReader(content))
        written = int((opened.schema_arrow.metadata or {}).get(FORMAT_KEY, b"0"))
        if written > FORMAT:
            raise InputError(
                f"{file}: written by a newer bora_sweep (results format {written}, this one reads up to {FORMAT}); "
                "install the version that its `versions` column names"
            )
        rows = opened.read()
        columns = [
            rows[name].cast(kind) if name in rows.column_names else pa.nulls(len(rows), kind)
            for name, kind in zip(SCHEMAS[table].names, SCHEMAS[table].types, strict=True)
        ]
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file}: damaged ({one_line(error, limit=200)}); remove it, and --resume makes it again"
        ) from None
    return pa.Table.from_arrays(columns, schema=SCHEMAS[table])


def objective(row: dict[str, Any]) -> float:
    """The value that a search minimises, of a row of `trials`; every choice between trials is by it.

    Where `search_objective` is perplexity or null, it is validation nats per token. Where it is a metric, whose higher
    scores are better, it is minus its validation mean. NaN where the trial has no such score.
    """
    name = objective_name(row)
    if name != PERPLEXITY:
        metrics = row["validation_metrics"]
        score = json.loads(metrics).get(name) if isinstance(metrics, str) else None
        return math.nan if score is None else -score
    tokens = row["validation_num_tokens"]
    return row["validation_nll_nats"] / tokens if tokens else math.nan


def objective_name(row: dict[Any, Any]) -> str:
    """What chose tau, of a row of `trials`: perplexity, also in older results, or a metric."""
    name = row.get("search_objective")
    return name if isinstance(name, str) else PERPLEXITY


def perplexity(nll_nats: float, num_tokens: int) -> float:
    """exp(nats / tokens); NaN without tokens, inf where it overflows."""
    if not num_tokens:
        return math.nan
    try:
        return math.exp(nll_nats / num_tokens)
    except OverflowError:
        return math.inf
