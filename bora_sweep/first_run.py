"""A first configuration for the user's own documents: what is in the file, the model and the machine (`init`).

What is measured and reckoned is done by the code that a run uses, so that `init` says what a sweep does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bora_sweep.cards import GIGABYTE
from bora_sweep.config import UNTRAINED, Config, Setting, flatten, load_config, with_values
from bora_sweep.config.yaml import dump_list
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.guess import guess_columns
from bora_sweep.data.split import SPLITS
from bora_sweep.data.tokens import TokenizedCorpus, tokenize, tokenize_for
from bora_sweep.errors import InputError, percentage, plural, visible
from bora_sweep.machine import Machine, this_machine
from bora_sweep.model.base import empty_base, load_base, load_tokenizer, weights_dtype
from bora_sweep.model.layout import Layout, make_layout
from bora_sweep.model.lengths import num_positions
from bora_sweep.model.linear_modules import last_name
from bora_sweep.train.memory import FitMemory
from bora_sweep.train.methods.learn_tau import SCORING
from bora_sweep.tune.numbering import new_numbering
from bora_sweep.tune.points import LEARNT

QUANTILE = 0.99
"""Share of the documents that `model.max_tokens` holds whole."""
MULTIPLE = 16
"""`model.max_tokens` is a multiple of so many tokens."""
STEPS = 10
"""Steps of an epoch, at least, where documents allow it."""
SMALLEST_BATCH, LARGEST_BATCH = 8, 64
EPOCHS = 20
"""Epochs of a fit in the estimate of time, where `train.max_epochs` allows it; early stopping decides how many."""
CPU_WORK, GPU_WORK = 3e11, 1e14
"""Floating-point operations of a step up to which one is timed: some seconds."""
ABOUT_RATE = "Serves every tau. Lower it where the report says that validation rose after an epoch or two."
ABOUT_AUTO = "A range test chooses it when a run begins, and it serves every tau."
FORMS = {"text": "running text", "prompt": "a prompt and its completion", "conversation": "a conversation"}


@dataclass(frozen=True)
class FirstRun:
    """A configuration, the reasons for its values, and what a sweep would take."""

    config: Config
    why: dict[str, str]
    """By dotted key, a reason."""
    found: tuple[str, ...]
    """What is in the file, and what may be wrong with it."""
    takes: tuple[str, ...]
    """What a sweep would take; without a model, what is missing."""

    def to_yaml(self, command: str) -> str:
        """The configuration as YAML with a reason above each value.

        Args:
            command: The one that wrote it, for the first line.
        """
        lines = [f"# Written by `{_line(command)}`. Explained by `bora-sweep keys [SECTION|WORD]`."]
        usual = Config().to_dict()
        for section, values in self.config.to_dict().items():
            if not isinstance(values, dict):
                lines += [] if values == usual[section] else ["", f"{section}: {_value(values)}"]
                continue
            shown = [
                name
                for name, value in values.items()
                if value != usual[section][name] or f"{section}.{name}" in self.why
            ]
            lines += ["", f"{section}:"] if shown else []
            for name in shown:
                lines += [
                    f"  # {_line(self.why.get(f'{section}.{name}', 'As you said.'))}",
                    f"  {name}: {_value(values[name])}",
                ]
        if self.config.model.name is None:
            lines += [
                "",
                "# The base model, which is still to be named: a Hugging Face name or a folder. Then uncomment:",
            ]
            lines += ["# model:", "#   name: HuggingFaceTB/SmolLM2-135M", "#   max_tokens: 256"]
        return "\n".join(lines) + "\n"


def look(settings: Sequence[Setting]) -> FirstRun:
    """A configuration for these documents, this model and this machine.

    Args:
        settings: Among them `data.path`; with `model.name` the model is looked at too. What they give is kept.

    Raises:
        InputError: The settings, the documents or the model are wrong, or a column cannot be told.
    """
    config = load_config(settings)
    if config.data.kind == "synthetic":
        raise InputError("init: name the file or folder of your documents: init FILE")
    guesses = guess_columns(config.data)
    columns = {key: guess.column for key, guess in guesses.items()}
    config = load_config([*settings, {"data": columns}])
    corpus = load_corpus(config.data)
    why = {"data.path": _about(corpus), "data.task_column": f"An adapter for each of its {len(corpus.tasks):,} names."}
    why |= {f"data.{key}": f"{guess.why[0].upper()}{guess.why[1:]}." for key, guess in guesses.items()}
    if config.train.device == "cpu":
        why["model.dtype"] = "That of fits on a CPU."
    found = [_about(corpus), *corpus.notes]
    if config.model.name is None:
        missing = "model.name is not set: name a base model in the file, or run init again with model.name=…"
        again = "with it, init also chooses model.max_tokens and the batch, and says what a sweep takes"
        return FirstRun(config, why, tuple(found), (missing, again))
    return _with_model(config, _given_keys(settings), corpus, why, found)


def _given_keys(settings: Sequence[Setting]) -> set[str]:
    """The keys whose values the settings choose."""
    values, usual = flatten(load_config(settings).to_dict()), flatten(Config().to_dict())
    return {key for key in values if values[key] != usual.get(key)}


def _with_model(config: Config, given: set[str], corpus: Corpus, why: dict[str, str], found: list[str]) -> FirstRun:
    """The rest of a configuration, where the model is known."""
    tokenizer, base = load_tokenizer(config.model, config.data), empty_base(config.model, config.data)
    base.to(weights_dtype(config.model))  # type: ignore[arg-type]
    machine = this_machine(config)
    size = sum(weight.numel() for weight in base.parameters())
    why["model.name"] = f"{base.config.model_type} of {size / 1e6:,.1f} million parameters, in {_dtype(base)} here."

    def choose(key: str, value: Any, reason: str) -> None:
        nonlocal config
        why[key] = reason if key not in given else f"As you said. {reason}"
        if key not in given:
            section, _, name = key.partition(".")
            config = with_values(config, **{section: {name: value}})

    lengths = np.diff(tokenize(corpus, tokenizer, 10**9, data=config.data).offsets)
    choose("model.max_tokens", *_max_tokens(lengths, num_positions(base)))
    why["model.max_tokens"] += f" {_cut(lengths, config.model.max_tokens)}"
    if corpus.form != "text" and lengths.max() > config.model.max_tokens:
        choose("data.truncate", "prompt", "Long prompts lose their beginning, so that the answer stays.")
    tokenized = tokenize_for(config, corpus, tokenizer)
    layout = make_layout(base, config.lora)
    places = ", ".join(dict.fromkeys(last_name(site.name) for site in layout.sites))
    table = tokenized.table()
    tokens = np.median(table.loc[table["split"] == "train", "num_tokens"])
    about_rank = (
        f"{layout.num_parameters:,} numbers for each task, which has {tokens:,.0f} tokens to train on in the median."
    )
    choose("lora.rank", config.lora.rank, f"{about_rank} Adapters are at {places}.")
    choose("train.batch_size", *_batch_size(len(tokenized.sequences("train"))))
    takes = [f"machine: {machine}"]
    try:
        memory = FitMemory(config, base, layout, tokenized.longest, num_groups=len(tokenized.groups))
    except InputError as error:
        takes.append(f"memory: not reckoned ({error})")
    else:
        rows = memory.rows_that_fit(machine.bytes_of_a_fit, len(corpus.tasks), config.train.batch_size)
        takes.append(_memory(memory, machine, config, rows, len(corpus.tasks)))
        if 0 < rows < config.train.batch_size:
            choose(
                "train.micro_batch_size",
                rows,
                f"As many documents at a time as fit into {_size(machine.bytes_of_a_fit)}.",
            )
    rate = config.train.learning_rate
    choose("train.learning_rate", rate, ABOUT_AUTO if rate == "auto" else ABOUT_RATE)
    fits = trained_fits(config, len(corpus.tasks))
    choose("search.num_trials", config.search.num_trials, f"Values of tau. With the baselines {fits} fits are trained.")
    rows = len(corpus.tasks) + len(tokenized.groups) + 1
    takes += [_disk(layout, rows, fits), _time(config, tokenized, base, machine, fits)]
    return FirstRun(config, why, (*found, *tokenized.notes), tuple(takes))


def trained_fits(config: Config, num_tasks: int) -> int:
    """The fits that a sweep trains: not those that are merged or scored as they are.

    Args:
        config: The sweep's.
        num_tasks: Of its corpus.
    """
    numbering, search = new_numbering(config), config.search
    untrained = sum(point.method in UNTRAINED for point in numbering.given.values())
    folds = 0 if search.unseen_folds is None else min(search.unseen_folds, num_tasks)
    return numbering.num_fits(config) - untrained * search.seeds + folds


def _about(corpus: Corpus) -> str:
    splits = corpus.documents["split"].value_counts()
    parts = ", ".join(f"{splits.get(split, 0):,} {split}" for split in SPLITS)
    tasks = plural(len(corpus.tasks), "task")
    return f"{tasks}, {plural(len(corpus.documents), 'document')} ({parts}); rows are {FORMS[corpus.form]}."


def _max_tokens(lengths: np.ndarray, positions: int | None) -> tuple[int, str]:
    """Tokens of a sequence that hold nearly every document, within the model's positions, and why."""
    wanted = math.ceil(np.quantile(lengths, QUANTILE) / MULTIPLE) * MULTIPLE
    if positions is not None and wanted > positions:
        return positions, f"All that the model has; {QUANTILE:.0%} of the documents would fit into {wanted:,}."
    return wanted, f"Holds {QUANTILE:.0%} of the documents whole; the median has {np.median(lengths):,.0f} tokens."


def _cut(lengths: np.ndarray, most: int) -> str:
    """What `model.max_tokens` cuts."""
    over = lengths[lengths > most]
    if not len(over):
        return "Nothing is cut."
    share = percentage(float((over - most).sum() / lengths.sum()))
    return f"{plural(len(over), 'document')} longer than that would be cut, {share} of all tokens."


def _batch_size(num_documents: int) -> tuple[int, str]:
    """Documents of a step, and why."""
    wanted = 2 ** int(math.log2(max(1, num_documents / STEPS)))
    size = min(LARGEST_BATCH, max(SMALLEST_BATCH, wanted))
    return size, f"{plural(math.ceil(num_documents / size), 'step')} in an epoch of {num_documents:,} documents."


def _memory(memory: FitMemory, machine: Machine, config: Config, rows: int, tasks: int) -> str:
    """The memory of a fit, and whether it is there."""
    batch = min(config.train.micro_batch_size or config.train.batch_size, rows or 1)
    peak = memory.step(tasks, batch, passes=math.ceil(config.train.batch_size / batch)).peak
    text = f"memory: {_size(peak)} for each of {plural(machine.at_once, 'fit')} at once, {batch} documents in a pass"
    if rows:
        return f"{text}, beside Python and torch"
    mends = "ray.max_concurrent=1, train.bank=host, model.quantization=nf4 or a smaller base"
    return f"{text}; that is more than the {_size(machine.bytes_of_a_fit)} that each may fill: try {mends}"


def _disk(layout: Layout, rows: int, fits: int) -> str:
    size = 4 * rows * layout.num_parameters
    return (
        f"disk: {_size(size)} of adapters for each of {fits} fits; while one runs, two checkpoints of four times that"
    )


def _time(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, machine: Machine, fits: int) -> str:
    """How long a sweep takes, by a step that is timed, where the model is here and small."""
    if not Path(config.model.name or "").is_dir():
        return "time: not measured, as the model is not in a folder of this machine"
    batch = config.train.batch_size * int(np.diff(corpus.offsets).mean())
    work = 6 * sum(weight.numel() for weight in base.parameters()) * batch
    if work > (GPU_WORK if machine.cards else CPU_WORK):
        return f"time: not measured, as a step of {batch:,} tokens takes long here"
    seconds = _step_seconds(config, corpus)
    train, validation = len(corpus.sequences("train")), len(corpus.sequences("validation"))
    epoch = seconds * (math.ceil(train / config.train.batch_size) + validation / config.train.batch_size / 3)
    epochs = min(EPOCHS, config.train.max_epochs)
    questions = SCORING * config.search.seeds * config.search.baselines.count(LEARNT)
    whole = epoch * epochs * math.ceil((fits + questions) / machine.at_once)
    extra = "; the range test of the learning rate comes on top" if config.train.learning_rate == "auto" else ""
    return (
        f"time: a step took {seconds:.2g} s, so that an epoch takes about {_duration(epoch)}; {fits} fits of "
        f"{plural(epochs, 'epoch')} would take {_duration(whole)}, {machine.at_once} at once; early stopping decides "
        f"how many there are{extra}"
    )


def _step_seconds(config: Config, corpus: TokenizedCorpus) -> float:
    """The median time of a step, with as many threads as a trial has."""
    from bora_sweep.trials.pack_size import step_seconds

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(config.ray.cpus_per_trial)))
    try:
        return step_seconds(config, corpus, load_base(config.model, config.data), 1, repeats=3)
    finally:
        torch.set_num_threads(threads)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _dtype(base: PreTrainedModel) -> str:
    return str(base.dtype).removeprefix("torch.")


def _size(size: int) -> str:
    return f"{size / GIGABYTE:,.1f} GB" if size >= GIGABYTE else f"{size / 1e6:,.1f} MB"


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    return dump_list([value])[1:-1]


def _line(text: str) -> str:
    """On one line, as a comment must be."""
    return visible(" ".join(text.split()))
