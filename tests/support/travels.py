"""Runs that are moved and handed on: their inputs, and commands as a user gives them."""

import io
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny import WORDS, make_base, make_tokenizer

from bora_sweep.cli import main
from bora_sweep.config import with_values
from bora_sweep.launch import claim_run
from bora_sweep.model.base import load_base
from bora_sweep.prepare import prepare_fit
from bora_sweep.process import Interrupted
from bora_sweep.report import write_report
from bora_sweep.trials.trial import Trial, run_pack

SECRET = "zebra"
"""A word that each document has."""
SMALL = ["model.max_tokens=24", "lora.rank=2", "train.max_epochs=2", "train.device=cpu", "train.learning_rate=0.02"]
TRIALS = {"000": 0.0, "001": float("inf"), "002": 30.0}


def said(*arguments: object) -> tuple[int, str]:
    """The exit code of a command, and all that it prints, on one line."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(output):
        code = main([str(argument) for argument in arguments])
    return code, " ".join(output.getvalue().split())


def make_questions(tasks: dict[str, int], seed: int = 0) -> pd.DataFrame:
    """Prompts with completions, each with the word `SECRET`."""
    rng = np.random.default_rng(seed)
    rows = [{"task": task, "prompt": " ".join([SECRET, *rng.choice(WORDS, 4)]), "completion": f"w{number} {SECRET}"}
            for number, (task, size) in enumerate(tasks.items()) for _ in range(size)]  # fmt: skip
    return pd.DataFrame(rows)


def make_inputs(place: Path) -> list[str]:
    """Write a base and documents into a folder. Returns the settings that name them."""
    make_base("opt", dtype=torch.float32).save_pretrained(place / "base")
    make_tokenizer().save_pretrained(place / "base")
    make_questions({"ann": 14, "bob": 12, "cid": 12}).to_json(place / "s.jsonl", orient="records", lines=True)
    return [f"data.path={place / 's.jsonl'}", f"model.name={place / 'base'}", *SMALL]


def make_runs(place: Path) -> None:
    """Write inputs into a folder, `fit`, which was cut off, and `sweep` with a trial that failed and a report."""
    inputs = make_inputs(place)
    prepared = prepare_fit([*inputs, "train.max_epochs=9", f"output={place / 'fit'}"], False, Console(quiet=True))
    base = load_base(prepared.config.model, prepared.config.data)
    with claim_run(prepared, "fit", Console(quiet=True)), suppress(Interrupted):
        trial = Trial("fit", prepared.config)
        run_pack([trial], prepared.corpus, lambda: base, prepared.run, check_stop=_stop_after(12))
    assert list((place / "fit" / "trials" / "fit").glob("checkpoint-*"))
    prepared = prepare_fit([*inputs, "metrics=[accuracy]", f"output={place / 'sweep'}"], False, Console(quiet=True))
    with claim_run(prepared, "sweep", Console(quiet=True)):
        for trial_id, tau in TRIALS.items():
            config = with_values(prepared.config, prior={"tau": tau})
            run_pack([Trial(trial_id, config)], prepared.corpus, lambda: base, prepared.run)
        with pytest.raises(ValueError, match=SECRET):
            run_pack([Trial("003", prepared.config)], prepared.corpus, _refuse, prepared.run)
        write_report(prepared.run)
    (prepared.run / "error.txt").write_text(f"ValueError: {SECRET}")


def _refuse():
    raise ValueError(f"the text {SECRET!r} is refused")


def _stop_after(steps: int):
    left = iter(range(steps))

    def check_stop() -> None:
        if next(left, None) is None:
            raise Interrupted

    return check_stop
