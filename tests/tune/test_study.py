"""The Optuna study beside a sweep: its trials are those of the Parquet, also after a crash."""

import json
import math
from datetime import UTC, datetime, timedelta

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from bora_sweep.config import load_config, with_values
from bora_sweep.tune.study import JOURNAL, StudyMirror

CONFIG = load_config(["search.tau_low=1", "search.tau_high=1e4"])
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(trial_id: str, tau: float | None, status: str, nats: float | None = None, **columns) -> dict:
    config = with_values(CONFIG, prior={"tau": tau or 0.0})
    return {
        "trial_id": trial_id, "method": "map", "tau": tau, "status": status, "seed": 0, "config_json": config.to_json(),
        "lora_rank": CONFIG.lora.rank, "validation_nll_nats": nats,
        "validation_num_tokens": None if nats is None else 10,
        "started_at": NOW, "ended_at": None if nats is None else NOW + timedelta(minutes=3), **columns,
    }  # fmt: skip


def by_id(rows: list[dict]) -> dict[str, dict]:
    return {row["trial_id"]: row for row in rows}


def load_study(run) -> optuna.Study:
    """As optuna-dashboard opens it."""
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(run / JOURNAL))))


def trials_of(run) -> list[tuple]:
    """(trial id, tau, state, value) of each trial in the study."""
    return [(t.user_attrs["trial_id"], t.params["tau"], t.state, t.value) for t in load_study(run).trials]


def test_trials_appear_when_they_start_and_end(tmp_path):
    rows = {}
    mirror = StudyMirror(tmp_path, CONFIG, (), rows)
    assert trials_of(tmp_path) == []
    rows |= by_id([row("003", 10.0, "running"), row("004", 100.0, "running")])
    mirror.on_trial_start(0, [], None)
    assert trials_of(tmp_path) == [("003", 10.0, TrialState.RUNNING, None), ("004", 100.0, TrialState.RUNNING, None)]
    rows |= by_id([row("003", 10.0, "finished", 25.0), row("004", 100.0, "failed")])  # may be taken up again
    mirror.on_trial_complete(0, [], None)
    assert trials_of(tmp_path) == [("003", 10.0, TrialState.COMPLETE, 2.5), ("004", 100.0, TrialState.RUNNING, None)]
    mirror.close(list(rows.values()))
    assert trials_of(tmp_path)[1] == ("004", 100.0, TrialState.FAIL, None)
    assert load_study(tmp_path).best_params == {"tau": 10.0}


def test_a_resumed_sweep_has_each_trial_once(tmp_path):
    first = [row("003", 10.0, "finished", 25.0), row("004", 100.0, "running"), row("005", 7.0, "interrupted")]
    StudyMirror(tmp_path, CONFIG, (), by_id(first))  # killed here
    assert [state for _, _, state, _ in trials_of(tmp_path)] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
        TrialState.RUNNING,
    ]
    resumed = StudyMirror(tmp_path, CONFIG, (), by_id(first))
    resumed.close([first[0], row("004", 100.0, "finished", 22.0), row("005", 7.0, "finished", 23.0)])
    assert trials_of(tmp_path) == [
        ("003", 10.0, TrialState.COMPLETE, 2.5),
        ("004", 100.0, TrialState.COMPLETE, 2.2),
        ("005", 7.0, TrialState.COMPLETE, 2.3),
    ]
    trial = load_study(tmp_path).trials[0]
    assert trial.datetime_complete - trial.datetime_start == timedelta(minutes=3)


def test_fits_outside_the_search_space_are_left_out(tmp_path):
    rows = [
        row("000", None, "finished", 40.0, method="zero_shot"),
        row("001", 0.0, "finished", 30.0),
        row("002", math.inf, "finished", 30.0),
        row("003", 1e9, "finished", 30.0),
        row("004", 10.0, "finished", 1.0, lora_rank=99),
        row("005", 10.0, "finished", 1.0, method="vi"),
        row("006", 10.0, "finished", math.nan),
        row("007.01", 20.0, "finished", 21.0),
    ]
    StudyMirror(tmp_path, CONFIG, (), by_id(rows)).close(rows)
    assert trials_of(tmp_path) == [("006", 10.0, TrialState.FAIL, None), ("007.01", 20.0, TrialState.COMPLETE, 2.1)]


def test_group_scales_and_lr_per_tau_are_parameters(tmp_path):
    config = with_values(
        CONFIG, prior={"parametrization": "centered", "groups": "matrix"}, train={"lr_per_tau": 1e-5, "solver": "adamw"}
    )
    fitted = with_values(config, prior={"tau": 5.0, "group_scales": {"A": 1.0, "B": 3.0}}, train={"lr_per_tau": 2e-5})
    mirror = StudyMirror(tmp_path, config, ("A", "B"), {})
    mirror.close([row("003", 5.0, "finished", 20.0, config_json=fitted.to_json())])
    assert load_study(tmp_path).trials[0].params == {"tau": 5.0, "lr_per_tau": 2e-5, "scale.B": 3.0}


def test_a_study_that_cannot_be_written_does_not_end_the_sweep(tmp_path, caplog, monkeypatch):
    mirror = StudyMirror(tmp_path, CONFIG, (), {})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror.storage, "create_new_trial", full)
    mirror.close([row("003", 10.0, "finished", 25.0)])
    assert "not kept up to date (OSError: [Errno 28] No space left on device)" in caplog.text


def test_in_an_object_store_the_journal_is_a_whole_object(tmp_path):
    """By way of fsspec's memory, which has no files that grow either."""
    upath = pytest.importorskip("upath")
    run = upath.UPath(f"memory://{tmp_path.name}")
    rows = by_id([row("003", 10.0, "running")])
    mirror = StudyMirror(run, CONFIG, (), rows)
    rows |= by_id([row("003", 10.0, "finished", 25.0)])
    mirror.on_trial_complete(0, [], None)
    (tmp_path / JOURNAL).parent.mkdir()
    (tmp_path / JOURNAL).write_bytes((run / JOURNAL).read_bytes())
    assert trials_of(tmp_path) == [("003", 10.0, TrialState.COMPLETE, 2.5)]
    mirror.close(list(rows.values()))
    assert json.loads((run / JOURNAL).read_bytes().splitlines()[-1])
