"""The base's linear layers in 4 or 8 bits (`model.quantization`): how they are loaded, and what holds for them.

The libraries do the arithmetic: bitsandbytes (`nf4`, Dettmers et al. 2023; `int8`, Dettmers et al. 2022) and torchao
(`fp8`). Adapters stay apart from the packed weights, in their own precision.
"""

import copy
from importlib.util import find_spec
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, TorchAoConfig

from bora_sweep.config import ModelConfig
from bora_sweep.errors import InputError

PACKAGE_OF = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "fp8": "torchao"}
EXTRA_OF = {"bitsandbytes": "quantization", "torchao": "fp8"}
"""Our optional extra that installs a package."""


def refuse_missing_package(model: ModelConfig) -> None:
    """Refuse a quantization whose package is not installed.

    Raises:
        InputError: It is not.
    """
    package = PACKAGE_OF.get(model.quantization or "")
    if package is not None and find_spec(package) is None:
        raise InputError(
            f"model.quantization={model.quantization}: needs the package {package}, which is not installed; run "
            f"`pip install 'bora-sweep[{EXTRA_OF[package]}]'`"
        )


def refuse_quantised_files(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse to quantise weights that a model's files hold packed already.

    Raises:
        InputError: `config` is of such a model, and `model.quantization` is set.
    """
    if model.quantization is not None and getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"model.quantization={model.quantization}: the files of model.name={model.name} are quantised already, as "
            "their config.json says; drop model.quantization, or name the plain model"
        )


def loading_options(model: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Options of `from_pretrained` that quantise the base, on the CPU; none without `model.quantization`.

    Args:
        model: What is asked for; the package is installed.
        dtype: Of the other weights, and of all products.
    """
    if model.quantization is None:
        return {}
    # Without a device map bitsandbytes takes the first GPU, whatever the device of the fit.
    return {"quantization_config": _quantization_config(model.quantization, dtype), "device_map": {"": "cpu"}}


def _quantization_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig:
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if kind == "int8":
        # LLM.int8 takes out each input column in which any token of the batch is above the threshold. A row's logits
        # would then depend on the other rows: by 5e-4 of the difference between two rows in a tiny Llama. 0: no column.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    from torchao.quantization import Float8WeightOnlyConfig  # type: ignore[import-not-found]

    # Weights alone: rounded inputs would have other gradients, and need kernels of one kind of GPU.
    return TorchAoConfig(Float8WeightOnlyConfig())


def finish_loading(base: PreTrainedModel, model: ModelConfig) -> None:
    """Check the packed weights of a quantised base, and make it compute the same with and without gradients.

    Raises:
        InputError: It was to be quantised, and has no linear layer that the library could quantise; or its files hold a
            weight of another shape, which transformers reports of plain weights alone.
    """
    packed = {name: module for name, module in base.named_modules() if is_packed(module)}
    if not packed and model.quantization is not None:
        raise InputError(
            f"model.quantization={model.quantization}: {PACKAGE_OF[str(model.quantization)]} quantises no layer of a "
            f"{type(base).__name__}; drop it, or set nf4"
        )
    for name, module in packed.items():
        shape, needed = tuple(_shape(module)), (module.out_features, module.in_features)
        if shape != needed:
            raise InputError(
                f"model.name={model.name}: {name}.weight has shape {shape} in its files where config.json asks for "
                f"{needed}; give weights and config.json of one model"
            )
    use_one_path(base)


def use_one_path(base: nn.Module) -> None:
    """Keep bitsandbytes from its own path for 4 bits on CPUs with AVX512-BF16.

    It takes that path where no gradient is asked for, and then repacks the weights. Scores would be in bfloat16 where
    training is in float32, and later gradients would be lost.
    """
    for module in base.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def refuse_misread(base: PreTrainedModel) -> None:
    """Refuse 4-bit weights that bitsandbytes misreads where they lie.

    It keeps a scale for each 64 successive weights. Version 0.50 on a CPU with AVX-512 counts the scales anew for each
    output, which is wrong unless the inputs are a multiple of 64; the weights are then off by a fifth or more.

    Raises:
        InputError: It misreads those of this base.
    """
    for name, module in base.named_modules():
        if not is_packed(module) or module.weight.device.type != "cpu":
            continue
        state = getattr(module.weight, "quant_state", None)
        if state is None or state.shape[-1] % state.blocksize == 0:
            continue
        from bitsandbytes.functional import dequantize_4bit

        flat = copy.copy(state)
        flat.shape = torch.Size([state.shape.numel()])
        read, right = (dequantize_4bit(module.weight.data, each) for each in (state, flat))
        if not torch.equal(read.flatten(), right):
            raise InputError(
                f"model.quantization=nf4: on this CPU bitsandbytes misreads the weights of {name}, whose inputs are "
                f"{state.shape[-1]}, no multiple of {state.blocksize}; set int8, or fit on a GPU"
            )
        return


def _shape(module: nn.Linear) -> torch.Size:
    """The shape that a packed weight stands for."""
    state = getattr(module.weight, "quant_state", None)
    return module.weight.shape if state is None else state.shape


def is_packed(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a linear layer's weight is one of bitsandbytes or torchao, which stores other numbers than it means."""
    return isinstance(module, nn.Linear) and type(module.weight) not in (nn.Parameter, torch.Tensor)


def is_quantised(base: PreTrainedModel) -> bool:
    """Whether weights of the base are packed, by us or in its files."""
    return getattr(base.config, "quantization_config", None) is not None


def rounds_inputs(base: PreTrainedModel) -> bool:
    """Whether the layers also round what comes into them, so that rounding errors are no longer small."""
    return bool(getattr(base, "is_loaded_in_8bit", False))
