"""Adapters as folders that other programs read, and back: PEFT's own format where PEFT has the variant.

`FOLDER/_global/` holds Theta, `FOLDER/NAME/` a task's adapter, and `FOLDER/tasks.json` says which folder is whose.

Shapes: K tasks, P parameters of one adapter.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bora_sweep.config import LoraConfig
from bora_sweep.data.known_documents import DOCUMENTS
from bora_sweep.data.task_folders import folder_name
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.layout import Layout, Part

if TYPE_CHECKING:
    from peft import LoraConfig as PeftConfig

GLOBAL, TASKS = "_global", "tasks.json"
DESCRIPTION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}

# Keys of adapter_config.json that are read here, or that say nothing about what trained weights mean. Any other that is
# not at PEFT's default may change what the adapter does.
KNOWN = {
    "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "lora_dropout", "fan_in_fan_out", "inference_mode", "task_type", "base_model_name_or_path",
    "revision", "auto_mapping", "peft_version", "ensure_weight_tying",
}  # fmt: skip
# `target_parameters` is known too, but not of a weight that is kept transposed, to which PEFT would add B A as it is.
LEAVES_BASE = (True, False, "gaussian", "orthogonal", "eva")  # values of init_lora_weights; the others subtract from W


def folder_names(tasks: Sequence[str]) -> dict[str, str]:
    """A folder's name for each task, no two alike on any file system.

    `_global`, `tasks.json` and `documents.parquet` stay free.

    `folder_name`'s, and where several tasks would have that, a tilde and a hash of the task's own name after it.
    """
    plain = {task: folder_name(task) for task in tasks}
    times = Counter([TASKS, DOCUMENTS, *(name.casefold() for name in plain.values())])
    return {task: name if times[name.casefold()] == 1 else f"{name}~{_hash(task)}" for task, name in plain.items()}


def _hash(task: str) -> str:
    return hashlib.sha256(task.encode(errors="surrogatepass")).hexdigest()[:12]


def write_adapter(
    folder: Path,
    layout: Layout,
    theta_P: Tensor,
    config: LoraConfig,
    base: str | None,
    by_weight: Collection[str] = (),
) -> None:
    """Write one adapter into `folder`, which is made.

    A PEFT folder loads by `PeftModel.from_pretrained(base, folder)`. PEFT has no MoRA: such a folder has `config.json`
    and `mora.safetensors` instead, the matrices M by the paths of their modules.

    Args:
        folder: Where.
        layout: What the parameters are.
        theta_P: The adapter.
        config: Its rank, alpha and variant.
        base: What `from_pretrained` loads the base model by; None: not said.
        by_weight: Sites that PEFT is told of by their weights, as `bora_sweep.model.peft_check.sites_by_weight` has it.
    """
    folder.mkdir(parents=True)
    if config.variant == "mora":
        _write_mora(folder, layout, theta_P, config, base)
        return
    peft_config(layout, config, base, by_weight).save_pretrained(str(folder))
    named = {peft_key(part): matrix.clone() for part, matrix in named_parts(layout, theta_P)}
    (folder / WEIGHTS).write_bytes(save(named, {"format": "pt"}))


def peft_config(layout: Layout, config: LoraConfig, base: str | None, by_weight: Collection[str]) -> "PeftConfig":
    """The adapters of `layout` as PEFT describes them; arguments as in `write_adapter`."""
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=config.rank,
        lora_alpha=config.resolved_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        use_rslora=config.variant == "rslora",
        use_dora=config.variant == "dora",
        target_modules=[site.name for site in layout.sites if site.name not in by_weight],
        target_parameters=[f"{site.name}.weight" for site in layout.sites if site.name in by_weight] or None,
        fan_in_fan_out=any(site.transposed for site in layout.sites),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def named_parts(layout: Layout, theta_P: Tensor) -> Iterator[tuple[Part, Tensor]]:
    """Each part of an adapter, and its matrix or vector."""
    for part, flat in zip(layout.parts, theta_P.split(layout.sizes), strict=True):
        yield part, flat.view(part.shape)


def peft_key(part: Part) -> str:
    """Its name in PEFT's files."""
    return f"base_model.model.{part.site.name}.{PEFT_NAMES[part.kind]}"


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
    (folder / "mora.safetensors").write_bytes(save(named, {"format": "pt"}))


def read_adapters(
    source: Path, layout: Layout, config: LoraConfig, tasks: Sequence[str], base: str | None = None
) -> tuple[Tensor, Tensor]:
    """mean_P and theta_KP of PEFT adapters, for a fit of `tasks` to begin with: what `write_adapter` wrote, to the bit.

    Args:
        source: One adapter's folder, which is Theta and every task's; or a folder of them with a `tasks.json`, where
            Theta is `_global`, or the tasks' mean if there is none, and a task that is not there begins at Theta.
        layout: Where the fit has adapters.
        config: Their rank, alpha and variant.
        tasks: The fit's.
        base: What `from_pretrained` loads the fit's base by; None, or an adapter that names none: not compared.

    Raises:
        InputError: There is no adapter, or one that the fit could not go on from as it is.
    """

    def read(folder: Path) -> Tensor:
        return _read_peft(folder, layout, config, base)

    if (source / DESCRIPTION).is_file():
        mean_P = read(source)
        return mean_P, mean_P.expand(len(tasks), -1)
    theta_of = {task: read(source / name) for task, name in _folders(source).items()}
    if (source / GLOBAL).is_dir():
        mean_P = read(source / GLOBAL)
    elif theta_of:
        mean_P = torch.stack(list(theta_of.values())).mean(0)
    else:
        raise InputError(f"init_from={source}: {TASKS} names no task, and there is no {GLOBAL}")
    return mean_P, torch.stack([theta_of.get(task, mean_P) for task in tasks])


def _folders(source: Path) -> dict[str, str]:
    """The folder of each task, as `tasks.json` has it, checked: it may come from anywhere."""
    if not source.is_dir():
        raise InputError(f"init_from={source}: no such folder")
    if not (source / TASKS).is_file():
        raise InputError(
            f"init_from={source}: holds neither {DESCRIPTION} nor {TASKS}; give a PEFT adapter's folder, or one that "
            "bora-sweep export wrote"
        )
    folders = _read_json(source / TASKS)
    for task, name in folders.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise InputError(f"init_from={source}: {TASKS} gives task {task!r} {name!r}; need a folder's plain name")
    return folders


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"init_from: {path} cannot be read ({one_line(error, limit=200)})") from None
    if not isinstance(found, dict):
        raise InputError(f"init_from: {path} holds no JSON object")
    return found


def _read_peft(folder: Path, layout: Layout, config: LoraConfig, base: str | None) -> Tensor:
    """theta_P of one folder, in float32 at least."""
    if folder.is_dir() and not (folder / DESCRIPTION).is_file():
        raise InputError(
            f"init_from={folder}: holds no {DESCRIPTION}, so no PEFT adapter: full models and MoRA are none; export "
            "again without --merge, from a fit of another lora.variant"
        )
    described = _read_json(folder / DESCRIPTION)
    _refuse_other_base(folder, described.get("base_model_name_or_path"), base)
    _refuse_other_kinds(folder, described, layout, config)
    try:
        named = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"init_from={folder}: {WEIGHTS} cannot be read ({one_line(error, limit=200)}); only safetensors are, "
            "nothing is unpickled"
        ) from None
    shape_of = {peft_key(part): part.shape for part in layout.parts}
    if different := sorted(shape_of.keys() ^ named.keys()):
        whose = "the adapter lacks" if different[0] in shape_of else "the fit has no place for"
        raise InputError(
            f"init_from={folder}: {whose} {different[0]}, and {len(different) - 1} more do not match; set "
            "lora.target_modules to the adapter's, and model.name to its base"
        )
    for key, shape in shape_of.items():
        if named[key].shape != shape:
            raise InputError(
                f"init_from={folder}: {key} has shape {tuple(named[key].shape)} where the model needs {shape}; set "
                "model.name to the adapter's base"
            )
    for key in shape_of:
        if not named[key].isfinite().all():
            raise InputError(f"init_from={folder}: {key} holds values that are no finite numbers; give another adapter")
    theta_P = torch.cat([named[key].flatten() for key in shape_of])
    return theta_P.to(torch.promote_types(theta_P.dtype, torch.float32))


def _refuse_other_base(folder: Path, found: object, base: str | None) -> None:
    """Refuse an adapter of a base of another name, wherever the two lie: numbers alone do not tell bases apart."""
    if isinstance(found, str) and base is not None and _last_name(found) != _last_name(base):
        raise InputError(
            f"init_from={folder}: is an adapter of {found}, and the fit's base is model.name={base}; set model.name to "
            f"the adapter's; or, if both are the same model, base_model_name_or_path in its {DESCRIPTION} to the fit's"
        )


def _last_name(base: str) -> str:
    """Of a hub's name, a folder, or a snapshot in the hub's cache."""
    parts = [part for part in base.replace("\\", "/").casefold().split("/") if part not in ("", ".")]
    cached = [part for part in parts if part.startswith("models--")]
    return cached[-1].rpartition("--")[2] if cached else parts[-1] if parts else ""


def _refuse_other_kinds(folder: Path, described: dict[str, Any], layout: Layout, config: LoraConfig) -> None:
    """Refuse an adapter whose weights would mean something else in this fit."""
    from peft import LoraConfig as PeftConfig

    default = {**PeftConfig().to_dict(), "peft_type": "LORA"}
    known = KNOWN | (set() if any(site.transposed for site in layout.sites) else {"target_parameters"})
    strange = {
        key: value
        for key, value in described.items()
        if key not in known
        and (value not in LEAVES_BASE if key == "init_lora_weights" else value and value != default.get(key))
    }
    for key, value in strange.items():
        raise InputError(
            f"init_from={folder}: {DESCRIPTION} has {key}={value!r}; a fit begins with plain LoRA, rsLoRA or DoRA only"
        )
    marks = [name for name in ("rslora", "dora") if described.get(f"use_{name}")]
    found = {"rank": described.get("r"), "alpha": described.get("lora_alpha"), "variant": "+".join(marks) or "lora"}
    variant = "lora" if config.variant == "lora_plus" else config.variant  # differs in its learning rates alone
    asked = {"rank": config.rank, "alpha": config.resolved_alpha, "variant": variant}
    wrong = [name for name in asked if asked[name] != found[name]]
    if wrong:
        has, need = (", ".join(f"lora.{name}={kind[name]}" for name in wrong) for kind in (found, asked))
        raise InputError(f"init_from={folder}: the adapter has {has}, the fit {need}; give the fit the adapter's")
