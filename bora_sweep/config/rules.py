"""The rules that tie sections together: settings that do not go with each other, each with what to do about it."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bora_sweep.config.baselines import check_baselines
from bora_sweep.config.metric import PERPLEXITY, check_metric_names
from bora_sweep.errors import require

if TYPE_CHECKING:
    from bora_sweep.config.config import Config


def check_rules(config: "Config") -> None:
    """Refuse settings that contradict each other.

    Raises:
        InputError: Two do.
    """
    _check_solver(config)
    _check_learnt_tau(config)
    _check_base(config)
    _check_metrics(config)
    _check_penalty(config)
    _check_token_sums(config)
    _check_shard_base(config)
    _check_chunks(config)
    _check_rate(config)
    _check_present(config)
    _check_unseen(config)
    _check_groups(config)
    check_baselines(config)
    _check_rates(config)
    _check_processes(config)


def _refuse(settings: Mapping[str, bool], message: Callable[[str], str]) -> None:
    """Refuse the first of these settings that is set; `message` says why it cannot be."""
    for setting, is_set in settings.items():
        require(not is_set, message(setting))


def _check_solver(config: "Config") -> None:
    """Refuse a solver that the coordinates do not have."""
    require(
        not (config.train.solver == "proximal" and config.prior.parametrization == "centered"),
        "train.solver=proximal needs prior.parametrization=noncentered; with centered set train.solver=adamw",
    )


def _check_rates(config: "Config") -> None:
    """Refuse rates that are coupled to tau where they cannot be."""
    require(
        config.train.lr_per_tau is None or config.prior.parametrization == "centered",
        f"train.lr_per_tau={config.train.lr_per_tau}: couples learning rate and tau in centered coordinates only; "
        "set prior.parametrization=centered, or drop it",
    )
    require(
        config.train.lr_per_tau is None or not config.search.learning_rates,
        f"search.learning_rates={config.search.learning_rates}: train.lr_per_tau={config.train.lr_per_tau} couples the "
        "rate to tau, and is searched itself; drop one of the two",
    )


def _check_processes(config: "Config") -> None:
    """Refuse settings for several fits or processes that these cannot have, and starts that a method has not."""
    require(
        config.search.scheduler == "none" or config.ray.workers_per_trial == 1,
        f"search.scheduler={config.search.scheduler}: works for fits of one process; set ray.workers_per_trial=1",
    )
    require(
        config.search.pack == 1 or config.train.precision != "fp16",
        f"search.pack={config.search.pack}: fits of a pack share one loss scale of fp16; set train.precision=bf16",
    )
    require(
        config.init_from is None or config.method in ("map", "vi", "pfedme"),
        f"init_from={config.init_from}: method={config.method} does not start from given adapters; drop init_from",
    )
    workers = config.ray.workers_per_trial
    require(
        workers == 1 or config.search.pack == 1,
        f"search.pack={config.search.pack}, ray.workers_per_trial={workers}: a fit that uses several devices gains "
        "nothing from a pack; drop one of the two",
    )
    require(
        workers == 1 or config.train.precision != "fp16",
        f"ray.workers_per_trial={workers}: each process would have its own loss scale of fp16; set "
        "train.precision=bf16",
    )


def _check_base(config: "Config") -> None:
    """Refuse adapters that a quantised base cannot have, and settings that need a base on one device."""
    model = config.model
    require(
        model.quantization is None or config.lora.variant != "dora",
        f"lora.variant=dora: needs the norms of plain weights, and model.quantization={model.quantization} keeps "
        "them packed; set lora.variant=lora, or drop model.quantization",
    )
    require(
        model.quantization is None or config.train.precision not in ("bf16", "fp16"),
        f"train.precision={config.train.precision}: packed layers of model.quantization={model.quantization} compute "
        "in the type of the other weights; set model.dtype=bfloat16, and drop it",
    )
    require(
        model.dtype != "float64" or config.train.precision == "no",
        f"train.precision={config.train.precision}: is for weights in float32, and would change nothing with "
        "model.dtype=float64; drop one of the two",
    )
    needs_one_device = {
        f"ray.workers_per_trial={config.ray.workers_per_trial}": config.ray.workers_per_trial > 1,
        "train.device=cpu": config.train.device == "cpu",
        "train.compile=true": config.train.compile,
    }
    for setting, is_set in needs_one_device.items():
        require(
            model.device_map is None or not is_set,
            f"model.device_map={model.device_map}: spreads the base over the GPUs of one process, and {setting} "
            "needs it on one device; drop one of the two",
        )


def _check_metrics(config: "Config") -> None:
    """Refuse unknown metrics, and a search for one that is not scored."""
    check_metric_names(config.metrics)
    choosers = {"search.objective": config.search.objective, "metric.early_stopping": config.metric.early_stopping}
    for key, metric in choosers.items():
        require(
            metric in (PERPLEXITY, *config.metrics),
            f"{key}={metric}: is neither {PERPLEXITY} nor one of metrics={config.metrics}; add it there",
        )
        require(
            metric == PERPLEXITY or config.search.scheduler == "none",
            f"search.scheduler={config.search.scheduler}: stops fits by their perplexity, not by {key}={metric}; "
            "drop one of the two",
        )
    require(
        config.metric.early_stopping == PERPLEXITY or config.train.reported == "test",
        f"train.reported={config.train.reported}: is chosen by perplexity, as in the published code, not by "
        f"metric.early_stopping={config.metric.early_stopping}; drop one of the two",
    )


def _check_penalty(config: "Config") -> None:
    """Refuse solvers and methods that need the squared distance of Eq. 5, where another penalty is set."""
    if config.prior.penalty == "squared":
        return
    needs_squared = {
        "train.solver=proximal": config.train.solver == "proximal",
        f"train.global_update={config.train.global_update}": config.train.global_update != "gradient",
        f"method={config.method}": config.method in ("vi", "pfedme"),
        f"search.baselines={config.search.baselines}": bool({"vi", "pfedme"} & set(config.search.baselines)),
        "search.estimate_tau=true": config.search.estimate_tau,
    }
    key = f"prior.penalty={config.prior.penalty}"
    _refuse(needs_squared, lambda setting: f"{key}: {setting} needs the squared distance; drop it")


def _check_chunks(config: "Config") -> None:
    """Refuse chunks where a setting cuts documents, or takes each as one row."""
    train, truncate, longest = config.train, config.data.truncate, config.model.max_text_tokens
    settings = {
        f"data.truncate={truncate}": truncate != "end",
        f"model.max_text_tokens={longest}": longest is not None,
        f"train.likelihood={train.likelihood}": train.likelihood == "documents",
        f"train.padding={train.padding}": train.padding == "scored",
        f"train.batches={train.batches}": train.batches == "fixed",
        f"train.reported={train.reported}": train.reported == "best_epochs",
        "search.estimate_tau=true": config.search.estimate_tau,
    }
    found = [setting for setting, is_set in settings.items() if is_set]
    go, them = ("goes", "that") if len(found) == 1 else ("go", "those")
    require(
        config.model.long_documents == "cut" or not found,
        f"model.long_documents=chunk: cuts no document, and reads a long one as several rows. {', '.join(found)} "
        f"{go} with documents that are cut, or are one row each; drop it, or drop {them}",
    )


def _check_rate(config: "Config") -> None:
    """Refuse a range test of the learning rate where its fits would not be like those of the run."""
    train = config.train
    refused = {
        f"prior.parametrization={config.prior.parametrization}": (
            config.prior.parametrization != "noncentered",
            "one rate serves every tau in noncentered coordinates only",
        ),
        f"method={config.method}": (config.method not in ("map", "pfedme"), "is chosen by fits of method=map"),
        f"init_from={config.init_from}": (
            config.init_from is not None,
            "is chosen by fits that start without adapters",
        ),
        f"train.precision={train.precision}": (
            train.precision == "fp16",
            "fits would share one loss scale of fp16",
        ),
        "train.shard_base=true": (train.shard_base, "is chosen on a base that one process holds"),
    }
    for setting, (is_set, reason) in refused.items():
        require(
            train.learning_rate != "auto" or not is_set,
            f"train.learning_rate=auto, {setting}: {reason}; give a number",
        )


def _check_unseen(config: "Config") -> None:
    """Refuse settings under which fits that leave tasks out cannot be made, or would have seen these tasks."""
    key, workers = f"search.unseen_folds={config.search.unseen_folds}", config.ray.workers_per_trial
    refused = {
        f"ray.workers_per_trial={workers}": (workers > 1, "fits that leave tasks out are of one process"),
        f"init_from={config.init_from}": (config.init_from is not None, "its adapters may have seen the tasks"),
        f"metric.early_stopping={config.metric.early_stopping}": (
            config.metric.early_stopping != PERPLEXITY,
            "fits that leave tasks out stop by perplexity",
        ),
    }
    for setting, (is_set, reason) in refused.items():
        require(config.search.unseen_folds is None or not is_set, f"{key}, {setting}: {reason}; drop one of the two")


def _check_learnt_tau(config: "Config") -> None:
    """Refuse settings that need tau before the fit has found it, and task groups where only some tasks are held."""
    train, prior = config.train, config.prior
    needs_number = {
        f"prior.penalty={prior.penalty}": prior.penalty != "squared",
        f"train.lr_per_tau={train.lr_per_tau}": train.lr_per_tau is not None,
        f"train.likelihood={train.likelihood}": train.likelihood == "documents",
        f"train.padding={train.padding}": train.padding == "scored",
        f"train.reported={train.reported}": train.reported == "best_epochs",
        f"prior.tau_2={prior.tau_2}": prior.tau_2 == 0 and config.tau < math.inf,  # inf: `per_group` of the same sweep
        f"method={config.method}": config.learns_tau and config.method != "map",
        f"search.unseen_folds={config.search.unseen_folds}": config.search.unseen_folds is not None,
    }
    if config.learns_tau or "learnt" in config.search.baselines:
        key = "prior.tau=learn" if config.learns_tau else f"search.baselines={config.search.baselines}"
        _refuse(needs_number, lambda setting: f"{key}: {setting} needs a tau that is a number; drop one of the two")
    require(
        prior.groups != "task" or config.update == "all",
        "prior.groups=task: a tau of each task needs all of them on the device; set train.update=all, or drop it",
    )


def _check_token_sums(config: "Config") -> None:
    """Refuse settings that need an objective which is a sum over tokens, where one of the published code is set.

    With these settings the weight of a row depends on the other rows of its batch.
    """
    train = config.train
    published = {
        "train.likelihood=documents": train.likelihood == "documents",
        "train.padding=scored": train.padding == "scored",
        "train.reported=best_epochs": train.reported == "best_epochs",
        "train.independent=joint": train.independent == "joint",
    }
    needs_sums = {
        f"ray.workers_per_trial={config.ray.workers_per_trial}": config.ray.workers_per_trial > 1,
        f"search.pack={config.search.pack}": config.search.pack != 1,
        "train.learning_rate=auto": train.learning_rate == "auto",
        "search.mode=path": config.search.mode == "path",
        f"method={config.method}": config.method == "vi",
        f"search.baselines={config.search.baselines}": "vi" in config.search.baselines,
        "search.estimate_tau=true": config.search.estimate_tau,
        f"search.unseen_folds={config.search.unseen_folds}": config.search.unseen_folds is not None,
    }
    first = next((setting for setting, is_set in published.items() if is_set), None)
    if first is not None:
        only = f"{first}: works for separate fits of one process only; drop it, or drop"
        _refuse(needs_sums, lambda setting: f"{only} {setting}")


def _check_present(config: "Config") -> None:
    """Refuse settings and methods that move every task at each step, where a step moves those of its batch."""
    train, prior = config.train, config.prior
    if config.update == "all":
        return
    needs_all = {
        f"prior.parametrization={prior.parametrization}": prior.parametrization != "noncentered",
        f"prior.penalty={prior.penalty}": prior.penalty != "squared",
        f"train.solver={train.solver}": config.solver != "proximal",
        f"train.global_update={train.global_update}": train.global_update != "gradient",
        f"train.likelihood={train.likelihood}": train.likelihood != "tokens",
        f"train.independent={train.independent}": train.independent != "separate",
        f"train.padding={train.padding}": train.padding != "ignored",
        f"train.reported={train.reported}": train.reported != "test",
        f"train.initial_noise={train.initial_noise}": train.initial_noise > 0,
        f"train.precision={train.precision}": train.precision == "fp16",
        f"method={config.method}": config.method in ("vi", "pfedme", "fedsa"),
        f"search.baselines={config.search.baselines}": bool({"vi", "pfedme", "fedsa"} & set(config.search.baselines)),
    }
    chosen = f"train.update={train.update}" if train.update else f"train.bank={train.bank}"
    alone = f"{chosen}: moves the tasks of a batch alone, and"
    _refuse(needs_all, lambda setting: f"{alone} {setting} all; drop one of the two")


def _check_groups(config: "Config") -> None:
    """Refuse a prior on groups where there are none, and settings and methods that know of no groups."""
    data, prior, train, baselines = config.data, config.prior, config.train, config.search.baselines
    if not data.has_groups:
        require(
            prior.tau_2 in (None, math.inf),
            f"prior.tau_2={prior.tau_2}: ties groups of tasks, and there are none; also give data.group_column=… "
            "or data.groups_path=…, or drop it",
        )
        require(
            "per_group" not in baselines,
            f"search.baselines={baselines}: per_group needs groups of tasks; give data.group_column=… or "
            "data.groups_path=…, or drop it",
        )
        return
    if prior.tau_2 == math.inf and "per_group" not in baselines:
        return
    has_no_groups = {
        f"prior.parametrization={prior.parametrization}": prior.parametrization != "noncentered",
        f"prior.penalty={prior.penalty}": prior.penalty != "squared",
        f"prior.groups={prior.groups}": prior.groups != "all" and config.method != "add",
        f"train.update={config.update}": train.update == "present",
        f"train.bank={train.bank}": train.bank != "device",
        f"train.global_update={train.global_update}": train.global_update != "gradient",
        f"train.likelihood={train.likelihood}": train.likelihood != "tokens",
        f"train.independent={train.independent}": train.independent != "separate",
        f"train.padding={train.padding}": train.padding != "ignored",
        f"train.reported={train.reported}": train.reported != "test",
        f"train.batches={train.batches}": train.batches == "fixed",
        f"train.initial_noise={train.initial_noise}": train.initial_noise > 0,
        f"ray.workers_per_trial={config.ray.workers_per_trial}": config.ray.workers_per_trial > 1,
        f"search.mode={config.search.mode}": config.search.mode != "optuna",
        f"search.unseen_folds={config.search.unseen_folds}": config.search.unseen_folds is not None,
        f"method={config.method}": config.method in ("vi", "pfedme"),
        f"search.baselines={baselines}": bool({"vi", "pfedme"} & set(baselines)),
    }
    key = "data.groups_path" if data.group_column is None else "data.group_column"
    or_two_levels = ", or set prior.tau_2=inf, with which groups do not matter" if prior.tau_2 is None else ""
    drop = f"drop one of the two{or_two_levels}"
    _refuse(has_no_groups, lambda setting: f"{key}: a level of groups does not go with {setting}; {drop}")


def _check_shard_base(config: "Config") -> None:
    """Refuse a sharded base in one process, and settings that a sharded base does not support."""
    if not config.train.shard_base:
        return
    workers = config.ray.workers_per_trial
    require(
        workers > 1,
        f"train.shard_base=true, ray.workers_per_trial={workers}: one process has no other to shard the base over; "
        "set more workers, or drop train.shard_base",
    )
    unsupported = {
        "train.compile=true": (config.train.compile, "would compile the gathering of weights"),
        "search.estimate_tau=true": (config.search.estimate_tau, "runs the base in one process alone"),
        f"model.quantization={config.model.quantization}": (
            config.model.quantization is not None,
            "keeps the weights packed, which cannot be sharded",
        ),
    }
    for setting, (is_set, reason) in unsupported.items():
        require(not is_set, f"train.shard_base=true: {setting} {reason}; drop one of the two")
