"""The frozen base model and its tokenizer: from a hub name, a local folder, or the embedded one."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from bora_sweep.config import DataConfig, ModelConfig
from bora_sweep.errors import InputError, one_line


def base_name(model: ModelConfig, data: DataConfig) -> str:
    """What `from_pretrained` is given: `model.name`, or the embedded base's folder, made if it is not there yet."""
    if model.name is not None:
        if model.name.startswith((".", "/", "~")) and not Path(model.name).is_dir():
            raise InputError(f"model.name={model.name}: no such folder")
        return model.name
    if data.kind != "synthetic":
        raise InputError(
            "model.name is not set: name the base model for your text, a Hugging Face name such as facebook/opt-350m "
            "or a local folder"
        )
    from bora_sweep.model.embedded import base_model_folder

    logging.disable_progress_bar()
    return str(base_model_folder(data.synthetic, progress=True))


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
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model.name={name}: cannot be loaded ({one_line(error, limit=200)}); give a folder that save_pretrained "
            "wrote, with safetensors weights, or a Hugging Face name that this machine can reach or has cached"
        ) from error
