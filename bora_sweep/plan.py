"""Whether a fit fits on a card, and how much more would, before a card is rented.

Neither weights nor a GPU are needed: the base's config.json and the corpus give all sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bora_sweep.cards import GIGABYTE, USABLE, Card, read_card
from bora_sweep.config import Config, Setting, SyntheticConfig, load_config
from bora_sweep.errors import plural, require
from bora_sweep.train.memory import MOST, MOST_FITS, FitMemory, StepMemory

TASKS = 25
"""Tasks where neither a corpus nor `--tasks` says how many."""
WHAT = {
    "base": "the frozen weights",
    "banks": "Theta, the tasks, and Adam's moments",
    "gather": "from the bank to rows, and back",
    "forward": "adapters, activations, a chunk's logits",
    "backward": "activations and their gradients",
    "update": "the bank's gradient, and copies",
    "scoring": "validation, on twice as many rows",
}
"""What each part of `StepMemory` is."""
FEWER = "fewer tasks, a smaller lora.rank or fewer lora.target_modules"
SHORTER = "shorter documents (model.max_tokens) or train.gradient_checkpointing=true"
MENDS = {
    "base": "a smaller base, model.dtype=bfloat16 or model.quantization=nf4",
    "banks": FEWER,
    "gather": FEWER,
    "forward": SHORTER,
    "backward": SHORTER,
    "update": FEWER,
    "scoring": "shorter documents (model.max_tokens) or a smaller lora.rank",
}
"""What lowers each part, where a single document is too much."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory of a step on a card, and how much more of each kind would fit."""

    name: str
    """Of the base model."""
    card: Card
    num_parameters: int
    """Of one adapter."""
    tasks: int
    """Of one process."""
    all_tasks: int
    processes: int
    """Of a fit, each on a card of its own."""
    tokens: int
    """Of a row."""
    batch_size: int
    """Of one process."""
    rows: int
    """Documents of a forward pass."""
    fits: int
    """Of a pack."""
    memory: StepMemory
    least: StepMemory
    """The same with one document in a forward pass."""
    most_tasks: int
    most_rows: int
    most_fits: int
    """Of a pack; 0 also where fits of this kind cannot be packed."""
    notes: tuple[str, ...]

    @property
    def is_fitting(self) -> bool:
        """Whether the step fits."""
        return self.memory.peak <= self.card.usable_bytes

    @property
    def at_once(self) -> int:
        """Fits that the card holds, each in a process of its own."""
        return self.card.processes(self.memory.peak)


def make_plan(settings: Sequence[Setting], card: str, tasks: int | None = None) -> Plan:
    """Reckon the memory of a fit.

    Args:
        settings: Of the fit. With a corpus, its tasks and its longest document count; else `tasks` and
            `model.max_tokens`.
        card: A size such as `24GB`, or a name such as `l4`.
        tasks: The number of tasks; None: those of the corpus, or `TASKS`.

    Raises:
        InputError: The settings, the model or the card are wrong.
    """
    from bora_sweep.model.base import empty_base, refuse_mismatch
    from bora_sweep.model.layout import make_layout

    where, config = read_card(card), load_config(settings)
    require(tasks is None or tasks >= 1, f"--tasks {tasks}: need at least 1")
    require(config.model.name is not None, "model.name is not set: name the base model, such as facebook/opt-350m")
    processes = config.ray.workers_per_trial
    num_tasks, num_groups, tokens, largest = _sizes_of_corpus(config)
    num_tasks = all_tasks = tasks or num_tasks
    by_task = config.parallel == "tasks" and not math.isinf(config.tau)
    if by_task:
        num_tasks = -(-num_tasks // processes)
    base = empty_base(config.model, config.data).to(_dtype(config))  # type: ignore[arg-type]
    refuse_mismatch(base, largest, tokens)
    layout = make_layout(base, config.lora)
    memory = FitMemory(config, base, layout, tokens, num_groups=num_groups)
    # A batch may have documents of one process's tasks alone.
    batch = config.train.batch_size if by_task else -(-config.train.batch_size // processes)
    rows = min(batch, config.train.micro_batch_size or batch)
    fits = config.search.pack if isinstance(config.search.pack, int) else 1
    passes, usable = math.ceil(batch / rows), where.usable_bytes
    can_be_packed = config.can_be_packed and processes == 1
    reckoned = memory.step(num_tasks, rows, passes=passes, fits=fits)
    notes = [*_notes(config), *_note_on_bank(config, memory.host_bytes(num_tasks, fits))]
    if 0 < config.tau < math.inf and config.train.independent == "separate":
        separate = memory.step(num_tasks, rows, passes=max(2, passes)).peak
        notes += _note_on_separate(reckoned.peak, separate, usable)
    return Plan(
        name=config.model.name or "",
        card=where,
        num_parameters=layout.num_parameters,
        tasks=num_tasks,
        all_tasks=all_tasks,
        processes=processes,
        tokens=tokens,
        batch_size=batch,
        rows=rows,
        fits=fits,
        memory=reckoned,
        least=memory.step(num_tasks, 1, passes=batch, fits=fits),
        most_tasks=memory.tasks_that_fit(usable, rows, passes=passes, fits=fits),
        most_rows=memory.rows_that_fit(usable, num_tasks, batch, fits=fits),
        most_fits=memory.fits_that_fit(usable, num_tasks, rows, passes=passes) if can_be_packed else 0,
        notes=tuple(notes),
    )


def _sizes_of_corpus(config: Config) -> tuple[int, int, int, int]:
    """Tasks, groups, tokens of the longest document, and the largest token; without a corpus the settings' own.

    Raises:
        InputError: Tasks are in groups, and nothing says in how many.
    """
    data = config.data
    if data.kind == "synthetic":
        key = "data.groups_path" if data.group_column is None else "data.group_column"
        require(
            not config.has_group_level or data.synthetic.num_groups > 1,
            f"{key}: how many groups there are is in the documents; name their file, or say it by "
            "data.synthetic.num_groups=…",
        )
        own = data.synthetic != SyntheticConfig()
        return data.synthetic.num_tasks if own else TASKS, data.synthetic.num_groups, config.model.max_tokens, 0
    from bora_sweep.data.corpus import load_corpus
    from bora_sweep.data.known_documents import record_folders
    from bora_sweep.data.tokens import tokenize_for
    from bora_sweep.model.base import load_tokenizer

    corpus = load_corpus(config.data, record_folders(config))
    tokenized = tokenize_for(config, corpus, load_tokenizer(config.model, config.data))
    return tokenized.num_tasks, len(tokenized.groups), tokenized.longest, tokenized.largest_token


def _dtype(config: Config) -> torch.dtype:
    """The type of the base on a card."""
    return torch.bfloat16 if config.model.dtype == "auto" else getattr(torch, config.model.dtype)


def _notes(config: Config) -> list[str]:
    notes = []
    if config.model.device_map is not None:
        notes.append(
            "model.device_map=auto: counted as on one card; over N cards each holds about a part in N of base and "
            "activations, and the first all banks"
        )
    if config.ray.workers_per_trial > 1 and config.parallel == "tasks" and not math.isinf(config.tau):
        notes.append("processes get tasks by their tokens: one with many small tasks holds more than an even part")
    if config.train.compile:
        notes.append("train.compile=true: counted as without it; compiled code may hold less")
    if config.metrics:
        notes.append("metrics: what scoring them takes is not counted")
    return notes


def _note_on_separate(peak: int, separate: int, usable: int) -> list[str]:
    """Of the fit at tau = 0, each task on its own, whose steps add up the bank's gradient whatever their passes."""
    if peak > usable or separate <= usable:
        return []
    return [
        f"tau = 0, which a sweep fits too, needs about {_gigabytes(separate - peak)} GB more; it goes on with fewer "
        "documents at a time, which train.micro_batch_size can say from the start"
    ]


def _note_on_bank(config: Config, size: int) -> list[str]:
    if not size:
        return []
    where = {"host": "the host's memory", "disk": "a disk of the machine"}[config.train.bank]
    return [f"train.bank={config.train.bank}: all tasks' rows take {_gigabytes(size)} GB of {where}"]


def render(plan: Plan) -> list[RenderableType]:
    """The plan for a terminal: a table of the parts, whether they fit, and how much more would."""
    size, usable, peak = plan.card.gigabytes, plan.card.usable_bytes, plan.memory.peak
    passes = math.ceil(plan.batch_size / plan.rows)
    title = (
        f"{plan.name}: {plural(plan.all_tasks, 'task')} of {plan.num_parameters:,} parameters, "
        f"rows of {plan.tokens:,} tokens\n"
        + (
            f"{plan.processes} processes, each on a card; the figures are of one of them, with "
            f"{plural(plan.tasks, 'task')}\n"
            if plan.processes > 1
            else ""
        )
        + f"a step: {plural(plan.batch_size, 'document')}, {plan.rows} in each of {passes} forward passes"
        + (f"; {plan.fits} fits of a pack" if plan.fits > 1 else "")
    )
    verdict = (
        f"fits on a card of {size:g} GB, with {_gigabytes(usable - peak)} GB to spare"
        if plan.is_fitting
        else f"does not fit on a card of {size:g} GB, by {_gigabytes(peak - usable)} GB; it needs {_mend(plan)}"
    )
    reserve = f"{_gigabytes(usable)} GB are usable; {1 - USABLE:.0%} is for CUDA's context, scratch and fragmentation"
    of_all = "" if plan.tasks == plan.all_tasks else f", {_up_to(plan.most_tasks, MOST)} in each process"
    most_tasks = plan.most_tasks if plan.tasks == plan.all_tasks else plan.processes * plan.most_tasks
    more = [
        f"documents of a forward pass that fit (train.micro_batch_size), of {plan.batch_size}: {plan.most_rows:,}",
        f"tasks that fit with {plural(plan.rows, 'document')} of a forward pass: {_up_to(most_tasks, MOST)}{of_all}",
    ]
    if plan.processes == 1:
        more += [
            f"fits of a pack that fit (search.pack): {_up_to(plan.most_fits, MOST_FITS)}",
            f"fits on the card at once, each a process: {plan.at_once}",
        ]
    return [
        Text(title),
        _table(plan.memory),
        Text(verdict, style="bold green" if plan.is_fitting else "bold red"),
        Text(reserve),
        *(Text(f"• {line}") for line in more),
        *(Text(f"note: {note}", style="yellow") for note in plan.notes),
    ]


def _table(memory: StepMemory) -> Table:
    """The parts in gigabytes; of the temporary ones the largest counts."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1, 0, 1), footer_style="bold")
    table.add_column("part", "peak")
    table.add_column("GB", _gigabytes(memory.peak), justify="right")
    table.add_column("what", "base, banks, and the largest of the rest")
    largest = _largest(memory)
    for part in fields(memory):
        style = "bold" if part.name in ("base", "banks", largest) else "dim"
        table.add_row(part.name, _gigabytes(getattr(memory, part.name)), WHAT[part.name], style=style)
    return table


def _largest(memory: StepMemory) -> str:
    """The largest of the temporary parts."""
    temporary = [part.name for part in fields(memory) if part.name not in ("base", "banks")]
    return max(temporary, key=lambda name: getattr(memory, name))


def _mend(plan: Plan) -> str:
    """What would lower the peak most: a micro batch that fits, else the keys of the largest part."""
    if plan.most_rows:
        return f"train.micro_batch_size={plan.most_rows}"
    parts = ("base", "banks", _largest(plan.least))
    return MENDS[max(parts, key=lambda name: getattr(plan.least, name))]


def _up_to(number: int, most: int) -> str:
    """A number that was looked for up to `most`."""
    return f"{number:,} or more" if number == most else f"{number:,}"


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.2f}"
