"""`bora-sweep fit`."""

import argparse
import json

from rich.markup import escape

from bora_sweep.commands.common import (
    COMMON_KEYS,
    DONE,
    RUN_KEYS,
    add_settings,
    err,
    out,
    split_paths,
    with_corpus,
    with_resume_hint,
)
from bora_sweep.config import Setting

TEXT = "Fit all tasks at one value of prior.tau, or learn it; write adapters and scores."
SECTIONS = [*RUN_KEYS, "init_from", "method"]
KEYS = [*COMMON_KEYS, "prior.tau"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_settings(parser, "prior.tau=100")


def run(parsed: argparse.Namespace) -> int:
    """Fit at one value of tau."""
    from bora_sweep.launch import join_processes

    settings = with_corpus(*split_paths(parsed.settings))
    with join_processes(settings, parsed.resume) as is_rank_zero:
        err.quiet = out.quiet = not is_rank_zero
        return _fit(settings, parsed.resume, is_rank_zero)


def _fit(settings: list[Setting], resume: bool, is_rank_zero: bool) -> int:
    from bora_sweep.launch import claim_run, run_fit
    from bora_sweep.prepare import prepare_fit

    prepared = prepare_fit(settings, resume, err)
    if not is_rank_zero:
        run_fit(prepared, err)
        return DONE

    def work() -> int:
        with claim_run(prepared, "fit", err):
            row = run_fit(prepared, err)
        if row["stopped_by"] == "divergence":
            err.print(f"[yellow]ended at its best epoch:[/] {escape(row['error'])}")
        test, epoch = row["test_perplexity"], row["best_epoch"]
        means = json.loads(row["test_metrics"] or "{}")
        shown = "".join(f", {escape(name)} {mean:.3f}" for name, mean in means.items())
        out.print(f"test perplexity {test:.3f}{shown}, best epoch {epoch}, results in {escape(str(prepared.run))}")
        return DONE

    return with_resume_hint("fit", prepared.run, work)
