"""The search as an Optuna study in the run's folder, for optuna-dashboard: written from the trials' rows, never read.

The run's Parquet is its only state. A sweep that is resumed makes the file anew from there, so it holds each trial
once, whatever happened to the process that wrote it before.
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
from bora_sweep.tune.search_space import is_within, params_in, search_space

JOURNAL, STUDY = "optuna/journal.log", "tau"
STATES = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL, "running": TrialState.RUNNING}

log = logging.getLogger(__name__)


class StudyMirror(tune.Callback):
    """Writes the rows of a sweep's trials to `RUN/optuna/journal.log`; a new file at each start of the sweep.

    A trial of the study is a MAP fit of the sweep's own rank that lies within the bounds of the search. Its value is
    what the search minimises (`bora_sweep.runs.results.objective`); its attributes are the trial's id and seed. No file
    grows in an object store: there the whole journal is written again whenever a trial starts or ends.

    Args:
        run: The run's folder.
        config: What is searched.
        groups: As for `TauSearch`.
        rows: Of `trials`, by trial id; the caller updates them.
    """

    def __init__(self, run: Folder, config: Config, groups: Sequence[str], rows: Mapping[str, dict[str, Any]]) -> None:
        self.journal, self.config, self.rows = run / JOURNAL, config, rows
        self.space = search_space(config, groups[1:])
        self.scratch: tempfile.TemporaryDirectory | None = None
        if isinstance(run, Path):
            remove(self.journal)
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self.file = str(self.journal)
        else:
            self.scratch = tempfile.TemporaryDirectory(prefix="bora-sweep-optuna-")
            self.file = str(Path(self.scratch.name) / "journal.log")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage = JournalStorage(JournalFileBackend(self.file, JournalFileOpenLock(self.file)))
        optuna.create_study(storage=self.storage, study_name=STUDY, direction="minimize")
        self.study_id = self.storage.get_study_id_from_name(STUDY)
        self.trials: dict[str, tuple[int, TrialState]] = {}
        """By the sweep's trial id: Optuna's number of the trial, and its state there."""
        self.update(rows)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is never made."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial started, or started again."""
        self.update(self.rows)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:  # noqa: ARG002
        """A trial reported; values of a path may have ended since."""
        self.update(self.rows)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial ended."""
        self.update(self.rows)

    def update(self, rows: Mapping[str, dict[str, Any]], has_ended: bool = False) -> None:
        """Write what is new in the rows. A study that cannot be written does not end the sweep.

        Args:
            rows: Of `trials`, by trial id.
            has_ended: Whether the sweep has ended. Before, a trial that failed may be tried again and counts as
                running; after, an interrupted one counts as failed, because Optuna has no state for it.
        """
        before = len(self.trials), self._num_ended()
        try:
            for trial_id in sorted(rows):
                self._write(rows[trial_id], has_ended)
            if self.scratch is not None and before != (len(self.trials), self._num_ended()):
                write_bytes(self.journal, Path(self.file).read_bytes())
        except Exception as error:
            log.warning("%s: not kept up to date (%s)", self.journal, one_line(error))

    def close(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the rows as they are at the end of the sweep."""
        self.update({row["trial_id"]: row for row in rows}, has_ended=True)
        if self.scratch is not None:
            self.scratch.cleanup()

    def _num_ended(self) -> int:
        return sum(state.is_finished() for _, state in self.trials.values())

    def _write(self, row: dict[str, Any], has_ended: bool) -> None:
        """Add a trial to the study, or end it there."""
        params = self._params(row)
        state = STATES.get(row["status"], TrialState.FAIL)
        if state == TrialState.COMPLETE and not math.isfinite(objective(row)):
            state = TrialState.FAIL
        if state == TrialState.FAIL and not has_ended:
            state = TrialState.RUNNING
        number, earlier = self.trials.get(row["trial_id"], (None, None))
        if params is None or state == earlier or (earlier is not None and earlier.is_finished()):
            return
        values = [objective(row)] if state == TrialState.COMPLETE else None
        if number is None:
            number = self.storage.create_new_trial(self.study_id, self._new_trial(row, params, state, values))
        else:
            self.storage.set_trial_state_values(number, state, values)
        self.trials[row["trial_id"]] = number, state

    def _params(self, row: dict[str, Any]) -> dict[str, float] | None:
        """The trial's place in the search space; None where it has none."""
        if row["method"] != "map" or row["tau"] is None or row["lora_rank"] != self.config.lora.rank:
            return None
        if row.get("tau_learnt"):  # by the fit, not by the search
            return None
        config = json.loads(row["config_json"])
        rates = {name: config["train"][name] for name in ("lr_per_tau", "learning_rate")}
        prior = config["prior"]
        taus = {"tau": row["tau"], "tau_2": prior.get("tau_2")}
        params = params_in(self.space, **taus, **rates, group_scales=prior["group_scales"])
        return params if is_within(self.space, params) else None

    def _new_trial(
        self, row: dict[str, Any], params: dict[str, float], state: TrialState, values: list[float] | None
    ) -> FrozenTrial:
        trial = optuna.trial.create_trial(
            state=state,
            values=values,
            params=params,
            distributions=dict[str, Any](self.space),
            user_attrs={"trial_id": row["trial_id"], "seed": row["seed"]},
        )
        trial.datetime_start = _local_time(row["started_at"]) or trial.datetime_start
        if state.is_finished():
            trial.datetime_complete = _local_time(row["ended_at"]) or trial.datetime_complete
        return trial


def _local_time(moment: datetime | None) -> datetime | None:
    """In this machine's time zone, without the zone, as Optuna stores it."""
    return None if moment is None else moment.astimezone().replace(tzinfo=None)
