"""Writes and reads folders of adapters, in PEFT's own format if PEFT has the variant.

`FOLDER/_global/` holds Theta, `FOLDER/NAME/` a task's adapter, and `FOLDER/tasks.json` each task's folder.

Shapes: K tasks, P parameters of one adapter.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bora_sweep.config import LoraConfig
from bora_sweep.data.known_documents import DOCUMENTS
from bora_sweep.data.task_folders import folder_name
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.layout import Layout, Part
from bora_sweep.model.peft_config import ADAPTER_CONFIG, peft_config, peft_key, refuse_other_base, refuse_other_kind
from bora_sweep.runs.storage import Folder

GLOBAL, TASKS = "_global", "tasks.json"
GROUP_PREFIX, GROUPS = "_group_", "groups.json"
"""Before the name of a group; and, in an export, the file with the folder of each group and the group of each task."""
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
BANK = "adapters.safetensors"
"""What a bank has in place of folders, see `bora_sweep.serve.bank`."""
MORA_CONFIG, MORA_WEIGHTS = "config.json", "mora.safetensors"


def folder_names(tasks: Sequence[str]) -> dict[str, str]:
    """A folder name for each task, all different on any file system, and none the name of another file of an export.

    It is `folder_name(task)`. If several tasks would have the same one, a tilde and a hash of the task's name follow.
    """
    plain = {task: folder_name(task) for task in tasks}
    times = Counter([TASKS, DOCUMENTS, CARD.casefold(), *(name.casefold() for name in plain.values())])
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
    quantization: str | None = None,
) -> None:
    """Write one adapter into a new folder.

    A PEFT folder loads by `PeftModel.from_pretrained(base, folder)`. PEFT has no MoRA: such a folder has `config.json`
    and `mora.safetensors` instead, with the matrices M by the paths of their modules.

    Args:
        folder: The folder, which is created.
        layout: The adapter's layout.
        theta_P: The adapter.
        config: Its rank, alpha and variant.
        base: What `from_pretrained` loads the base model by; None: left out.
        by_weight: Sites that PEFT must be given as `target_parameters` (`peft_check.sites_by_weight`).
        quantization: How the base was quantised that it was fitted on; the metadata of the weights' file has it.
    """
    folder.mkdir(parents=True)
    metadata = {"format": "pt"} if quantization is None else {"format": "pt", "base_quantization": quantization}
    if config.variant == "mora":
        _write_mora(folder, layout, theta_P, config, base, metadata)
        return
    peft_config(layout, config, base, by_weight).save_pretrained(str(folder))
    named = {peft_key(part): matrix.clone() for part, matrix in named_parts(layout, theta_P)}
    (folder / WEIGHTS).write_bytes(save(named, metadata))


def named_parts(layout: Layout, theta_P: Tensor) -> Iterator[tuple[Part, Tensor]]:
    """Each part of an adapter with its matrix or vector."""
    for part, flat in zip(layout.parts, theta_P.split(layout.sizes), strict=True):
        yield part, flat.view(part.shape)


def _write_mora(
    folder: Path, layout: Layout, theta_P: Tensor, config: LoraConfig, base: str | None, metadata: dict[str, str]
) -> None:
    description = {
        "format": "bora_sweep MoRA, not a PEFT adapter; see docs/adapters.md of bora_sweep",
        "variant": config.variant,
        "rank": config.rank,
        "base_model_name_or_path": base,
        "target_modules": [site.name for site in layout.sites],
    }
    (folder / MORA_CONFIG).write_text(json.dumps(description, indent=2), encoding="utf-8")
    named = {name: parts["M"].clone() for name, parts in layout.split(theta_P).items()}
    (folder / MORA_WEIGHTS).write_bytes(save(named, metadata))


def read_adapters(
    source: Path, layout: Layout, config: LoraConfig, tasks: Sequence[str], base: str | None = None
) -> tuple[Tensor, Tensor]:
    """Read PEFT adapters for a fit to begin with; values that `write_adapter` wrote come back bit for bit.

    Args:
        source: One adapter's folder, for Theta and every task; or a folder of adapters with a `tasks.json`. There
            Theta is `_global`, else the tasks' mean, and a task without a folder begins at Theta.
        layout: Where the fit has adapters.
        config: Their rank, alpha and variant.
        tasks: The fit's K tasks.
        base: What `from_pretrained` loads the fit's base by. Not compared if it, or the adapter's base, is None.

    Returns:
        mean_P and theta_KP, in float32 at least.

    Raises:
        InputError: There is no adapter, or the fit cannot use one unchanged.
    """

    def read(folder: Path) -> Tensor:
        return _read_adapter(folder, layout, config, base)

    if (source / BANK).is_file():
        raise InputError(f"init_from={source}: a bank, which is not read here; export again without --bank")
    if (source / ADAPTER_CONFIG).is_file():
        mean_P = read(source)
        return mean_P, mean_P.expand(len(tasks), -1)
    folder_of = read_folder_names(source)
    theta_of_folder = {name: read(source / name) for name in dict.fromkeys(folder_of.values())}  # tasks may share one
    theta_of = {task: theta_of_folder[name] for task, name in folder_of.items()}
    if (source / GLOBAL).is_dir():
        mean_P = read(source / GLOBAL)
    elif theta_of:
        mean_P = torch.stack(list(theta_of.values())).mean(0)
    else:
        raise InputError(f"init_from={source}: {TASKS} names no task, and there is no {GLOBAL}")
    return mean_P, torch.stack([theta_of.get(task, mean_P) for task in tasks])


def read_folder_names(source: Folder, key: str = "init_from=") -> dict[str, str]:
    """The folder of each task by `tasks.json`, checked, since the file may come from anywhere.

    Args:
        source: The folder of adapters.
        key: What it was given for, for messages.

    Raises:
        InputError: There is no such file, or it names something else than folders within.
    """
    if not source.is_dir():
        raise InputError(f"{key}{source}: no such folder")
    if not (source / TASKS).is_file():
        raise InputError(
            f"{key}{source}: holds neither {ADAPTER_CONFIG} nor {TASKS}; give a PEFT adapter's folder, or one "
            "that bora-sweep export wrote"
        )
    names = _read_json(source / TASKS)
    for task, name in names.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise InputError(f"{key}{source}: {TASKS} gives task {task!r} {name!r}; need a folder's plain name")
    return names


def _read_json(path: Folder) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"init_from: {path} cannot be read ({one_line(error, limit=200)})") from None
    if not isinstance(value, dict):
        raise InputError(f"init_from: {path} holds no JSON object")
    return value


def _read_adapter(folder: Path, layout: Layout, config: LoraConfig, base: str | None) -> Tensor:
    """theta_P of one PEFT folder, in float32 at least."""
    if folder.is_dir() and not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"init_from={folder}: holds no {ADAPTER_CONFIG}, so no PEFT adapter: full models and MoRA are none; export "
            "again without --merge, from a fit of another lora.variant"
        )
    description = _read_json(folder / ADAPTER_CONFIG)
    refuse_other_base(folder, description.get("base_model_name_or_path"), base)
    refuse_other_kind(folder, description, layout, config)
    named = _read_weights(folder, layout)
    theta_P = torch.cat([named[peft_key(part)].flatten() for part in layout.parts])
    return theta_P.to(torch.promote_types(theta_P.dtype, torch.float32))


def _read_weights(folder: Path, layout: Layout) -> dict[str, Tensor]:
    """The tensors of one PEFT folder, checked against the layout."""
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
    return named
