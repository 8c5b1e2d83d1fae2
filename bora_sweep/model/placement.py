"""Where a base model lies: on one device, or spread over the GPUs of one machine (`model.device_map`).

Accelerate moves the hidden state from card to card. A spread base takes tokens on the device of its embedding, and may
not be moved.
"""

import torch
from transformers import PreTrainedModel

from bora_sweep.config import ModelConfig
from bora_sweep.errors import InputError
from bora_sweep.model.quantization import refuse_misread, use_one_path


def refuse_missing_gpu(model: ModelConfig) -> None:
    """Refuse to spread a base over GPUs where there is none.

    Raises:
        InputError: There is none.
    """
    if model.device_map is not None and not torch.cuda.is_available():
        raise InputError(
            f"model.device_map={model.device_map}: this process has no GPU to spread the base over; drop it, or run "
            "where there are GPUs (in a sweep, ray.gpus_per_trial is how many a fit has)"
        )


def refuse_offloading(base: PreTrainedModel, model: ModelConfig) -> None:
    """Refuse a base of which a part found no room on the GPUs, and would be fetched anew in every pass.

    Raises:
        InputError: There is such a part.
    """
    elsewhere = [name for name, device in _device_of(base).items() if str(device) in ("cpu", "disk")]
    if model.device_map is not None and elsewhere:
        raise InputError(
            f"model.device_map={model.device_map}: the GPUs have no room for {elsewhere[0]} and "
            f"{len(elsewhere) - 1} other parts of the base; give more GPUs, or set model.quantization=nf4"
        )


def is_spread(base: PreTrainedModel) -> bool:
    """Whether parts of the base lie on several devices."""
    return len({str(device) for device in _device_of(base).values()}) > 1


def placed(base: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The base on `device`, or where its parts are if it is spread.

    Raises:
        InputError: Its packed weights are misread there.
    """
    if is_spread(base):
        return base
    base.to(device)  # type: ignore[arg-type]
    use_one_path(base)  # a base that a program gives was not loaded here
    refuse_misread(base)
    return base


def _device_of(base: PreTrainedModel) -> dict[str, int | str | torch.device]:
    return getattr(base, "hf_device_map", None) or {}
