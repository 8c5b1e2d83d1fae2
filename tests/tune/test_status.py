"""What `status` shows of a run that has just started, is running, was cut off or has ended, from its files alone."""

import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.runs.folder import create_run
from bora_sweep.runs.results import write_table
from bora_sweep.runs.run_lock import DEAD_AFTER, DRIVER_FILE, run_lock
from bora_sweep.runs.storage import Folder, write_bytes
from bora_sweep.tune.live_view import SweepView
from bora_sweep.tune.numbering import new_numbering
from bora_sweep.tune.status import run_status
from bora_sweep.tune.time_left import time_left

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONFIG = load_config(["search.num_trials=4"])  # and three baselines: seven fits


def put(run: Folder, trial_id: str, status: str, tau: float | None, perplexity: float | None = None, **columns) -> None:
    """A row of `trials`, as a worker of CONFIG's sweep would write it."""
    row = {"status": status, "method": "map", "tau": tau, "seed": 0, "attempts": 1, "epochs": 3, "train_seconds": 50.0}
    scores = {} if perplexity is None else {"validation_perplexity": perplexity, "test_perplexity": 100 - perplexity}
    write_table(run, "trials", trial_id, [{**row, "lora_rank": CONFIG.lora.rank, **scores, **columns}])


def times(seconds: float, started: datetime = NOW) -> dict[str, datetime]:
    return {"started_at": started, "ended_at": started + timedelta(seconds=seconds)}


def create(run: Folder) -> Folder:
    create_run(CONFIG, run)
    return run


def half_done(run: Folder) -> Folder:
    """Zero-shot and two fits have ended, one failed, one runs."""
    create(run)
    now = datetime.now(UTC)
    put(run, "000", "finished", None, 40.0, method="zero_shot", epochs=0, **times(1))
    put(run, "001", "finished", 0.0, 30.0, **times(100))
    put(run, "002", "finished", math.inf, 20.0, **times(200))
    put(run, "003", "failed", 7.0, None, error="no")
    put(run, "004", "running", 70.0, 25.0, started_at=now - timedelta(seconds=50))
    return run


def shown(run: Folder | str, capsys, *arguments: str) -> str:
    """What `status` prints, its white space collapsed."""
    assert main(["status", str(run), *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_run_that_has_just_started(tmp_path, capsys):
    with run_lock(create(tmp_path), "sweep"):
        text = shown(tmp_path, capsys)
    assert f"process {os.getpid()} on {socket.gethostname()} works on it" in text
    assert "0 of 7 trials finished, 7 waiting · time left: not known before a fit has ended" in text


def test_a_sweep_for_a_metric_shows_it_beside_perplexity_and_its_best_trial(tmp_path, capsys):
    """Of equal metrics the lower perplexity is best."""
    create(tmp_path)
    scores = {"001": (0.0, 30.0, 0.5), "002": (math.inf, 20.0, 0.25), "003": (7.0, 25.0, 0.5), "004": (70.0, 40.0, 0.5)}
    for trial_id, (tau, perplexity, accuracy) in scores.items():
        means = {"search_objective": "accuracy", "validation_metrics": json.dumps({"accuracy": accuracy})}
        put(tmp_path, trial_id, "finished", tau, perplexity, **means, **times(1))
    put(tmp_path, "005", "running", 70.0, 5.0, search_objective="accuracy", started_at=NOW)
    text = shown(tmp_path, capsys)
    assert "best so far tau = 7, validation accuracy 0.500, validation perplexity 25.00" in text
    assert "validation accuracy" in text
    assert text.index("0.500 30.00") < text.index("0.250 20.00") < text.index("cut off")


def test_a_sweep_that_is_running(tmp_path, capsys):
    with run_lock(half_done(tmp_path), "sweep"):
        text = shown(tmp_path, capsys)
    assert "3 of 7 trials finished, 1 running, 1 failed, 2 waiting" in text
    assert "best so far tau = inf, validation perplexity 20.00" in text  # test would choose 001
    assert "004 70 0 running 3 25.00 50 0:0" in text
    # Two that wait, 150 s each, and one that has run for 50 s of 150; less on a slow machine.
    assert re.search(r"about 0:0\d:\d\d left \(estimated from 2 that ended, 1 at once\)", text)


def test_running_trials_are_cut_off_where_the_driver_is_gone(tmp_path, capsys):
    half_done(tmp_path)
    resume = f"resume with bora-sweep sweep --resume output={tmp_path}"
    assert resume in shown(tmp_path, capsys)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for driver in (
        {"host": socket.gethostname(), "pid": gone.pid, "alive_at": time.time()},
        {"host": "elsewhere", "pid": 1, "alive_at": time.time() - DEAD_AFTER - 60},
    ):
        write_bytes(tmp_path / DRIVER_FILE, json.dumps({"command": "sweep", **driver}).encode())
        text = shown(tmp_path, capsys, "--watch", "600")
        assert f"cut off: process {driver['pid']} on {driver['host']} is gone" in text
        assert resume in text
        assert "1 failed, 1 cut off, 2 waiting" in text
        assert " left" not in text


def test_a_sweep_that_has_ended(tmp_path, capsys):
    create(tmp_path)
    for number in range(7):
        put(tmp_path, f"{number:03d}", "finished", 10.0**number, 30.0 - number)
    text = shown(tmp_path, capsys)
    assert f"{tmp_path}: ended trial" in text.replace(f"{tmp_path} :", f"{tmp_path}:")
    assert "7 of 7 trials finished · best so far tau = 1e+06" in text
    put(tmp_path, "003", "failed", 7.0)
    assert "to try failed trials again" in shown(tmp_path, capsys)


def test_the_time_left_of_a_fit_is_not_known(tmp_path, capsys):
    create(tmp_path)
    put(tmp_path, "fit", "running", 100.0, 25.0, started_at=datetime.now(UTC))
    with run_lock(tmp_path, "fit"):
        text = shown(tmp_path, capsys)
    assert "0 of 1 trials finished, 1 running · time left: not known, a fit ends when" in text
    assert "bora-sweep fit --resume" in shown(tmp_path, capsys)


def test_results_without_a_configuration_are_shown(tmp_path, capsys):
    put(tmp_path, "000", "finished", 3.0, 11.0)
    (tmp_path / "results" / "trials" / ".001.parquet.77.part").write_bytes(b"half")
    text = shown(tmp_path, capsys)
    assert "1 trials finished · best so far tau = 3, validation perplexity 11.00" in text


def test_many_trials_are_cut_to_a_screen(tmp_path, capsys):
    create(tmp_path)
    for number in range(40):
        put(tmp_path, f"{number:03d}", "finished", 1.0 + number, 90.0 - number)
    put(tmp_path, "040", "running", 99.0)
    text = shown(tmp_path, capsys)
    assert "and 17 more" in text
    assert "039" in text
    assert "040" in text
    assert "000 " not in text


@contextmanager
def process_on(run: Path) -> Iterator[subprocess.Popen]:
    """A process that drives `run` until it reads a line."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as driven:
        own = {"command": "sweep", "host": socket.gethostname(), "pid": driven.pid, "alive_at": time.time()}
        write_bytes(run / DRIVER_FILE, json.dumps(own).encode())
        yield driven


def test_a_status_is_of_one_moment(tmp_path):
    with process_on(half_done(tmp_path)) as driven:
        status = run_status(tmp_path)
        driven.communicate(b"\n")
    assert status.is_driven
    assert not run_status(tmp_path).is_driven


def test_a_watch_ends_with_the_run(tmp_path):
    with process_on(half_done(tmp_path)) as driven:
        watching = subprocess.Popen(
            [sys.executable, "-m", "bora_sweep.cli", "status", str(tmp_path), "--watch", "0.2"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watching.stdout is not None
        first = watching.stdout.readline()
        assert "works on it" in first
        driven.communicate(b"\n")
        rest, _ = watching.communicate(timeout=60)
        assert watching.returncode == 0
        assert "is gone" in rest


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_watch_needs_a_pause(seconds, tmp_path, capsys):
    assert main(["status", str(tmp_path), "--watch", seconds]) == 2
    assert "--watch" in capsys.readouterr().err


def rows_of(run: Path) -> list[dict]:
    return run_status(run).rows


def test_time_left_counts_the_trials_that_run_at_once(tmp_path):
    create(tmp_path)
    for number, seconds in ((1, 100), (2, 200)):
        put(tmp_path, f"{number:03d}", "finished", 1.0, 9.0, **times(seconds))
    assert (
        time_left(rows_of(tmp_path), CONFIG, new_numbering(CONFIG), NOW)
        == "about 0:10:00 left (estimated from 2 that ended, 1 at once)"
    )
    for number, seconds in ((3, 100), (4, 500)):
        put(tmp_path, f"{number:03d}", "running", 1.0, started_at=NOW - timedelta(seconds=seconds))
    # 50 s and 0 s of those that run, 150 s each of two that wait, two at a time.
    assert (
        time_left(rows_of(tmp_path), CONFIG, new_numbering(CONFIG), NOW)
        == "about 0:02:55 left (estimated from 2 that ended, 2 at once)"
    )


def test_a_log_has_a_line_and_a_summary_for_each_trial_that_ends(tmp_path):
    create(tmp_path)
    log = StringIO()
    view = SweepView(CONFIG, tmp_path, Console(file=log, width=200))
    one, other = (SimpleNamespace(trial_id=name, config={"fits": [{"trial_id": name}]}) for name in ("001", "002"))
    for trial in (one, other):
        view.on_trial_start(0, [], trial)
    now = datetime.now(UTC)
    started = {"started_at": now - timedelta(seconds=100)}
    put(tmp_path, "001", "finished", 1.0, 9.0, ended_at=now, **started)
    put(tmp_path, "002", "running", 2.0, **started)
    view.on_trial_result(0, [], one, {})  # its last report comes before Tune calls it complete
    line, summary = log.getvalue().splitlines()
    assert line.startswith("001  tau = 1, seed 0: finished, 3 epochs, validation perplexity 9.00")
    assert "1 of 7 trials finished, 1 running, 5 waiting · best so far tau = 1" in summary
    assert summary.endswith("left (estimated from the one that ended, 2 at once)")
    view.on_trial_complete(0, [], one)
    put(tmp_path, "002", "failed", 2.0, **started, error="no memory [/x]")
    view.on_trial_error(0, [], other)
    assert "002  tau = 2, seed 0: failed, no memory [/x]" in log.getvalue()
    assert log.getvalue().count("001  tau = 1") == 1
    assert log.getvalue().splitlines()[-1].endswith("(estimated from the one that ended, 1 at once)")


def test_a_notebook_has_one_table_that_changes_and_the_log_has_each_trial_once(tmp_path, monkeypatch, caplog):
    create(tmp_path)
    caplog.set_level(logging.INFO, "bora_sweep")
    outputs: list[dict] = []

    def display(shown: dict, **_: bool) -> SimpleNamespace:
        outputs.append(shown)
        return SimpleNamespace(update=lambda new, raw: outputs.__setitem__(-1, new))  # noqa: ARG005

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    one = SimpleNamespace(trial_id="001", config={"fits": [{"trial_id": "001"}]})
    with SweepView(CONFIG, tmp_path, Console(force_jupyter=True, width=200)) as view:
        view.on_trial_start(0, [], one)
        put(tmp_path, "001", "finished", 1.0, 9.0, **times(100))
        view.on_trial_complete(0, [], one)
    (shown,) = outputs
    assert shown["text/html"].startswith("<pre")
    assert "1 of 7 trials finished" in shown["text/plain"]
    (record,) = caplog.records
    assert record.message.startswith("001  tau = 1, seed 0: finished, 3 epochs")


def test_pauses_between_two_tries_do_not_count_as_time_of_the_fit(tmp_path):
    create(tmp_path)
    put(tmp_path, "001", "finished", 1.0, 9.0, **{**times(9_999), "attempts": 2})
    assert (
        time_left(rows_of(tmp_path), CONFIG, new_numbering(CONFIG), NOW)
        == "about 0:04:10 left (estimated from the one that ended, 1 at once)"
    )


def test_time_left_of_a_path_rests_on_the_fits_after_its_first(tmp_path):
    config = load_config(["search.mode=path", "search.num_trials=4"])
    create_run(config, tmp_path)
    for name, tau in (("000", None), ("001", 0.0), ("002", math.inf)):
        put(tmp_path, name, "finished", tau, 9.0, **times(900))
    assert time_left(rows_of(tmp_path), config, new_numbering(config), NOW) is None
    put(tmp_path, "002.01", "finished", 1e5, 9.0, **times(10))
    assert (
        time_left(rows_of(tmp_path), config, new_numbering(config), NOW)
        == "about 0:00:30 left (estimated from the one that ended, 1 at once)"
    )


def test_status_imports_neither_torch_nor_ray(tmp_path):
    create(tmp_path)
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'optuna', 'transformers', 'accelerate'): sys.modules[name] = None\n"
        f"from bora_sweep.cli import main; sys.exit(main(['status', {str(tmp_path)!r}]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
