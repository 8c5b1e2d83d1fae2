"""What the command line does, for Python."""

from typing import Any

from rich.console import Console

from bora_sweep.config import Setting
from bora_sweep.launch import claim_run, prepare_fit, prepare_sweep, processes, run_fit, run_prepared_sweep
from bora_sweep.runs.results import Results, read_results


def fit(*settings: Setting, resume: bool = False, quiet: bool = True, **sections: Any) -> Results:
    """One fit at `prior.tau`: adapters for every task and for what they share, Eq. 6, by early stopping on validation.

    Settings are those of `bora-sweep fit`: YAML files, `key=value`, dictionaries, a `Config`; keyword arguments are
    sections, or whole keys. What comes later wins, files and configurations first of all.

        bora_sweep.fit("conf/model.yaml", "prior.tau=100", data={"path": "speeches.parquet"}, output="runs/mine")

    Args:
        settings: What to fit; nothing at all: the embedded corpus and model.
        resume: Go on with the run at `output`, else with the newest fit in `runs/`.
        quiet: Whether to say nothing; else epochs are told on standard error.
        sections: More settings, for example `train={"max_epochs": 20}`.

    Returns:
        The run's four tables, a row of `trials` for the fit: nats and tokens as sums over each split's scored tokens,
        perplexity exp(nats / tokens). The run's folder, which also holds the adapters, is their column `run`.

    Raises:
        InputError: A setting, the corpus or the model is wrong; nothing was begun.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; a checkpoint was written, and `resume=True` goes on from it.
    """
    asked = _all(settings, sections)
    with processes(asked, resume) as is_rank_zero:
        console = _console(quiet or not is_rank_zero)
        begun = prepare_fit(asked, resume, console)
        if not is_rank_zero:
            run_fit(begun, console)
        else:
            with claim_run(begun, "fit"):
                run_fit(begun, console)
    return read_results(begun.run)


def sweep(*settings: Setting, resume: bool = False, quiet: bool = True, **sections: Any) -> Results:
    """A search for tau, each value a fit, on Ray: on this machine, or on the cluster at `ray.address`.

    tau is the precision of the prior that ties the tasks, in one over the square of a parameter: 0 is one model per
    task, `inf` one model for all. Both are fitted beside the values that are searched. Validation chooses.

        results = bora_sweep.sweep(data={"path": "speeches.parquet"}, model={"name": "facebook/opt-350m"})
        bora_sweep.Report(results).answer

    Args:
        settings: As for `fit`, of `bora-sweep sweep`; nothing at all: the embedded corpus and model.
        resume: Go on with the run at `output`, else with the newest sweep in `runs/`.
        quiet: Whether to say nothing; else trials are told on standard error as they end.
        sections: More settings, for example `search={"num_trials": 20}`.

    Returns:
        The run's four tables. A trial that failed has `status` failed and the reason in `error`; the others went on.

    Raises:
        InputError: A setting, the corpus or the model is wrong; nothing was begun.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; what finished is kept, and `resume=True` goes on.
    """
    console = _console(quiet)
    begun = prepare_sweep(_all(settings, sections), resume, console)
    with claim_run(begun, "sweep"):
        ended = run_prepared_sweep(begun, console)
    if not ended:
        raise KeyboardInterrupt
    return read_results(begun.run)


def _all(settings: tuple[Setting, ...], sections: dict[str, Any]) -> list[Setting]:
    return [*settings, *([sections] if sections else [])]


def _console(quiet: bool) -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
