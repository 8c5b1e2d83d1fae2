"""The commands `fit`, `sweep` and `add` as Python functions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Never

from rich.console import Console

from bora_sweep.config import (
    DataConfig,
    LoraConfig,
    Method,
    MetricConfig,
    ModelConfig,
    PriorConfig,
    Protocol,
    RayConfig,
    SearchConfig,
    Setting,
    TrainConfig,
    is_section,
    settings_of,
)
from bora_sweep.console import LoggedConsole
from bora_sweep.errors import InputError
from bora_sweep.launch import claim_run, join_processes, run_fit, run_prepared_sweep
from bora_sweep.prepare import prepare_fit, prepare_sweep
from bora_sweep.run_results import Results, read_results


def fit(
    *settings: Setting,
    resume: bool = False,
    quiet: bool = True,
    tokenizer: Any = None,
    data: DataConfig | Mapping[str, Any] | str | Path | Any = None,
    model: ModelConfig | Mapping[str, Any] | str | Path | Any = None,
    lora: LoraConfig | Mapping[str, Any] | None = None,
    prior: PriorConfig | Mapping[str, Any] | None = None,
    train: TrainConfig | Mapping[str, Any] | None = None,
    search: SearchConfig | Mapping[str, Any] | None = None,
    ray: RayConfig | Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
    metric: MetricConfig | Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    init_from: str | Path | None = None,
    method: Method | None = None,
    tracking: str | None = None,
    output: str | Path | None = None,
    **others: Never,
) -> Results:
    """Fit adapters for every task, and for what they share, at one value of `prior.tau`.

    The fit maximises Eq. 6 (`bora_sweep.model.map_objective`), with early stopping on the validation split.

    Settings are those of `bora-sweep fit`: YAML files, `key=value`, dictionaries, or a `Config`. Keyword arguments are
    sections or top-level keys. Files and configurations are merged first; of equal kinds the later one wins.

        bora_sweep.fit("conf/model.yaml", "prior.tau=100", data="speeches.parquet", output="runs/mine")
        bora_sweep.fit("data.task_column=customer", data=frame, model=model, tokenizer=tokenizer)

    The other arguments are the keys of `Config`: sections, for example `train={"max_epochs": 20}`, or
    `train=TrainConfig(…)`, which gives every key of its section; and single keys such as `output`. None: not given.

    Args:
        settings: What to fit; without any: the embedded corpus and model.
        resume: Resume the run at `output`, else the newest fit in `runs/`.
        quiet: Print nothing; otherwise epochs are reported on standard error.
        tokenizer: Of a `model` that is given as an object.
        data: The section, or a corpus: its path, or a DataFrame, a `Dataset` or a `DatasetDict` of `datasets`, which is
            written into the run's folder.
        model: The section, or a base: its name or folder, or a model that is loaded, which is written there if its
            files have other weights.

    Returns:
        The run's tables; `trials` has one row. Nats and tokens are sums over the scored tokens of each split, and
        perplexity is exp(nats / tokens). The column `run` is the run's folder, which also has the adapters.

    Raises:
        InputError: A setting, the corpus or the model is wrong. Nothing was written.
        KeyboardInterrupt: Ctrl-C or SIGTERM. A checkpoint was written, and `resume=True` continues from it.
    """
    sections = _given(
        others, data=data, model=model, lora=lora, prior=prior, train=train, search=search, ray=ray, metrics=metrics,
        metric=metric, protocol=protocol, init_from=init_from, method=method, tracking=tracking, output=output,
    )  # fmt: skip
    corpus, base = _objects(sections, tokenizer)
    with ExitStack() as stack:
        together = stack.enter_context(_stored(settings, sections, "fit", data=corpus, model=base, tokenizer=tokenizer))
        if base is not None:
            from bora_sweep.in_memory import given_back

            stack.enter_context(given_back(base))
        is_rank_zero = stack.enter_context(join_processes(together, resume))
        console = _console(quiet) if is_rank_zero else Console(quiet=True)
        prepared = prepare_fit(together, resume, console)
        with claim_run(prepared, "fit", console) if is_rank_zero else nullcontext():
            run_fit(prepared, console, base)
    return read_results(prepared.run)


def sweep(
    *settings: Setting,
    resume: bool = False,
    quiet: bool = True,
    data: DataConfig | Mapping[str, Any] | str | Path | Any = None,
    model: ModelConfig | Mapping[str, Any] | str | Path | Any = None,
    lora: LoraConfig | Mapping[str, Any] | None = None,
    prior: PriorConfig | Mapping[str, Any] | None = None,
    train: TrainConfig | Mapping[str, Any] | None = None,
    search: SearchConfig | Mapping[str, Any] | None = None,
    ray: RayConfig | Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
    metric: MetricConfig | Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    init_from: str | Path | None = None,
    method: Method | None = None,
    tracking: str | None = None,
    output: str | Path | None = None,
    **others: Never,
) -> Results:
    """Search for tau: one fit per value, on Ray, on this machine or on the cluster at `ray.address`.

    tau is the precision of the prior that ties the tasks, in units of 1 / parameter^2. At 0 each task has its own
    model; at `inf` all share one. Both are fitted beside the values that are searched. Validation chooses tau.

        results = bora_sweep.sweep(data="speeches.parquet", model="facebook/opt-350m", search={"num_trials": 20})
        bora_sweep.Report(results).answer

    The other arguments are the keys of `Config`, as for `fit`, for example `search={"num_trials": 20}`.

    Args:
        settings: As for `fit`, with the keys of `bora-sweep sweep`; without any: the embedded corpus and model.
        resume: Resume the run at `output`, else the newest sweep in `runs/`.
        quiet: Print nothing; otherwise each trial is reported on standard error when it ends.
        data: As for `fit`.
        model: The section, or the name or folder of a base.

    Returns:
        The run's tables. A trial that failed has `status` failed and the reason in `error`; it stops no other.

    Raises:
        InputError: A setting, the corpus or the model is wrong. Nothing was written.
        KeyboardInterrupt: Ctrl-C or SIGTERM. What finished is kept, and `resume=True` continues.
    """
    console = _console(quiet)
    sections = _given(
        others, data=data, model=model, lora=lora, prior=prior, train=train, search=search, ray=ray, metrics=metrics,
        metric=metric, protocol=protocol, init_from=init_from, method=method, tracking=tracking, output=output,
    )  # fmt: skip
    corpus, base = _objects(sections, None)
    if base is not None:
        raise InputError("model: a sweep loads its base in many processes; save it, and give model={'name': FOLDER}")
    with _stored(settings, sections, "sweep", data=corpus) as together:
        prepared = prepare_sweep(together, resume, console)
        with claim_run(prepared, "sweep", console):
            is_complete = run_prepared_sweep(prepared, console)
    if not is_complete:
        raise KeyboardInterrupt
    return read_results(prepared.run)


def add(
    run: str | Path,
    data: Any,
    *settings: Setting,
    trial: str = "best",
    refresh: bool = False,
    resume: bool = False,
    quiet: bool = True,
    train: TrainConfig | Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
    metric: MetricConfig | Mapping[str, Any] | None = None,
    tracking: str | None = None,
    output: str | Path | None = None,
    **others: Never,
) -> Results:
    """Fit adapters for tasks that a run has not seen, under the Theta and tau of one of its trials.

    Each task d is the MAP under N(Theta, I/tau) by its own documents alone: Theta and tau do not move, no other task
    counts, and the run's texts are not needed. One task with one document is enough.

        results = bora_sweep.add("runs/mine", "new_customers.parquet", output="runs/new")
        bora_sweep.export("runs/new", "adapters/")

    The other arguments are sections and keys over the run's, for example `train={"learning_rate": 1e-3}`.

    Args:
        run: The folder of the run; it does not change.
        data: The new documents: a file or folder, a DataFrame, a `Dataset` or a `DatasetDict` of `datasets`.
        settings: Over those of the trial, as for `fit`: of `data`, `train`, `metrics`, `metric`, `tracking`, `output`.
        trial: The ID of a finished trial of the run; `best`: the MAP fit that is best on validation.
        refresh: Whether tasks that the trial has are fitted anew, from their adapters there.
        resume: Resume the `add` at `output`, else the newest in `runs/`.
        quiet: Print nothing; otherwise epochs are reported on standard error.

    Returns:
        The tables of the new run, whose trial `add` has the fit, and `global` the scores under Theta as it is.

    Raises:
        InputError: The run, a setting or the documents are wrong, or a task has an adapter already. Nothing was
            written.
        KeyboardInterrupt: Ctrl-C or SIGTERM. A checkpoint was written, and `resume=True` continues from it.
    """
    from bora_sweep.prepare_add import prepare_add

    console = _console(quiet)
    sections = _given(others, train=train, metrics=metrics, metric=metric, tracking=tracking, output=output)
    is_path = isinstance(data, (str, Path))
    together = [*settings, {"data": {"path": str(data)}}] if is_path else list(settings)
    with _stored(tuple(together), sections, "add", data=None if is_path else data) as stored:
        prepared = prepare_add(run, stored, console, trial=trial, refresh=refresh, resume=resume)
        with claim_run(prepared, "add", console):
            run_fit(prepared, console)
    return read_results(prepared.run)


def _given(others: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """The sections and keys that were given; a corpus or a base that is named alone as its section."""
    given = {name: value for name, value in sections.items() if value is not None}
    for section, key in (("data", "path"), ("model", "name")):
        if isinstance(given.get(section), (str, Path)):
            given[section] = {key: given[section]}
    return {**given, **others}  # a name that is none is refused with the names that there are


def _objects(sections: dict[str, Any], tokenizer: Any) -> tuple[Any, Any]:
    """The data and the model that are given as objects, taken out of the sections; None where settings name them."""
    data, model = (
        sections.pop(name) if name in sections and not is_section(sections[name]) else None
        for name in ("data", "model")
    )
    if model is None and tokenizer is not None:
        raise InputError("tokenizer: goes with a model that is loaded, as in fit(model=model, tokenizer=tokenizer)")
    return data, model


@contextmanager
def _stored(
    settings: tuple[Setting, ...], sections: dict[str, Any], command: str, **objects: Any
) -> Iterator[list[Setting]]:
    """Within, all settings, among them those that name what objects were written to."""
    together: list[Setting] = [*settings_of(settings), *([sections] if sections else [])]
    if all(value is None for value in objects.values()):
        yield together
        return
    from bora_sweep.in_memory import stored

    with stored(together, command, **objects) as more:
        yield more


def _console(quiet: bool) -> LoggedConsole:
    return LoggedConsole(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
