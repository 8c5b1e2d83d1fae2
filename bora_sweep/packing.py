"""Packs a run into one tar file for somebody else: `bora-sweep pack`.

A pack has what report, status, export, generate and add need. It has no text of the corpus unless that is asked for.
The same run gives the same bytes: members are sorted, and have no owner and no time of their own.
"""

import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bora_sweep import __version__
from bora_sweep.config import Config
from bora_sweep.data.known_documents import DOCUMENTS as RECORD
from bora_sweep.errors import InputError, one_line, plural, redact
from bora_sweep.model.base import model_folder
from bora_sweep.report import write_report
from bora_sweep.runs.folder import ADD, FINGERPRINTS, PACKED, config_of, refuse_half_forgotten, trials_left_out
from bora_sweep.runs.places import BASE, DATA, DOCUMENTS, INPUTS, MODEL, refuse_missing, value_of
from bora_sweep.runs.results import SCHEMAS, Results, read_results
from bora_sweep.runs.run_lock import read_driver
from bora_sweep.runs.source import SOURCE
from bora_sweep.runs.storage import (
    Folder,
    atomic_write,
    exists,
    folder_at,
    list_files,
    read_bytes,
    write_bytes,
)
from bora_sweep.runs.tar import write_tar
from bora_sweep.serve.load import finished_row
from bora_sweep.train.checkpoint import ADAPTERS
from bora_sweep.trials.add import START
from bora_sweep.trials.fingerprints import MODEL_FILES, check_base_model, check_moved
from bora_sweep.tune.numbering import POINTS

BASE_FILES = (*MODEL_FILES, "generation_config.json", "chat_template.jinja", "LICENSE*")
WITHHELD = "left out of the pack, as it may quote documents"
"""In place of the error of a trial."""
MEND = "resume the run once with {key}=… of where it is now, then pack it"
KNOWN = {
    "results", "trials", "report", START, "config.yaml", POINTS, FINGERPRINTS, RECORD, SOURCE, PACKED, INPUTS, BASE,
    DATA,
}  # fmt: skip
"""Names in a run's folder that a pack has, or says that it does not have."""


@dataclass(frozen=True)
class Packed:
    """A file that `pack` has written."""

    file: Folder
    num_bytes: int
    holds: tuple[str, ...]
    """What is in it, in words."""
    left_out: tuple[str, ...]
    """What is not, and how it would be."""


def pack(
    run: str | Folder, file: str | Folder, *, all_trials: bool = False, with_data: bool = False, with_base: bool = False
) -> Packed:
    """Write a run into a tar file, with what a colleague needs: results, the best adapters, configuration and report.

    The run does not change. Names of tasks, ids of documents and digests of their texts are in the pack; no text is,
    unless `with_data`. An adapter may carry something of the text that it was fitted on.

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.
        file: A new file, whose name ends with `.tar`.
        all_trials: Also the adapters of other trials than the best, and checkpoints. A resume needs them.
        with_data: Also the documents, the texts in predictions, and the errors of trials, which may quote documents.
        with_base: Also the base model, unless it is one of the Hugging Face hub.

    Returns:
        What the file holds, and what was left out.

    Raises:
        InputError: There is no such run, a process works on it, tasks are being taken out of it, the file is there
            already, or documents or base are to be packed and are gone or changed. Then nothing is written.
    """
    run, file = folder_at(run), folder_at(file)
    if not file.name.endswith(".tar"):
        raise InputError(f"{file}: a pack is a tar file, not compressed; give a name that ends with .tar")
    if exists(file):
        raise InputError(f"{file}: is there already; give another name, or remove it")
    results = read_results(run)
    _refuse_in_use(run)
    contents = _Contents(run, config_of(run), results)
    contents.add_results(with_data)
    contents.add_trials(all_trials)
    contents.add_documents(with_data)
    contents.add_base(with_base)
    contents.add_report()
    contents.note_others()

    def write(part: Path) -> None:
        write_tar(part, {f"{contents.name}/{path}": source for path, source in contents.files.items()})
        _refuse_in_use(run)  # since it was checked
        sizes.append(part.stat().st_size)

    sizes: list[int] = []
    atomic_write(file, write)
    return Packed(file, sizes[-1], tuple(contents.holds), tuple(contents.left_out))


def _refuse_in_use(run: Folder) -> None:
    driver = read_driver(run)
    if driver is not None and driver.is_alive:
        raise InputError(f"{run}: process {driver.pid} on {driver.host} works on it; let it end, then pack it")
    refuse_half_forgotten(run)


class _Contents:
    """What goes into a pack, and what does not.

    Args:
        run: The run's folder.
        config: Of the run.
        results: Its tables.

    Raises:
        InputError: The configuration holds a secret.
    """

    def __init__(self, run: Folder, config: Config, results: Results) -> None:
        self.run, self.config, self.results = run, config, results
        self.name = (os.path.basename(os.path.abspath(run)) if isinstance(run, Path) else run.name) or "run"
        self.rows: list[dict[str, Any]] = results.trials.to_dict("records")
        self.files: dict[str, Folder | bytes] = {}
        """From the path in the run to a file, or to its content."""
        self.holds, self.left_out = list[str](), list[str]()
        if redact(config.to_yaml()) != config.to_yaml():
            raise InputError(f"{run / 'config.yaml'}: holds a secret of this environment; take it out, then pack it")

    def add_results(self, with_data: bool) -> None:
        """The tables, without texts unless the data is packed; the configuration, and digests."""
        errors, texts = sum(map(_may_quote, self.rows)), 0
        for row in self.rows:
            for table in SCHEMAS:
                path = f"results/{table}/{row['trial_id']}.parquet"
                if exists(self.run / path):
                    change = {} if with_data else self._withheld(table, row)
                    self.files[path] = _changed(self.run / path, change) if change else self.run / path
                    texts += table == "predictions" and bool(change)
        self.holds.append(f"the results of {plural(len(self.rows), 'trial')}")
        for path in ("config.yaml", POINTS, FINGERPRINTS, RECORD, SOURCE):
            if exists(self.run / path):
                self.files[path] = self.run / path
        self.holds.append("the configuration, and ids, splits and digests of documents")
        if texts:
            self.left_out.append(f"the texts in predictions of {plural(texts, 'trial')} (--with-data)")
        if errors and not with_data:
            self.left_out.append(f"the errors of {plural(errors, 'trial')}, which may quote text (--with-data)")

    def add_report(self) -> None:
        """A report of what the pack has: one that the run has may be older, and shows errors that may quote text."""
        with tempfile.TemporaryDirectory(prefix="bora-sweep-") as scratch:
            staged = Path(scratch) / self.name
            for path, source in self.files.items():
                if path.startswith("results/") or path in ("config.yaml", FINGERPRINTS, SOURCE):
                    write_bytes(staged / path, source if isinstance(source, bytes) else read_bytes(source))
            try:
                write_report(staged)
            except InputError as error:
                self.left_out.append(f"a report: {one_line(error).replace(str(staged), str(self.run))}")
                return
            for path, file in _tree(staged / "report", "report").items():
                self.files[path] = read_bytes(file).replace(f"{scratch}/".encode(), b"")  # the column `run` names it
        self.holds.append("a report of them")

    def _withheld(self, table: str, row: dict[str, Any]) -> dict[str, str | None]:
        """The columns of a trial's table that may quote documents, with what they have in the pack."""
        if table == "predictions":
            return {"prediction": None, "reference": None}
        return {"error": WITHHELD} if table == "trials" and _may_quote(row) else {}

    def add_trials(self, all_trials: bool) -> None:
        """The adapters of the best trial, or the files of all."""
        trials = [folder for folder in list_files(self.run / "trials", "*") if folder.is_dir()]
        found = {folder.name: _tree(folder, f"trials/{folder.name}") for folder in trials}
        found |= {START: start} if (start := _tree(self.run / START, START)) else {}
        kept = found if all_trials else self._best_adapters()
        for files in kept.values():
            self.files |= files
        if all_trials:
            self.holds.append("all files of all trials")
        elif kept:
            self.holds.append(f"the adapters of trial {', '.join(kept)}, the best")
        others = sum(files != kept.get(name, {}) for name, files in found.items())
        if others:
            self.left_out.append(f"adapters or checkpoints of {plural(others, 'trial')} (--all-trials)")
        missing = max(others, trials_left_out(self.run))  # it may be unpacked from a pack itself
        about = {"trials_left_out": missing, "version": __version__}
        self.files[PACKED] = json.dumps(about, indent=1).encode()

    def _best_adapters(self) -> dict[str, dict[str, Folder]]:
        finished = [row for row in self.rows if row["status"] == "finished"]
        if any(row["method"] in ("map", ADD) for row in finished):
            trial_id = finished_row(self.results, self.run, "best")["trial_id"]
        elif len(finished) == 1:
            trial_id = finished[0]["trial_id"]
        else:
            return {}
        path = f"trials/{trial_id}/{ADAPTERS}"
        return {trial_id: {path: self.run / path}} if exists(self.run / path) else {}

    def add_documents(self, with_data: bool) -> None:
        """The documents, wherever they are on this machine."""
        local = {key: Path(place) for key in DOCUMENTS if (place := value_of(self.config, key)) is not None}
        local = {key: path for key, path in local.items() if path.is_absolute()}
        if not local:
            if self.config.data.path is not None:
                self.left_out.append(f"the documents, of {self.config.data.path}, which is fetched by name")
            return
        if not with_data:
            self.left_out.append(f"the documents of data.path={self.config.data.path} (--with-data)")
            return
        refuse_missing(self.run, self.config, local, MEND)
        if exists(self.run / FINGERPRINTS):
            check_moved(self.run, self.config, local)
        for key, path in local.items():
            place = self._place(key, path)
            self.files |= _tree(path, place) if path.is_dir() else {place: path}
        self.holds.append(f"the documents of data.path={self.config.data.path}")

    def add_base(self, with_base: bool) -> None:
        """The base model, if it is a folder of this machine or the embedded one."""
        model, data = self.config.model, self.config.data
        if model.name is not None and not Path(model.name).is_absolute():
            self.left_out.append(f"the base {model.name}, which is fetched by name")
            return
        what = "the embedded base" if model.name is None else f"the base of {MODEL}={model.name}"
        if not with_base:
            self.left_out.append(f"{what} (--with-base)")
            return
        refuse_missing(self.run, self.config, [MODEL], MEND)
        check_base_model(self.run, model, data)
        folder = model_folder(model, data)
        files = sorted({file for pattern in BASE_FILES for file in folder.glob(pattern) if file.is_file()})
        self.files |= {f"{self._place(MODEL, folder)}/{file.name}": file for file in files}
        self.holds.append(what)

    def _place(self, key: str, path: Path) -> str:
        """Where an input is in the pack: where it is in the run, else where an unpacked run looks for it."""
        if isinstance(self.run, Path) and path.is_relative_to(self.run.absolute()):
            return path.relative_to(self.run.absolute()).as_posix()
        return f"{INPUTS}/{key}/{path.name}"

    def note_others(self) -> None:
        """What else the run's folder holds."""
        known = {path.partition("/")[0] for path in self.files} | KNOWN
        others = [file.name for file in list_files(self.run, "*") if file.name not in known]
        if others:
            self.left_out.append(f"other files of the folder: {', '.join(others)}")


def _may_quote(row: dict[str, Any]) -> bool:
    """Whether a trial's row has an error of any code. That of a finished trial says how it diverged."""
    return row["status"] != "finished" and isinstance(row["error"], str)


def _tree(folder: Folder, path: str) -> dict[str, Folder]:
    """The files in a folder and below, without hidden ones, by their paths in the run."""
    files: dict[str, Folder] = {}
    for file in list_files(folder, "*"):
        if file.name.startswith("."):
            continue
        if file.is_dir():
            files |= _tree(file, f"{path}/{file.name}")
        else:
            files[f"{path}/{file.name}"] = file
    return files


def _changed(file: Folder, change: dict[str, str | None]) -> bytes:
    """A Parquet file with other values in some of its columns."""
    table = pq.ParquetFile(pa.BufferReader(read_bytes(file))).read()
    for name, value in change.items():
        place = table.schema.get_field_index(name)
        if place >= 0:
            field = table.schema.field(place)
            table = table.set_column(place, field, pa.array([value] * len(table), field.type))
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()
