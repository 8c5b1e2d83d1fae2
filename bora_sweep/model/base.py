"""The frozen base model and its tokenizer: from a hub name, a local folder, or the embedded one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from bora_sweep.config import DataConfig, ModelConfig
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.lengths import beyond_positions

SAFETENSORS_AT = {"facebook/opt-350m": "refs/pr/33"}
"""Revisions with safetensors weights, of models whose main one has a pickle alone."""

UNREADABLE = (
    OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, AssertionError,
    SafetensorError,
)  # fmt: skip
ADAPTER = "adapter_config.json"
_ADAPTER_THERE = (
    f"holds {ADAPTER}, an adapter that transformers would load onto the base by itself; give a base alone, without "
    "that file (a fit begins with an adapter by init_from)"
)


def base_name(model: ModelConfig, data: DataConfig) -> str:
    """What `from_pretrained` is given: `model.name`, or the embedded base's folder, made if it is not there yet."""
    if model.name is not None:
        if model.name.startswith((".", "/")) and not Path(model.name).is_dir():
            raise InputError(f"model.name={model.name}: no such folder; {_how_to_fetch('OWNER/NAME', model.name)}")
        if (Path(model.name) / ADAPTER).is_file():
            raise InputError(f"model.name={model.name}: {_ADAPTER_THERE}")
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
    """The folder of this machine that the base model is loaded from: its own, or that of the hub's cache.

    What the hub has is fetched into its cache first, where it is not there yet.

    Raises:
        InputError: It cannot be fetched.
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


def load_base(model: ModelConfig, data: DataConfig) -> PreTrainedModel:
    """The base model in `model.dtype`, on the CPU; its weights are read as safetensors alone, nothing is unpickled.

    Raises:
        InputError: It cannot be loaded, or not all of it is in its files.
    """
    name, dtype = base_name(model, data), getattr(torch, model.dtype)
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which are refused below, by name
    loaded: Any = _load(AutoModelForCausalLM, model, name, dtype=dtype, use_safetensors=True, **told)
    base, info = loaded
    if getattr(base, "_hf_peft_config_loaded", False):
        raise InputError(f"model.name={name}: {_ADAPTER_THERE}")
    _refuse_other_weights(base, name, info)
    base.config.return_dict = True  # which its own may say otherwise
    return base


def _refuse_other_weights(base: PreTrainedModel, name: str, info: dict[str, set]) -> None:
    """Refuse files whose weights are not the model's: what is absent would be drawn at random, the rest left out."""
    if other := sorted(info["mismatched_keys"]):
        key, found, needed = other[0]
        raise InputError(
            f"model.name={name}: {key} has shape {tuple(found)} in its files where config.json asks for {tuple(needed)}"
            f"{_and_more(other)}; give weights and config.json of one model"
        )
    if absent := sorted(info["missing_keys"]):
        raise InputError(
            f"model.name={name}: its files have no {absent[0]}{_and_more(absent)}, which would be random; give a "
            f"checkpoint of {type(base).__name__}, head included"
        )
    if unused := sorted(key for key in info["unexpected_keys"] if _belongs(base, key)):
        raise InputError(
            f"model.name={name}: its files have {unused[0]}{_and_more(unused)}, for which the model of its config.json "
            "has no place, so that it would be another model; give weights and config.json of one model"
        )


def _belongs(base: PreTrainedModel, key: str) -> bool:
    """Whether weights that were not loaded belong into a module that is there, or into one more of its blocks.

    Others are of parts that this kind of model lacks as a whole, such as a classifier or an encoder.
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
    """The base model's modules without their weights, to see cheaply whether adapters fit.

    Raises:
        InputError: Its configuration cannot be loaded.
    """
    name = base_name(model, data)
    described = _load(AutoConfig, model, name)
    with torch.device("meta"), _told(name, "model"):
        return AutoModelForCausalLM.from_config(described, trust_remote_code=model.trust_remote_code)


def refuse_mismatch(base: PreTrainedModel, largest_token: int, longest: int) -> None:
    """Refuse token sequences that the model cannot take, as far as its configuration tells without its weights.

    Raises:
        InputError: A token is beyond its vocabulary, or a sequence is longer than its positions.
    """
    vocabulary = int(base.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    if largest_token >= vocabulary:
        raise InputError(
            f"token {largest_token} is beyond the model's vocabulary of {vocabulary}: not its own tokenizer?"
        )
    if problem := beyond_positions(base, longest):
        raise InputError(f"model.max_tokens: sequences of {longest} tokens, but {problem}")


def _load(loader, model: ModelConfig, name: str, **options):
    logging.disable_progress_bar()
    with _told(name, "tokenizer" if loader is AutoTokenizer else "model"):
        return loader.from_pretrained(name, trust_remote_code=model.trust_remote_code, **options)


@contextmanager
def _told(name: str, what: str) -> Iterator[None]:
    """Within, what a library has against a model's files is an error with its mend."""
    try:
        yield
    except UNREADABLE as error:
        is_local = Path(name).is_dir()
        mend = _what_it_lacks(Path(name)) if is_local else f"without network: {_how_to_fetch(name)}"
        raise InputError(
            f"model.name={name}: its {what} cannot be loaded ({one_line(error, limit=200)}); {mend}"
        ) from error


def _how_to_fetch(name: str, folder: str | None = None) -> str:
    """The command for a machine that reaches the hub, and what to do with what it fetches."""
    folder = folder or f"./{name.rpartition('/')[2]}"
    revision = f" --revision {SAFETENSORS_AT[name]}" if name in SAFETENSORS_AT else ""
    command = f"hf download {name}{revision} --local-dir {folder} --exclude '*.bin' '*.h5' '*.msgpack'"
    return f"run `{command}` where the hub can be reached, bring the folder here, and set model.name={folder}"


def _what_it_lacks(folder: Path) -> str:
    """What of a base model is not in its folder."""
    needed = {"config.json": ["config.json"], "*.safetensors": ["*.safetensors"]}
    needed["tokenizer.json, or vocab.json with merges.txt"] = ["tokenizer.json", "vocab.json", "*.model"]
    absent = [name for name, patterns in needed.items() if not any(any(folder.glob(p)) for p in patterns)]
    lacks = f"the folder lacks {' and '.join(absent)}: " if absent else ""
    pickles = any(folder.glob("*.bin")) and "*.safetensors" in absent
    never = "weights in *.bin are pickles, which are never loaded; " if pickles else ""
    at = " and ".join(f"{name} has safetensors at --revision {revision}" for name, revision in SAFETENSORS_AT.items())
    return f"{lacks}{never}give what save_pretrained of model and tokenizer writes, or fetch it by `hf download` ({at})"
