"""A fit's adapters as folders that other programs read: PEFT's own format where PEFT has the variant.

`OUT/_global/` holds Theta, `OUT/FOLDER/` a task's adapter, and `OUT/index.json` says which folder is whose.

Shapes: K tasks, P parameters of one adapter.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.adapters import Layout, lay_out
from bora_sweep.model.variants import Site

GLOBAL = "_global"
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def export_adapters(
    tensors: dict[str, Tensor], about: dict[str, Any], out: Path, tasks: Sequence[str] | None = None
) -> dict[str, str]:
    """Write Theta and the tasks' adapters below `out`, each in a folder of its own.

    A PEFT folder loads by `PeftModel.from_pretrained(base, folder)`. PEFT has no MoRA: such a folder has `config.json`
    and `mora.safetensors` instead, the matrices M by the paths of their modules.

    Args:
        tensors: `mean_P` and `theta_KP`, and
        about: what they are, both as `bora_sweep.train.checkpoint.load_adapters` reads them from a trial's folder.
        out: The folder; new or empty.
        tasks: Names; left out: all.

    Returns:
        The folder of each task, as in `index.json`.

    Raises:
        InputError: `out` holds something, or there is no such task.
    """
    theta_of = dict(zip(about["tasks"], tensors["theta_KP"], strict=True))
    for task in tasks or ():
        if task not in theta_of:
            near = get_close_matches(task, theta_of, n=3, cutoff=0.0)
            raise InputError(f"--task {task}: the run has no such task; the nearest names are {', '.join(near)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already and not empty; give a new folder")
    folders = {task: name for task, name in safe_names(about["tasks"]).items() if tasks is None or task in tasks}
    config = LoraConfig(**about["lora"])
    layout = lay_out([Site(**site) for site in about["sites"]], config)
    write = _write_mora if config.variant == "mora" else _write_peft
    for folder, theta_P in [(GLOBAL, tensors["mean_P"]), *((folders[task], theta_of[task]) for task in folders)]:
        (out / folder).mkdir(parents=True)
        write(out / folder, layout, theta_P, config, about["model"])
    (out / "index.json").write_text(json.dumps(folders, ensure_ascii=False, indent=2), encoding="utf-8")
    return folders


def safe_names(tasks: Sequence[str]) -> dict[str, str]:
    """A folder's name for each task: its own where that is plain, else what is plain of it, a dot and a hash.

    Plain: ASCII letters, digits, `-` and `_`, a letter or digit first, 64 at most, and no other task's name in other
    case. No two names are alike on any file system, and none is `_global`.
    """
    lower = [task.lower() for task in tasks]
    names = {}
    for task in tasks:
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", task) is not None and lower.count(task.lower()) == 1
        kept = re.sub(r"[^A-Za-z0-9]+", "-", task)[:40].strip("-") or "task"
        names[task] = task if plain else f"{kept}.{hashlib.sha256(task.encode()).hexdigest()[:12]}"
    return names


def _write_peft(folder: Path, layout: Layout, theta_P: Tensor, config: LoraConfig, base: str | None) -> None:
    from peft import LoraConfig as PeftConfig

    PeftConfig(
        r=config.rank,
        lora_alpha=config.resolved_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        use_rslora=config.variant == "rslora",
        use_dora=config.variant == "dora",
        target_modules=[site.name for site in layout.sites],
        fan_in_fan_out=any(site.transposed for site in layout.sites),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(folder))
    named = {
        f"base_model.model.{name}.{PEFT_NAMES[kind]}": part.clone()
        for name, parts in layout.split(theta_P).items()
        for kind, part in parts.items()
    }
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})


def _write_mora(folder: Path, layout: Layout, theta_P: Tensor, config: LoraConfig, base: str | None) -> None:
    described = {
        "format": "bora_sweep MoRA, not a PEFT adapter; see docs/adapters.md of bora_sweep",
        "variant": config.variant,
        "rank": config.rank,
        "base_model_name_or_path": base,
        "target_modules": [site.name for site in layout.sites],
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    named = {name: parts["M"].clone() for name, parts in layout.split(theta_P).items()}
    save_file(named, folder / "mora.safetensors", {"format": "pt"})
