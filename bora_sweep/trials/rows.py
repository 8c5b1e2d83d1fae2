"""A fit's rows in the tables of `bora_sweep.runs.results`."""

import json
import math
import platform
import socket
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config import UNTRAINED, Config, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.prior import distance_to_global
from bora_sweep.runs.results import perplexity
from bora_sweep.train.state import Fit, State

PACKAGES = (
    "bora_sweep", "torch", "transformers", "accelerate", "peft", "bitsandbytes", "torchao", "ray", "optuna", "pandas",
    "pyarrow",
)  # fmt: skip


def document_scores(corpus: TokenizedCorpus, done: Fit) -> pd.DataFrame:
    """The rows of `document_scores`, validation before test."""
    parts = [corpus.documents.iloc[corpus.split(split)].assign(nll_nats=nll) for split, nll in done.nll_nats.items()]
    scores = pd.concat(parts, ignore_index=True)
    return scores.assign(task=np.asarray(corpus.tasks, dtype=object)[scores["task"]])


def predictions(corpus: TokenizedCorpus, done: Fit) -> pd.DataFrame:
    """The rows of `predictions`: one for each metric and document that has an answer."""
    assert done.predictions is not None
    documents = corpus.documents.iloc[done.predictions["document"]]
    return done.predictions.assign(
        task=np.asarray(corpus.tasks, dtype=object)[documents["task"]],
        split=documents["split"].to_numpy(),
        document_id=documents["document_id"].to_numpy(),
    )


def _mean_scores(scored: pd.DataFrame) -> str:
    """The mean score of each metric over these rows of `predictions`, as JSON."""
    return json.dumps({str(metric): float(np.mean(rows["score"])) for metric, rows in scored.groupby("metric")})


def _mean_scores_of(scored: pd.DataFrame) -> dict[tuple[str, str], str]:
    """`_mean_scores` of each task and split, without a table for each."""
    score = scored["score"].to_numpy()
    groups: dict[Any, np.ndarray] = scored.groupby(["task", "split", "metric"]).indices
    means: dict[tuple[str, str], dict[str, float]] = {}
    for (task, split, metric), rows in sorted(groups.items()):
        means.setdefault((task, split), {})[str(metric)] = float(np.mean(score[rows]))
    return {key: json.dumps(of_metric) for key, of_metric in means.items()}


def task_scores(
    config: Config, corpus: TokenizedCorpus, documents: pd.DataFrame, scored: pd.DataFrame | None, done: Fit
) -> pd.DataFrame:
    """The rows of `task_scores`: sums over each task's documents, and the sizes of its training split.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        documents: Of `document_scores`.
        scored: Of `predictions`; None without metrics.
        done: The fit.
    """
    metrics_of = {} if scored is None else _mean_scores_of(scored)
    sums = (
        documents.assign(is_unknown=documents["floor_nll_nats"].isna())
        .groupby(["task", "split"], as_index=False)
        .agg(nll_nats=("nll_nats", "sum"), floor=("floor_nll_nats", "sum"), is_unknown=("is_unknown", "any"))
    )
    sums = sums.assign(floor_nll_nats=sums["floor"].mask(sums["is_unknown"])).drop(columns=["floor", "is_unknown"])
    distance_of = dict(zip(corpus.tasks, distance_to_global(done.theta_KP, done.mean_P).tolist(), strict=True))
    std_of = None
    if done.std_KP is not None:
        std_of = dict(zip(corpus.tasks, done.std_KP.square().mean(-1).sqrt().tolist(), strict=True))
    scores = corpus.table().merge(sums, how="left", on=["task", "split"])
    group_of = corpus.group_of
    return scores.assign(
        tau=_task_taus(config, scores["task"]),
        group=[group_of.get(task) for task in scores["task"]],
        perplexity=[perplexity(nll, n) for nll, n in zip(scores["nll_nats"], scores["num_tokens"], strict=True)],
        distance_to_global=[distance_of[task] for task in scores["task"]] if _is_trained(config) else None,
        posterior_std=None if std_of is None else [std_of[task] for task in scores["task"]],
        reported_perplexity=_reported_by_task(corpus, scores, done),
        metrics=[metrics_of.get(key) for key in zip(scores["task"], scores["split"], strict=True)],
    )


def _reported_by_task(corpus: TokenizedCorpus, scores: pd.DataFrame, done: Fit) -> list[float] | None:
    """The reported perplexity of each task, in the rows of the split that it was measured on."""
    if done.reported is None:
        return None
    of_task = dict(zip(corpus.tasks, done.reported.perplexity_K.tolist(), strict=True))
    is_measured = scores["split"] == done.reported.split
    return [of_task[task] if measured else math.nan for task, measured in zip(scores["task"], is_measured, strict=True)]


def _is_trained(config: Config) -> bool:
    return config.method not in UNTRAINED


def _tau(config: Config) -> float:
    return config.tau if _is_trained(config) else math.nan


def _task_taus(config: Config, tasks: Iterable[str]) -> float | list[float]:
    """tau of each of these tasks, where each has its own (`prior.groups=task`)."""
    if config.prior.groups != "task" or not config.prior.group_scales:
        return _tau(config)
    return [config.tau * config.prior.group_scales.get(task, 1.0) for task in tasks]


def with_learnt_tau(config: Config, state: State) -> Config:
    """The configuration of a fit with the tau, and the scales of groups, that it has found: those of its best epoch."""
    if not config.learns_tau:
        return config
    prior = {"tau": state.best_tau, "group_scales": state.best_scales}
    return with_values(config, prior=prior if state.best_tau_2 is None else {**prior, "tau_2": state.best_tau_2})


def initial_row(config: Config) -> dict[str, Any]:
    """A trial's row of `trials` as it begins."""
    trained = _is_trained(config)
    return {
        "status": "running",
        "method": config.method,
        "protocol": config.protocol,
        "tau": _tau(config),
        "tau_2": config.tau_2 if trained and config.data.has_groups else None,
        "tau_learnt": config.learns_tau,
        "learning_rate": config.learning_rate if trained else None,
        "parametrization": config.prior.parametrization if trained else None,
        "solver": config.solver if trained else None,
        "lora_rank": config.lora.rank,
        "lora_alpha": config.lora.resolved_alpha,
        "lora_variant": config.lora.variant,
        "prior_groups": _prior_groups(config),
        "search_objective": config.search.objective,
        "seed": config.train.seed,
        "epochs": 0,
        "host": socket.gethostname(),
        "versions": json.dumps(_versions()),
        "config_json": config.to_json(),
        "started_at": datetime.now(UTC),
    }


def _prior_groups(config: Config) -> str | None:
    """tau of each group of parameters, as JSON; that of a task is in `task_scores`."""
    taus = {} if config.prior.groups == "task" else config.prior.group_taus
    return json.dumps(taus) if taus else None


def progress_row(state: State) -> dict[str, Any]:
    """What changes in it after each epoch."""
    nll = state.validation_nats
    num_tokens = next((row["num_tokens"] for row in state.curve if row["split"] == "validation"), 0)
    return {
        **({} if state.best_tau is None else {"tau": state.best_tau}),
        **({} if state.best_tau_2 is None else {"tau_2": state.best_tau_2}),
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "validation_nll_nats": nll if num_tokens else None,
        "validation_num_tokens": num_tokens or None,
        "validation_perplexity": perplexity(nll, num_tokens),
        "train_tokens": state.train_tokens,
        "train_seconds": state.train_seconds,
        "non_padding_fraction": state.non_padding_fraction,
        "error": state.diverged,
        "notes": "; ".join(state.notes) or None,
    }


def reported_as(config: Config) -> str:
    """What `reported_perplexity` is, in words."""
    best = "validation, each task's best epoch" if config.train.reported == "best_epochs" else "test"
    return f"{best}{', padding counted' if config.train.padding == 'scored' else ''}"


def sums_over_tasks(splits: Iterable[str], tasks: pd.DataFrame, scored: pd.DataFrame | None) -> dict[str, Any]:
    """The columns of a trial's row that sum up its scores.

    Args:
        splits: Those that were scored.
        tasks: Its rows of `task_scores`.
        scored: Its rows of `predictions`; None without metrics.
    """
    scores: dict[str, Any] = {}
    for split in splits:
        of_split = tasks[tasks["split"] == split]
        if of_split.empty:  # of new tasks that train on all they have
            continue
        nll, num_tokens = np.sum(of_split["nll_nats"]), np.sum(of_split["num_tokens"])
        scores |= {f"{split}_nll_nats": nll, f"{split}_num_tokens": num_tokens}
        scores |= {f"{split}_perplexity": perplexity(nll, num_tokens)}
        scores |= {f"{split}_macro_perplexity": np.mean(of_split["perplexity"])}
        scores |= {f"{split}_metrics": None if scored is None else _mean_scores(scored.query("split == @split"))}
    return scores


def final_row(
    config: Config, corpus: TokenizedCorpus, done: Fit, tasks: pd.DataFrame, scored: pd.DataFrame | None
) -> dict[str, Any]:
    """The columns of a trial's row that its end fills.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        done: The fit at its best epoch.
        tasks: Its rows of `task_scores`.
        scored: Its rows of `predictions`; None without metrics.
    """
    return {
        **progress_row(done.state),
        **sums_over_tasks(done.nll_nats, tasks, scored),
        **({"prior_groups": _prior_groups(config), "config_json": config.to_json()} if done.state.best_tau else {}),
        "status": "finished",
        "stopped_by": None if done.stopped_by == config.method else done.stopped_by,
        "reported_perplexity": None if done.reported is None else done.reported.perplexity,
        "reported_as": None if done.reported is None else reported_as(config),
        "adapter_bytes": done.layout.num_parameters * done.mean_P.element_size(),
        "base_bytes": done.base_bytes,
        "cut_token_fraction": corpus.cut_token_fraction,
        "tokens_per_second": done.tokens_per_second,
        "peak_memory_bytes": done.peak_memory_bytes,
        "device": done.device,
        "dtype": done.dtype,
        "ended_at": datetime.now(UTC),
    }


def about_adapters(config: Config, corpus: TokenizedCorpus, done: Fit) -> dict[str, Any]:
    """What a reader of the adapters needs: tasks, base model, LoRA settings, adapted modules.

    Args:
        config: Of the fit.
        corpus: The tokenised text.
        done: The fit at its best epoch.
    """
    return {
        "tasks": corpus.tasks,
        "groups": corpus.groups if done.theta_GP is not None else (),
        "group_of": corpus.group_of,
        "form": corpus.form,
        "model": config.model.name,
        "lora": asdict(config.lora),
        "sites": [asdict(site) for site in done.layout.sites],
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
