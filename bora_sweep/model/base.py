"""Loads the frozen base model and its tokenizer, from the hub, a local folder or the embedded corpus."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from bora_sweep.config import DataConfig, ModelConfig
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.lengths import beyond_positions
from bora_sweep.model.peft_config import ADAPTER_CONFIG
from bora_sweep.model.placement import refuse_missing_gpu, refuse_offloading
from bora_sweep.model.quantization import (
    finish_loading,
    is_quantised,
    loading_options,
    refuse_missing_package,
    refuse_quantised_files,
)
from bora_sweep.model.trial_logits import vocabulary_size

SAFETENSORS_AT = {"facebook/opt-350m": "refs/pr/33"}
"""Revisions with safetensors weights, for models whose main revision has only a pickle."""

UNREADABLE = (
    OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, AssertionError,
    SafetensorError,
)  # fmt: skip
HAS_ADAPTER = (
    f"holds {ADAPTER_CONFIG}, an adapter that transformers would load onto the base by itself; give a base alone, "
    "without that file (a fit begins with an adapter by init_from)"
)


def base_name(model: ModelConfig, data: DataConfig) -> str:
    """The argument of `from_pretrained`: `model.name`, or the folder of the embedded base, which is created if missing.

    Raises:
        InputError: `model.name` is not set, is no folder, or holds an adapter.
    """
    if model.name is not None:
        if model.name.startswith((".", "/")) and not Path(model.name).is_dir():
            raise InputError(f"model.name={model.name}: no such folder; {_how_to_fetch('OWNER/NAME', model.name)}")
        if (Path(model.name) / ADAPTER_CONFIG).is_file():
            raise InputError(f"model.name={model.name}: {HAS_ADAPTER}")
        return model.name
    if data.kind != "synthetic":
        raise InputError(
            "model.name is not set: name the base model for your text, a Hugging Face name such as facebook/opt-350m "
            "or a local folder"
        )
    from bora_sweep.model.embedded import base_model_folder

    logging.disable_progress_bar()
    return str(base_model_folder(data.synthetic, progress=True))


def model_folder(model: ModelConfig, data: DataConfig) -> Path:
    """The local folder that the base model is loaded from: `model.name`, or a snapshot in the hub's cache.

    A model of the hub is downloaded into the cache first if it is not there.

    Raises:
        InputError: It cannot be downloaded.
    """
    name = base_name(model, data)
    if Path(name).is_dir():
        return Path(name)
    try:
        config = cached_file(name, "config.json")
        index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
        if index is None:
            cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
        else:
            get_checkpoint_shard_files(name, index)
    except OSError as error:
        mend = f"without network: {_how_to_fetch(name)}"
        raise InputError(f"model.name={name}: cannot be fetched ({one_line(error, limit=200)}); {mend}") from error
    assert config is not None
    return Path(config).parent


def load_tokenizer(model: ModelConfig, data: DataConfig) -> PreTrainedTokenizerBase:
    """The base model's tokenizer.

    Raises:
        InputError: It cannot be loaded.
    """
    return _load(AutoTokenizer, model, base_name(model, data))


def weights_dtype(model: ModelConfig) -> torch.dtype:
    """The type that `model.dtype` means on this machine."""
    if model.dtype != "auto":
        return getattr(torch, model.dtype)
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def dtype_of_files(model: ModelConfig, data: DataConfig) -> torch.dtype:
    """The type of the base's weights in its files: what its config.json says, else that of the first weight.

    Raises:
        InputError: The files cannot be read.
    """
    named = _load(AutoConfig, model, base_name(model, data)).dtype
    if named is not None:
        return named if isinstance(named, torch.dtype) else getattr(torch, named)
    folder = model_folder(model, data)
    with safe_open(min(folder.glob("*.safetensors")), "pt") as weights:
        return weights.get_tensor(min(weights.keys())).dtype


def load_base(model: ModelConfig, data: DataConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The base model, quantised if that is asked for. Only safetensors are read; nothing is unpickled.

    It is on the CPU, or by `model.device_map` on the GPUs.

    Args:
        model: Which, and how it is held.
        data: Where `model` names none, the embedded corpus whose base it is.
        dtype: The type of its weights; None: `model.dtype`.

    Raises:
        InputError: It cannot be loaded, or its files are not exactly the model of its config.json; or what
            `model.quantization` or `model.device_map` needs is not there.
    """
    refuse_missing_package(model)
    refuse_missing_gpu(model)
    name, dtype = base_name(model, data), dtype or weights_dtype(model)
    if model.quantization is not None:
        refuse_quantised_files(model, _load(AutoConfig, model, name))
    report_all = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # wrong weights are refused below
    options = loading_options(model, dtype)
    if model.device_map is not None:
        options["device_map"] = model.device_map
    loaded: Any = _load(AutoModelForCausalLM, model, name, dtype=dtype, use_safetensors=True, **report_all, **options)
    base, info = loaded
    refuse_offloading(base, model)
    if is_quantised(base):
        finish_loading(base, model)
    if getattr(base, "_hf_peft_config_loaded", False):
        raise InputError(f"model.name={name}: {HAS_ADAPTER}")
    _refuse_other_weights(base, name, info)
    base.config.return_dict = True  # whatever its config.json says
    return base


def _refuse_other_weights(base: PreTrainedModel, name: str, info: dict[str, set]) -> None:
    """Refuse files with other weights than the model's: missing ones would be random, surplus ones ignored."""
    if mismatched := sorted(info["mismatched_keys"]):
        key, shape, needed = mismatched[0]
        raise InputError(
            f"model.name={name}: {key} has shape {tuple(shape)} in its files where config.json asks for {tuple(needed)}"
            f"{_and_more(mismatched)}; give weights and config.json of one model"
        )
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"model.name={name}: its files have no {missing[0]}{_and_more(missing)}, which would be random; give a "
            f"checkpoint of {type(base).__name__}, head included"
        )
    if unused := sorted(key for key in info["unexpected_keys"] if _belongs(base, key)):
        raise InputError(
            f"model.name={name}: its files have {unused[0]}{_and_more(unused)}, for which the model of its config.json "
            "has no place, so that it would be another model; give weights and config.json of one model"
        )


def _belongs(base: PreTrainedModel, key: str) -> bool:
    """Whether a surplus weight belongs to a module of this model, or to one more of its blocks.

    Other surplus weights are of parts that this kind of model does not have, such as a classifier or an encoder.
    """
    path, module = key.split("."), base
    for piece in path[:-1]:
        if not hasattr(module, piece):
            break
        module = getattr(module, piece)
    return isinstance(module, nn.ModuleList) or next(module.parameters(recurse=False), None) is not None


def _and_more(keys: list) -> str:
    return f" ({len(keys) - 1} more are alike)" if len(keys) > 1 else ""


def empty_base(model: ModelConfig, data: DataConfig) -> PreTrainedModel:
    """The base model without weights, as if it were not quantised, to check cheaply whether adapters fit.

    Raises:
        InputError: Its configuration cannot be loaded.
    """
    name = base_name(model, data)
    config = _load(AutoConfig, model, name)
    refuse_quantised_files(model, config)
    with torch.device("meta"), _loading_errors(name, "model"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)


def refuse_mismatch(base: PreTrainedModel, largest_token: int, longest: int) -> None:
    """Refuse token sequences that the model cannot process, as far as its configuration says without weights.

    Args:
        base: The base model, whose weights may be absent.
        largest_token: The largest token ID.
        longest: Tokens of the longest sequence.

    Raises:
        InputError: A token is beyond the vocabulary, or a sequence is longer than the model's positions.
    """
    size = vocabulary_size(base)
    if largest_token >= size:
        raise InputError(f"token {largest_token} is beyond the model's vocabulary of {size}: not its own tokenizer?")
    if problem := beyond_positions(base, longest):
        raise InputError(f"model.max_tokens: sequences of {longest} tokens, but {problem}")


def _load(loader, model: ModelConfig, name: str, **options):
    logging.disable_progress_bar()
    with _loading_errors(name, "tokenizer" if loader is AutoTokenizer else "model"):
        return loader.from_pretrained(name, trust_remote_code=model.trust_remote_code, **options)


@contextmanager
def _loading_errors(name: str, what: str) -> Iterator[None]:
    """Within, a library's error about a model's files becomes an InputError that says what to do."""
    try:
        yield
    except UNREADABLE as error:
        is_local = Path(name).is_dir()
        mend = _how_to_complete(Path(name)) if is_local else f"without network: {_how_to_fetch(name)}"
        raise InputError(
            f"model.name={name}: its {what} cannot be loaded ({one_line(error, limit=200)}); {mend}"
        ) from error


def _how_to_fetch(name: str, folder: str | None = None) -> str:
    """The command that downloads the model on a machine with network, and how to use the download here."""
    folder = folder or f"./{name.rpartition('/')[2]}"
    revision = f" --revision {SAFETENSORS_AT[name]}" if name in SAFETENSORS_AT else ""
    command = f"hf download {name}{revision} --local-dir {folder} --exclude '*.bin' '*.h5' '*.msgpack'"
    return f"run `{command}` where the hub can be reached, bring the folder here, and set model.name={folder}"


def _how_to_complete(folder: Path) -> str:
    """Which files of a base model are missing in its folder, and how to get them."""
    needed = {
        "config.json": ["config.json"],
        "*.safetensors": ["*.safetensors"],
        "tokenizer.json, or vocab.json with merges.txt": ["tokenizer.json", "vocab.json", "*.model"],
    }
    missing = [name for name, patterns in needed.items() if not any(any(folder.glob(p)) for p in patterns)]
    lacks = f"the folder lacks {' and '.join(missing)}: " if missing else ""
    has_pickles = any(folder.glob("*.bin")) and "*.safetensors" in missing
    never = "weights in *.bin are pickles, which are never loaded; " if has_pickles else ""
    at = " and ".join(f"{name} has safetensors at --revision {revision}" for name, revision in SAFETENSORS_AT.items())
    return f"{lacks}{never}give what save_pretrained of model and tokenizer writes, or fetch it by `hf download` ({at})"
