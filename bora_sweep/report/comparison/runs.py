"""The runs of a comparison: each with its own analysis, and what tells whether it compares with another."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bora_sweep.config import flatten
from bora_sweep.errors import InputError, redact
from bora_sweep.report.added import is_added
from bora_sweep.report.stats.analysis import Analysis, analyse
from bora_sweep.report.stats.pool_trials import summarise
from bora_sweep.report.stats.summary import TRAIN, Setting
from bora_sweep.runs.results import SCHEMAS, Results, read_results
from bora_sweep.runs.storage import Folder, folder_at, read_bytes

_RECORD = "documents.parquet"
_OF_NO_EFFECT = ("output", "tracking", "ray", "prior.tau", "method", "train.checkpoint_minutes")
"""Keys and sections that do not decide a score, and what a sweep varies within a run."""


@dataclass(frozen=True)
class ComparedRun:
    """A run beside others."""

    name: str
    """The name of its folder; the whole path where two folders have the same name."""
    analysis: Analysis
    """By the measure that chose tau."""
    results: Results
    fingerprint_of: dict[tuple[str, str], str]
    """Of the text of each document, by task and id; empty for a run of an older release."""

    @property
    def best(self) -> Setting:
        """The fit that is best on validation."""
        return self.analysis.summary.settings[self.analysis.summary.best]

    def setting(self, place: str) -> Setting | None:
        """The fit at a place that runs have in common: `best`, `independent` (tau = 0) or `shared` (tau = inf)."""
        m = getattr(self.analysis.summary, place)
        return None if m is None else self.analysis.summary.settings[m]

    def scores(self, setting: Setting, split: str) -> pd.DataFrame:
        """Document by document: rows of `document_scores`, or of `predictions` by the metric that chose tau."""
        measure = self.analysis.measure
        rows = self.results.predictions if measure.is_metric else self.results.document_scores
        rows = rows.loc[rows["metric"] == measure.name] if measure.is_metric else rows
        of_seed = {(row["run"], row["trial_id"]): row["seed"] for row in self.results.trials.to_dict("records")}
        keys = list(zip(rows["run"], rows["trial_id"], strict=True))
        rows = rows.assign(seed=[float(of_seed[key]) for key in keys])
        wanted = set(setting.trials)
        return rows.loc[[key in wanted for key in keys]].loc[lambda kept: kept["split"] == split]

    def documents(self, split: str) -> pd.DataFrame:
        """What was scored, a row for each document: `amount`, tokens or by a metric the reference, and `fingerprint`.

        The index is (task, document_id).
        """
        amount = "reference" if self.analysis.measure.is_metric else "num_tokens"
        one_trial = self.scores(self.best, split).drop_duplicates(["task", "document_id"])
        rows = one_trial.set_index(["task", "document_id"]).sort_index()
        fingerprints = [self.fingerprint_of.get((str(task), str(name))) for task, name in rows.index]
        return pd.DataFrame({"amount": rows[amount], "fingerprint": pd.Series(fingerprints, rows.index, dtype=object)})

    @cached_property
    def values(self) -> dict[str, Any]:
        """What the best fit was made with: the keys of its configuration, its data, its type of weights."""
        rows = [row for row in self.results.trials.to_dict("records") if (row["run"], row["trial_id"]) in
                set(self.best.trials)]  # fmt: skip
        summary, values = self.analysis.summary, {}
        for row in rows:
            config = flatten(json.loads(row["config_json"])) if isinstance(row["config_json"], str) else {}
            more = {"type of the base's weights": row["dtype"], "device": row["device"]}
            for key, value in (config | {name: text for name, text in more.items() if isinstance(text, str)}).items():
                values.setdefault(key, []).append(value)
        shown = {key: _value_text(several) for key, several in values.items() if not _has_no_effect(key)}
        return shown | {
            "tasks": f"{len(summary.tasks):,}",
            "training documents": f"{summary.num_documents_DL[:, TRAIN].sum():,.0f}",
            "training tokens": f"{summary.num_tokens_DL[:, TRAIN].sum():,.0f}",
        }


def _has_no_effect(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _OF_NO_EFFECT)


def _value_text(values: list[Any]) -> str:
    """As YAML has it, without passwords; of seeds that differ, each."""
    texts = dict.fromkeys(value if isinstance(value, str) else json.dumps(value) for value in values)
    return redact(", ".join(texts))


def read_runs(paths: list[str | Folder]) -> list[ComparedRun]:
    """Each run with its analysis.

    Raises:
        InputError: Fewer than two runs, one is given twice or is not a run's folder, is a run of `add`, or no fit of it
            has finished.
    """
    if not isinstance(paths, (list, tuple)):
        raise InputError(f"{paths}: give a list of two runs or more")
    if len(paths) < 2:
        raise InputError(f"{', '.join(map(str, paths)) or 'no run'}: a comparison needs two runs or more")
    folders = [folder_at(path) for path in paths]
    whole = read_results([*folders])
    names = [folder.absolute().name for folder in folders]
    names = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    runs = []
    for name, folder in zip(names, folders, strict=True):
        tables = {table: getattr(whole, table) for table in SCHEMAS}
        results = Results(**{table: rows.loc[rows["run"] == str(folder)] for table, rows in tables.items()})
        if is_added(results):
            raise InputError(f"{folder}: is a run of `add`, of new tasks alone; give runs of `fit` and `sweep`")
        runs.append(ComparedRun(name, analyse(summarise(results)), results, _fingerprints(folder)))
    return runs


def _fingerprints(run: Folder) -> dict[tuple[str, str], str]:
    """Of the texts of a run's documents; empty where an older release made the run."""
    try:
        content = read_bytes(run / _RECORD)
    except FileNotFoundError:
        return {}
    try:
        record = pq.ParquetFile(pa.BufferReader(content)).read(["task", "document_id", "fingerprint"]).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{run / _RECORD}: damaged ({error}); restore it from a copy, or remove it") from None
    return dict(zip(zip(record["task"], record["document_id"], strict=True), record["fingerprint"], strict=True))
