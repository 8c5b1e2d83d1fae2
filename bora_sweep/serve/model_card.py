"""The model card of an exported adapter: YAML that the Hugging Face hub reads, what was fitted, how well, how to load.

A name from the data never acts as markup.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from bora_sweep.config import Config
from bora_sweep.report.text.formats import Table, markdown_table, markdown_text, perplexity_text, tau_text
from bora_sweep.runs.results import Results, perplexity

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
TOLD = 0.01  # of what the adapter does, lost by merging
ENDS = {0.0: "one model per task", math.inf: "one model for all"}


@dataclass(frozen=True)
class Exported:
    """What a card tells of, beside scores."""

    row: dict[str, Any]
    """The trial's, of `trials`."""
    task: str | None
    """None: the global adapter."""
    folder: str
    corpus: str
    """The data set's name."""
    config: Config
    """What the trial was fitted with."""
    framed: "Framed"
    rounded_away: float | None
    """Of a full model, the base with the adapter merged into it: how far rounding moved its logits, as a share of what
    the adapter does. None: an adapter alone."""

    @property
    def base(self) -> str | None:
        """What `from_pretrained` loads the base by; None: the embedded one."""
        return self.config.model.name

    @property
    def is_full(self) -> bool:
        """A full model."""
        return self.rounded_away is not None

    @property
    def has_code(self) -> bool:
        """Whether transformers and PEFT load it: they have no MoRA."""
        return self.is_full or self.row["lora_variant"] != "mora"


@dataclass(frozen=True)
class Framed:
    """What stands around a document's text when it is scored."""

    task: str
    """The document's."""
    by_task: bool
    """Whether it is another for each task."""
    start: list[int]
    """Tokens before it, unscored."""
    before: str
    """The template's words before the text."""
    after: str
    """Those after it."""
    end: str
    """The end token."""


def card(about: Exported, results: Results) -> str:
    """The card as Markdown."""
    name = "all tasks (Θ)" if about.task is None else markdown_text(about.task)
    kind = "Language model" if about.is_full else "Adapter"
    parts = [
        f"---\n{_front_matter(about)}---",
        f"# {kind} for {name}",
        _introduction(about),
        markdown_table(_facts(about, results)),
        "## Perplexity",
        markdown_table(_scores(about, results)),
        _caption(about),
        "## Use",
        "From the folder that holds this one:",
        f"```python\n{_snippet(about)}\n```",
        *(_how_scored(about) if about.has_code else []),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(about: Exported) -> str:
    front: dict[str, Any] = {}
    if about.base is not None and HUB_NAME.fullmatch(about.base):  # the hub refuses a card that names a local folder
        front |= {"base_model": about.base, "base_model_relation": "finetune" if about.is_full else "adapter"}
    if about.has_code:
        front["library_name"] = "transformers" if about.is_full else "peft"
    front |= {"pipeline_tag": "text-generation", "tags": ["bora", about.row["lora_variant"]]}
    return yaml.safe_dump(front, sort_keys=False)


def _introduction(about: Exported) -> str:
    which = "This is Θ, for a task that the fit has not seen." if about.task is None else "This is one task's θ."
    return (
        "Fitted by bora_sweep for many related tasks at once: each task's adapter θ is tied to a common one, Θ, by the "
        f"prior θ ∼ N(Θ, I/τ) (BoRA, Eide & Frigessi 2025). {which}"
    )


def _facts(about: Exported, results: Results) -> Table:
    row = about.row
    rows = [
        ["Base model", about.base or "the embedded one of bora_sweep"],
        ["Data", about.corpus],
        ["Method", row["method"]],
        ["τ", _tau(row)],
        ["Adapter", f"{row['lora_variant']}, rank {row['lora_rank']}, alpha {row['lora_alpha']:g}"],
    ]
    for split, purpose in (("train", "train on"), ("validation", "validate"), ("test", "test")):
        own = _of_split(about, results, row["trial_id"], split)
        documents, tokens = int(np.sum(own["num_documents"])), int(np.sum(own["num_tokens"]))
        rows.append([f"Documents to {purpose}", f"{documents:,} ({tokens:,} tokens)"])
    return Table(["", ""], rows)


def _scores(about: Exported, results: Results) -> Table:
    """Of this task, or of all tasks under the adapters of each, beside the ends of the prior where the run has them."""
    row, own = about.row, "each task's own adapter" if about.task is None else "this adapter"
    end = f", {ENDS[row['tau']]}" if row["method"] == "map" and row["tau"] in ENDS else ""
    rows = [[f"{own} (τ = {_tau(row)}{end})", *_perplexities(about, results, row["trial_id"])]]
    for tau, name in ENDS.items():
        other = _reference(results.trials, row, tau)
        if other not in (None, row["trial_id"]):
            rows.append([f"{name} (τ = {tau_text(tau)})", *_perplexities(about, results, other)])
    return Table(["model", "validation", "test"], rows)


def _tau(row: dict[str, Any]) -> str:
    return "none" if math.isnan(row["tau"]) else tau_text(row["tau"])


def _reference(trials: pd.DataFrame, row: dict[str, Any], tau: float) -> str | None:
    """The finished MAP fit at `tau` of the same adapters and seed; of several the best on validation."""
    wanted = {"status": "finished", "method": "map", "tau": tau}
    wanted |= {name: row[name] for name in ("lora_rank", "lora_variant", "seed")}
    alike = [other for other in trials.to_dict("records") if all(other[k] == value for k, value in wanted.items())]
    return min(alike, key=lambda other: other["validation_perplexity"])["trial_id"] if alike else None


def _perplexities(about: Exported, results: Results, trial_id: str) -> list[str]:
    parts = [_of_split(about, results, trial_id, split) for split in ("validation", "test")]
    return [perplexity_text(perplexity(np.sum(part["nll_nats"]), np.sum(part["num_tokens"]))) for part in parts]


def _of_split(about: Exported, results: Results, trial_id: str, split: str) -> pd.DataFrame:
    """The trial's rows of `task_scores`: this task's, or all."""
    scores = results.task_scores
    chosen = (scores["trial_id"] == trial_id) & (scores["split"] == split)
    return scores.loc[chosen if about.task is None else chosen & (scores["task"] == about.task)]


def _caption(about: Exported) -> str:
    scored = (
        "Over all tasks' documents; Θ is what they share, and was itself scored only at τ = ∞."
        if about.task is None
        else "Over this task's documents."
    )
    return f"{scored} Validation chose the epoch, and τ where it was searched; test was only scored."


def _snippet(about: Exported) -> str:
    if not about.has_code:
        return (
            "from safetensors.torch import load_file\n\n"
            f'M_of = load_file({about.folder!a} + "/mora.safetensors")  # by module; PEFT has no MoRA, '
            "docs/adapters.md of bora_sweep says how M acts"
        )
    name = ascii(about.folder) if about.is_full else "BASE" if about.base is None else ascii(about.base)
    model = about.config.model
    code = ", trust_remote_code=True" if model.trust_remote_code else ""
    loaded = f"AutoModelForCausalLM.from_pretrained({name}, dtype=torch.{model.dtype}{code})"
    before = f"{about.framed.before!a} + " if about.framed.before else ""
    one_of = f", here one of {about.framed.task!a}" if about.task is None and about.framed.by_task else ""
    lines = [
        "import torch",
        *([] if about.is_full else ["from peft import PeftModel"]),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = {loaded}",
        f"tokenizer = AutoTokenizer.from_pretrained({name}{code})",
        *([] if about.is_full else [f"model = PeftModel.from_pretrained(model, {about.folder!a})"]),
        "",
        f"start = {about.framed.start}  # what a document begins with{one_of}",
        f'ids = start + tokenizer({before}"I will", add_special_tokens=False)["input_ids"]',
        "print(tokenizer.decode(model.generate(input_ids=torch.tensor([ids]), max_new_tokens=32)[0]))",
    ]
    return "\n".join(lines)


def _how_scored(about: Exported) -> list[str]:
    """What the perplexities are of."""
    framed, config = about.framed, about.config
    around = [f"“{framed.before}”" if framed.before else "", "text", f"“{framed.after}”" if framed.after else ""]
    parts = [markdown_text(part) for part in [*around, framed.end] if part]
    mixed = "" if config.train.precision == "no" else f" and passes in {config.train.precision}"
    return [
        f"Scored is what follows `start`: {', '.join(parts)}; {config.model.max_tokens} tokens of a document at most, "
        f"with weights in {config.model.dtype}{mixed}.",
        *([] if (about.rounded_away or 0) < TOLD else [_how_rounded(about)]),
    ]


def _how_rounded(about: Exported) -> str:
    return (
        f"That was with the adapter beside the weights. Merged into them it is rounded to {about.config.model.dtype}, "
        f"which moves logits by {about.rounded_away:.0%} of what the adapter does."
    )
