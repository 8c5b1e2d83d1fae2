"""The frozen base model and its tokenizer: from a hub name, a local folder, or the embedded one."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from bora_sweep.config import DataConfig, ModelConfig
from bora_sweep.errors import InputError, one_line

SAFETENSORS_AT = {"facebook/opt-350m": "refs/pr/33"}
"""Revisions with safetensors weights, of models whose main one has a pickle alone."""


def base_name(model: ModelConfig, data: DataConfig) -> str:
    """What `from_pretrained` is given: `model.name`, or the embedded base's folder, made if it is not there yet."""
    if model.name is not None:
        if model.name.startswith((".", "/")) and not Path(model.name).is_dir():
            raise InputError(f"model.name={model.name}: no such folder; {_how_to_fetch('OWNER/NAME', model.name)}")
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
        InputError: It cannot be loaded.
    """
    dtype = getattr(torch, model.dtype)
    return _load(AutoModelForCausalLM, model, base_name(model, data), dtype=dtype, use_safetensors=True)


def empty_base(model: ModelConfig, data: DataConfig) -> PreTrainedModel:
    """The base model's modules without their weights, to see cheaply whether adapters fit.

    Raises:
        InputError: Its configuration cannot be loaded.
    """
    described = _load(AutoConfig, model, base_name(model, data))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(described, trust_remote_code=model.trust_remote_code)


def refuse_mismatch(base: PreTrainedModel, largest_token: int, longest: int) -> None:
    """Refuse token sequences that the model cannot take.

    Raises:
        InputError: A token is beyond its vocabulary, or a sequence is longer than its positions.
    """
    vocabulary = int(base.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    if largest_token >= vocabulary:
        raise InputError(
            f"token {largest_token} is beyond the model's vocabulary of {vocabulary}: not its own tokenizer?"
        )
    positions = getattr(base.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise InputError(f"model.max_tokens: sequences of {longest} tokens, but the model has {positions} positions")


def _load(loader, model: ModelConfig, name: str, **options):
    logging.disable_progress_bar()
    try:
        return loader.from_pretrained(name, trust_remote_code=model.trust_remote_code, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        what = "tokenizer" if loader is AutoTokenizer else "model"
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
