"""The model card of an export: YAML for the Hugging Face hub, what was fitted, its perplexity, and how to load it.

Names from the data are escaped: they never act as markup.
"""

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bora_sweep.config import Config
from bora_sweep.data.corpus import Form
from bora_sweep.errors import plural
from bora_sweep.model.full_model import Merge
from bora_sweep.model.peft_config import IN_PEFT
from bora_sweep.report.text.formats import Table, markdown_table, markdown_text, perplexity_text, tau_text
from bora_sweep.runs.folder import ADD, GLOBAL, GROUP
from bora_sweep.runs.results import Results, objective, perplexity
from bora_sweep.serve.index_card import hub_front
from bora_sweep.serve.snippet import snippet

LARGE_ROUNDING_ERROR = 0.01  # a card mentions larger ones
LEFT = "Tasks have left this export since it was written, and with them sizes and perplexities over all tasks."
"""What a card says then."""
LIMITS = {0.0: "one model per task", math.inf: "one model for all"}
UNDER = {GLOBAL: "Θ as it is", GROUP: "its group's Θ_g as it is"}
"""What new tasks are scored under before they are fitted, by the trial of a run of `add`."""


@dataclass(frozen=True, kw_only=True)
class ExportedFolder:
    """One exported adapter or full model, as its card describes it."""

    row: dict[str, Any]
    """The trial's row of `trials`."""
    task: str | None
    """None: the global adapter, or a group's."""
    folder: str
    """The folder's name."""
    corpus: str
    """The data set's name."""
    config: Config
    """The trial's configuration."""
    text_format: "TextFormat"
    merge: Merge | None
    """Of a full model; None: an adapter alone."""
    is_shared: bool = False
    """Whether all tasks have this one adapter."""
    group: str | None = None
    """Of a group's adapter."""
    bank_tasks: int = 0
    """Tasks of a bank; 0 for a single adapter."""

    @property
    def base(self) -> str | None:
        """What `from_pretrained` loads the base by; None: the embedded one."""
        return self.config.model.name

    @property
    def is_of_its_tasks(self) -> bool:
        """Whether it is itself what its task has, or what its tasks have: at tau = inf those of a group are one."""
        return self.task is not None or self.is_shared or (self.group is not None and self.row["tau"] == math.inf)

    @property
    def is_full(self) -> bool:
        """Whether it is a full model."""
        return self.merge is not None

    @property
    def has_code(self) -> bool:
        """Whether transformers or PEFT can load it; they have no MoRA."""
        return self.is_full or self.row["lora_variant"] in IN_PEFT


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a document's text is put into the sequence of tokens that is scored."""

    form: Form
    """Running text, prompts with completions, or conversations."""
    task: str
    """The document's task."""
    depends_on_task: bool
    """Whether the format differs between tasks."""
    start_tokens: list[int]
    """Unscored tokens before the document, or before its prompt."""
    prompt: str
    """Of prompts with completions: the prompt, with dots where a row's text belongs."""
    before: str
    """The template's text before the document's text."""
    after: str
    """The template's text after it."""
    end_token: str
    has_own_template: bool
    """Whether the chat template is the run's, and not the tokenizer's."""
    template_variables: dict[str, Any]
    """Of the chat template."""


def model_card(exported: ExportedFolder, results: Results) -> str:
    """The card as Markdown."""
    name = "all tasks (Θ)" if exported.task is None else markdown_text(exported.task)
    kind = "Language model" if exported.is_full else "Adapter"
    if exported.group is not None:
        name = f"group {markdown_text(exported.group)} (Θ_g)"
    if exported.bank_tasks:
        name, kind = plural(exported.bank_tasks, "task"), "Adapters"
    parts = [
        f"---\n{_front_matter(exported)}---",
        f"# {kind} for {name}",
        _introduction(exported),
        markdown_table(_facts(exported, results)),
        "## Perplexity",
        markdown_table(_perplexity_table(exported, results)),
        _caption(exported),
        "## Use",
        "From the folder that holds this one:",
        f"```python\n{snippet(exported)}\n```",
        *(_how_scored(exported) if exported.has_code else []),
    ]
    return "\n\n".join(parts) + "\n"


def card_without_sums(card: str, names: Collection[str]) -> str:
    """A card of `model_card` for all tasks, without what it sums up over them, since some have left.

    Args:
        card: The card. One that was shortened before stays as it is, but for names.
        names: Of the tasks. Where the code for its use names one, the code goes too.
    """
    parts = [part for part in re.split(r"\n\n(?=## )", card) if not part.startswith("## Perplexity\n")]
    forms = {form for name in names for form in (name, markdown_text(name), ascii(name)[1:-1], json.dumps(name)[1:-1])}
    parts = [part for part in parts if not (part.startswith("## Use\n") and any(form in part for form in forms))]
    lines = [line for line in "\n\n".join(parts).split("\n") if not line.startswith("| Documents to ")]
    shorter = "\n".join(lines).rstrip("\n")
    return f"{shorter}\n" if LEFT in shorter else f"{shorter}\n\n{LEFT}\n"


def _front_matter(exported: ExportedFolder) -> str:
    variant = exported.row["lora_variant"]
    return hub_front(exported.config, variant, is_full=exported.is_full, has_code=exported.has_code)


def _introduction(exported: ExportedFolder) -> str:
    which = "This is Θ, for a task that the fit has not seen." if exported.task is None else "This is one task's θ."
    if exported.group is not None:
        of = "the one adapter of its tasks, and " if exported.is_of_its_tasks else ""
        which = f"This is Θ_g of one group, {of}for a task of that group that the fit has not seen."
    if exported.is_shared:
        which = "This is Θ, the one adapter of all tasks of the fit, and of those that it has not seen."
    if exported.bank_tasks:
        which = (
            "Here the tasks' adapters are one file: `adapters.safetensors` has a tensor for each matrix, by PEFT's "
            "name of it, whose first axis is over tasks; `tasks.json` has each task's row. `_global/` is Θ, an adapter "
            "of PEFT's for a task that the fit has not seen."
        )
    tied = "a common one, Θ, by the prior θ ∼ N(Θ, I/τ)"
    if exported.config.has_group_level:
        tied = "that of its group, Θ_g, and these to a common one, Θ, by the prior θ ∼ N(Θ_g, I/τ), Θ_g ∼ N(Θ, I/τ₂)"
    return (
        f"Fitted by bora_sweep for many related tasks at once: each task's adapter θ is tied to {tied} (BoRA, Eide & "
        f"Frigessi 2025). {which}"
    )


def _facts(exported: ExportedFolder, results: Results) -> Table:
    row, quantization = exported.row, exported.config.model.quantization
    rows = [
        ["Base model", exported.base or "the embedded one of bora_sweep"],
        *([["Fitted on", f"the base with its linear layers in {quantization}"]] if quantization else []),
        ["Data", exported.corpus],
        ["Method", row["method"]],
        ["τ", _tau(row)],
        *([["τ₂", tau_text(exported.config.tau_2)]] if exported.config.has_group_level else []),
        ["Adapter", f"{row['lora_variant']}, rank {row['lora_rank']}, alpha {row['lora_alpha']:g}"],
    ]
    for split, purpose in (("train", "train on"), ("validation", "validate"), ("test", "test")):
        scores = _task_scores(exported, results, row["trial_id"], split)
        documents, tokens = int(np.sum(scores["num_documents"])), int(np.sum(scores["num_tokens"]))
        rows.append([f"Documents to {purpose}", f"{documents:,} ({tokens:,} tokens)"])
    return Table(["", ""], rows)


def _perplexity_table(exported: ExportedFolder, results: Results) -> Table:
    """Perplexities of this task, or of all tasks with their own adapters; and those of the fits at tau = 0 and inf."""
    row, name = exported.row, "this adapter" if exported.is_of_its_tasks else "each task's own adapter"
    limit = f", {LIMITS[row['tau']]}" if row["method"] == "map" and _is_limit(row) else ""
    rows = [[f"{name} (τ = {_tau(row)}{limit})", *_perplexities(exported, results, row["trial_id"])]]
    trials = results.trials.to_dict("records")
    if row["method"] == ADD:
        others = {f"{UNDER[fit['trial_id']]} (τ = ∞)": fit["trial_id"] for fit in trials if fit["trial_id"] in UNDER}
    else:
        others = {f"{name} (τ = {tau_text(tau)})": _limit_trial(trials, row, tau) for tau, name in LIMITS.items()}
    for name, trial_id in others.items():
        if trial_id not in (None, row["trial_id"]):
            rows.append([name, *_perplexities(exported, results, trial_id)])
    return Table(["model", "validation", "test"], rows)


def _is_limit(row: dict[Any, Any]) -> bool:
    """Whether a row of `trials` is one model per task, or one for all; at tau = inf groups may have one each."""
    return row["tau"] == 0 or (row["tau"] == math.inf and not row["tau_2"] < math.inf)


def _tau(row: dict[str, Any]) -> str:
    return "none" if math.isnan(row["tau"]) else tau_text(row["tau"])


def _limit_trial(trials: Sequence[dict[Any, Any]], row: dict[str, Any], tau: float) -> str | None:
    """The ID of the finished fit of MAP at this limit of tau with the same adapters and seed.

    Of several it is the best on validation.
    """
    wanted = {"status": "finished", "method": "map", "tau": tau}
    wanted |= {name: row[name] for name in ("lora_rank", "lora_variant", "seed")}
    fits = [fit for fit in trials if _is_limit(fit) and all(fit[name] == value for name, value in wanted.items())]
    return min(fits, key=objective)["trial_id"] if fits else None


def _perplexities(exported: ExportedFolder, results: Results, trial_id: str) -> list[str]:
    """The trial's perplexities on validation and test, as text."""
    splits = [_task_scores(exported, results, trial_id, split) for split in ("validation", "test")]
    return [perplexity_text(perplexity(np.sum(rows["nll_nats"]), np.sum(rows["num_tokens"]))) for rows in splits]


def _task_scores(exported: ExportedFolder, results: Results, trial_id: str, split: str) -> pd.DataFrame:
    """The trial's rows of `task_scores` for a split: this task's, or all tasks'."""
    scores = results.task_scores
    chosen = (scores["trial_id"] == trial_id) & (scores["split"] == split)
    return scores.loc[chosen if exported.task is None else chosen & (scores["task"] == exported.task)]


def _caption(exported: ExportedFolder) -> str:
    if exported.bank_tasks:
        return (
            "Over the documents of all tasks of the fit. Validation chose the epoch, and τ if it was searched; test "
            "was only scored."
        )
    if exported.row["method"] == ADD:
        over = "this task's" if exported.task is not None else "all tasks'" if exported.group is None else "its tasks'"
        held = "Θ, Θ_g and τ" if exported.config.has_group_level else "Θ and τ"
        return (
            f"Over {over} documents. {held} are those of an earlier fit, of other tasks. Validation chose the epoch "
            "where documents were held out for it; test was only scored."
        )
    if exported.group is not None:
        under = "this adapter" if exported.is_of_its_tasks else "its own adapter; Θ_g, which they share, was not scored"
        return (
            f"Over the documents of the group's tasks, each under {under}. Validation chose the epoch, and τ and τ₂ if "
            "they were searched; test was only scored."
        )
    scored = (
        "Over all tasks' documents, each under this adapter."
        if exported.is_shared
        else "Over all tasks' documents; Θ is what they share, and was itself scored only at τ = ∞."
        if exported.task is None
        else "Over this task's documents."
    )
    return f"{scored} Validation chose the epoch, and τ if it was searched; test was only scored."


def _how_scored(exported: ExportedFolder) -> list[str]:
    """What the perplexities are computed on."""
    text_format, config = exported.text_format, exported.config
    before, after = (f"“{text}”" if text else "" for text in (text_format.before, text_format.after))
    what = "completion" if text_format.form == "prompt" else "text"
    parts = [markdown_text(part) for part in (before, what, after, text_format.end_token) if part]
    scored = f"What follows `{'prompt' if text_format.form == 'prompt' else 'start'}` is scored: {', '.join(parts)}"
    if text_format.form == "conversation":
        turns = {"assistant": "Every turn", "last_assistant": "The last turn"}.get(config.data.loss_on)
        scored = f"{turns} of the assistant is scored, with the token that ends it" if turns else "All turns are scored"
    overlap = config.model.overlap
    of = "of a document" if overlap is None else f"at a time, {overlap} of them given by the chunk before"
    quantization = config.model.quantization
    packed = "" if quantization is None else f" (the base's linear layers: {quantization})"
    mixed = "" if config.train.precision == "no" else f" and passes in {config.train.precision}"
    named = []
    if config.method == "task_prompt":
        before = markdown_text(repr(config.search.task_prompt))
        named = [f"`start` ends with the task's name, as in {before}: write it before each text, which is not scored."]
    return [
        *named,
        f"{scored}; at most {config.model.max_tokens} tokens {of}, "
        f"with weights in {config.model.dtype}{packed}{mixed}.",
        *([_how_merged(exported)] if exported.is_full and packed else []),
        *([] if exported.merge is None else _how_rounded(exported.merge)),
    ]


def _how_merged(exported: ExportedFolder) -> str:
    return (
        f"So the perplexities are not of this model: its adapter is merged into the base's weights in "
        f"{exported.config.model.dtype}, before they were quantised to {exported.config.model.quantization}."
    )


def _how_rounded(merge: Merge) -> list[str]:
    """What the type of the merged weights changes; nothing where that is little."""
    if merge.rounding_error < LARGE_ROUNDING_ERROR:
        return []
    return [
        "The adapter was scored apart from the weights. Merged into them it is rounded to "
        f"{merge.dtype}, which changes logits by {merge.rounding_error:.0%} of the adapter's effect. "
        "`--dtype float32` keeps it."
    ]
