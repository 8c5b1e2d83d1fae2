"""The card of a whole export, and the head of any card, by which the Hugging Face hub finds and shows it."""

import re
from typing import Any

import yaml

from bora_sweep.config import Config
from bora_sweep.model.peft_config import IN_PEFT
from bora_sweep.model.peft_io import CARD, GLOBAL, GROUPS, TASKS
from bora_sweep.serve.load import LoadedTrial

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


def hub_front(config: Config, variant: str, *, is_full: bool, has_code: bool) -> str:
    """The YAML of a card's head."""
    front: dict[str, Any] = {}
    base = config.model.name
    if base is not None and HUB_NAME.fullmatch(base):  # the hub refuses the name of a local folder
        front |= {"base_model": base, "base_model_relation": "finetune" if is_full else "adapter"}
    if has_code:
        front["library_name"] = "transformers" if is_full else "peft"
    front |= {"pipeline_tag": "text-generation", "tags": ["bora", variant]}
    return yaml.safe_dump(front, sort_keys=False)


def index_card(loaded: LoadedTrial, *, merged: bool) -> str:
    """The card of a whole export. It names no task and sums up nothing, so that it stays right when tasks leave."""
    is_peft = loaded.lora.variant in IN_PEFT
    front = hub_front(loaded.config, loaded.lora.variant, is_full=merged, has_code=merged or is_peft)
    what = "Full models" if merged else "Adapters"
    each = "the one of all tasks" if loaded.is_shared else "Θ, for a task that the fit has not seen"
    folders = f"`{TASKS}` names each task's folder. `{GLOBAL}/` is {each}."
    if loaded.theta_g:
        folders += (
            f" `{GROUPS}` names each group's folder, with Θ_g, for a task of the group that the fit has not seen."
        )
    lines = [
        f"---\n{front}---",
        f"# {what} of related tasks",
        f"Fitted by bora_sweep for many related tasks at once (BoRA, Eide & Frigessi 2025). {folders} Each folder's "
        f"{CARD} says what it was fitted on, its perplexities, and how to load it.",
    ]
    if is_peft and not merged:
        lines.append(
            "From the hub, PEFT loads a task's adapter by `PeftModel.from_pretrained(base, OWNER_NAME, "
            "subfolder=FOLDER)`."
        )
    elif merged:
        lines.append(
            "From the hub, transformers loads a task's model by `AutoModelForCausalLM.from_pretrained(OWNER_NAME, "
            "subfolder=FOLDER)`."
        )
    return "\n\n".join(lines) + "\n"
