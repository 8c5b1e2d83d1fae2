"""The search as an Optuna study in the run's folder, for optuna-dashboard: written from the trials' rows, never read.

What is true of a run is in its Parquet. A sweep that is taken up again makes the file anew from there, so that it holds
each trial once, whatever became of the process that wrote it before.
"""

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from bora_sweep.config import Config
from bora_sweep.errors import one_line
from bora_sweep.runs.results import objective
from bora_sweep.runs.storage import Folder, remove, write_bytes
from bora_sweep.tune.search import SCALE, search_space

JOURNAL, STUDY = "optuna/journal.log", "tau"
STATES = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL, "running": TrialState.RUNNING}

log = logging.getLogger(__name__)


class StudyMirror(tune.Callback):
    """Keeps `RUN/optuna/journal.log` as the rows of a sweep's trials are; a new one at each start of the sweep.

    A trial of the study is a MAP fit of the sweep's own rank that lies within the bounds of the search: its value is
    validation nats per token, its attributes are the trial's id and seed. In an object store, which has no file that
    grows, the journal is put anew as a whole whenever a trial ended.

    Args:
        run: The run's folder.
        config: What is searched.
        groups: As for `TauSearch`.
        rows: Of `trials`, by trial; somebody else keeps them up to date.
    """

    def __init__(self, run: Folder, config: Config, groups: Sequence[str], rows: Mapping[str, dict[str, Any]]) -> None:
        self.place, self.config, self.rows = run / JOURNAL, config, rows
        self.space = search_space(config, groups[1:])
        self.scratch: tempfile.TemporaryDirectory | None = None
        if isinstance(run, Path):
            remove(self.place)
            self.place.parent.mkdir(parents=True, exist_ok=True)
            self.file = str(self.place)
        else:
            self.scratch = tempfile.TemporaryDirectory(prefix="bora-sweep-optuna-")
            self.file = str(Path(self.scratch.name) / "journal.log")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage = JournalStorage(JournalFileBackend(self.file, JournalFileOpenLock(self.file)))
        optuna.create_study(storage=self.storage, study_name=STUDY, direction="minimize")
        self.study_id = self.storage.get_study_id_from_name(STUDY)
        self.held: dict[str, tuple[int, TrialState]] = {}
        """By the sweep's trial: Optuna's, and its state there."""
        self.update(rows)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as with the view."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial began, or began again."""
        self.update(self.rows)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        """A trial reported; on a path, values may have ended since."""
        self.update(self.rows)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial ended."""
        self.update(self.rows)

    def update(self, rows: Mapping[str, dict[str, Any]], has_ended: bool = False) -> None:
        """Write what is new in the rows. A study that cannot be written is no reason to end a sweep.

        Args:
            rows: Of `trials`, by trial.
            has_ended: Whether the sweep has: until then a trial that failed may be taken up again, and counts as
                running; then what was interrupted counts as failed, for Optuna knows no other word.
        """
        before = len(self.held), self._num_ended()
        try:
            for trial_id in sorted(rows):
                self._put(rows[trial_id], has_ended)
            if self.scratch is not None and before != (len(self.held), self._num_ended()):
                write_bytes(self.place, Path(self.file).read_bytes())
        except Exception as error:
            log.warning("%s: not kept up to date (%s)", self.place, one_line(error))

    def close(self, rows: Sequence[dict[str, Any]]) -> None:
        """At the end of the sweep, with its rows as they then are."""
        self.update({row["trial_id"]: row for row in rows}, has_ended=True)
        if self.scratch is not None:
            self.scratch.cleanup()

    def _num_ended(self) -> int:
        return sum(state.is_finished() for _, state in self.held.values())

    def _put(self, row: dict[str, Any], has_ended: bool) -> None:
        """Add a trial, or bring it to its end."""
        params = self._params(row)
        state = STATES.get(row["status"], TrialState.FAIL)
        if state == TrialState.COMPLETE and not math.isfinite(objective(row)):
            state = TrialState.FAIL
        if state == TrialState.FAIL and not has_ended:
            state = TrialState.RUNNING
        number, earlier = self.held.get(row["trial_id"], (None, None))
        if params is None or state == earlier or (earlier is not None and earlier.is_finished()):
            return
        values = [objective(row)] if state == TrialState.COMPLETE else None
        if number is None:
            number = self.storage.create_new_trial(self.study_id, self._frozen(row, params, state, values))
        else:
            self.storage.set_trial_state_values(number, state, values)
        self.held[row["trial_id"]] = number, state

    def _params(self, row: dict[str, Any]) -> dict[str, float] | None:
        """The trial's place in the search's space; None where it has none."""
        if row["method"] != "map" or row["tau"] is None or row["lora_rank"] != self.config.lora.rank:
            return None
        own = json.loads(row["config_json"])
        scales = {f"{SCALE}{name}": scale for name, scale in (own["prior"]["group_scales"] or {}).items()}
        known = {"tau": row["tau"], "lr_per_tau": own["train"]["lr_per_tau"], **scales}
        params = {name: known.get(name, 1.0) for name in self.space}
        within = (self.space[name].low <= value <= self.space[name].high for name, value in params.items())
        return params if all(within) else None

    def _frozen(
        self, row: dict[str, Any], params: dict[str, float], state: TrialState, values: list[float] | None
    ) -> FrozenTrial:
        added = optuna.trial.create_trial(
            state=state,
            values=values,
            params=params,
            distributions=dict[str, Any](self.space),
            user_attrs={"trial_id": row["trial_id"], "seed": row["seed"]},
        )
        added.datetime_start = _local(row["started_at"]) or added.datetime_start
        if state.is_finished():
            added.datetime_complete = _local(row["ended_at"]) or added.datetime_complete
        return added


def _local(moment: datetime | None) -> datetime | None:
    """As Optuna has it: this machine's clock, without a zone."""
    return None if moment is None else moment.astimezone().replace(tzinfo=None)
