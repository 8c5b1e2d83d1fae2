"""A base that is spread over several devices: what moves where, and what is refused.

No machine of the tests has two GPUs. Devices are followed with tensors without numbers, on a first and a second
device, where torch refuses what mixes them. Numbers are compared where Accelerate's hooks run on one device.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import attach_align_device_hook_on_blocks
from quantised import make_wide, stored
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from bora_sweep.config import DataConfig, LoraConfig, ModelConfig, load_config
from bora_sweep.errors import InputError
from bora_sweep.model import adapted as adapted_module
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_base
from bora_sweep.model.base_check import random_adapter
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.placement import is_spread, placed, refuse_offloading
from bora_sweep.model.row_cache import RowCache, next_logits

FIRST, SECOND = torch.device("cpu"), torch.device("meta")
PLACES = {
    "llama": {
        "model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST, "model.layers.1": SECOND,
        "model.norm": SECOND, "lm_head": SECOND,
    },
    # A head that is tied to the embedding lies where that lies.
    "qwen2": {
        "model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST, "model.layers.1": SECOND,
        "model.norm": SECOND, "lm_head": FIRST,
    },
    "opt": {
        "model.decoder.embed_tokens": FIRST, "model.decoder.embed_positions": FIRST, "model.decoder.layers.0": FIRST,
        "model.decoder.layers.1": SECOND, "model.decoder.final_layer_norm": SECOND, "lm_head": SECOND,
    },
}  # fmt: skip
LORA = LoraConfig(rank=2, target_modules="all-linear")


class NoNumbers(TorchDispatchMode):
    """Within, a number that is read from a tensor without numbers is 0."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `torch.utils._python_dispatch.TorchDispatchMode`."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 0
        return func(*args, **(kwargs or {}))


def spread(base: PreTrainedModel, place_of: dict[str, torch.device]) -> None:
    """Put the parts of a base on two devices, without numbers, under the hooks that Accelerate puts there."""
    for name, module in base.named_modules():
        parts = [device for part, device in place_of.items() if name == part or name.startswith(f"{part}.")]
        device = parts[0] if parts else FIRST
        for key, weight in list(module.named_parameters(recurse=False)):
            empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            setattr(module, key, nn.Parameter(empty, requires_grad=False))
        for key, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(key, torch.empty(buffer.shape, dtype=buffer.dtype, device=device), persistent=False)
    attach_align_device_hook_on_blocks(
        base, execution_device={**place_of, "": FIRST}, offload=dict.fromkeys(place_of, False)
    )
    base.hf_device_map = place_of  # type: ignore[assignment]


@pytest.fixture(params=PLACES)
def spread_model(request, monkeypatch):
    """A spread base with its adapters, whose checks that need numbers are left out."""
    monkeypatch.setattr(adapted_module, "check_base", lambda *_: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which knows no second device here
    monkeypatch.setattr(adapted_module, "_linear_head", lambda base, _: base.get_output_embeddings())
    base = make_wide(request.param)
    layout = make_layout(base, LORA)
    with FakeTensorMode(allow_non_fake_inputs=True), NoNumbers():
        spread(base, PLACES[request.param])
        assert is_spread(base)
        assert placed(base, FIRST) is base
        yield AdaptedModel(base, layout)


class Given:
    """Adapters of one task each, as `Likelihood` asks for them."""

    def __init__(self, theta_KP: Tensor) -> None:
        self.theta_KP = theta_KP

    def theta_BP(self, task_B: Tensor, dtype: torch.dtype) -> Tensor:
        return self.theta_KP[task_B].to(dtype)


def test_adapters_go_to_their_modules_and_gradients_come_back(spread_model):
    theta_KP = torch.empty(3, spread_model.layout.num_parameters, device=FIRST, requires_grad=True)
    tokens_BT = torch.zeros(3, 7, dtype=torch.long, device=FIRST)
    place_M, task_B = torch.arange(8, 14, device=FIRST), torch.arange(3, device=FIRST)
    assert spread_model.last_hidden_state(tokens_BT, theta_KP).device == SECOND
    nll_SB = Likelihood(spread_model, [Given(theta_KP)])(tokens_BT, place_M, task_B)  # type: ignore[list-item]
    assert nll_SB.device == FIRST
    nll_SB.sum().backward()
    assert theta_KP.grad is not None
    assert (theta_KP.grad.device, theta_KP.grad.shape) == (FIRST, theta_KP.shape)


def test_all_logits_come_back_to_the_tokens(spread_model):
    theta_KP = torch.empty(3, spread_model.layout.num_parameters, device=FIRST)
    tokens_BT = torch.zeros(3, 7, dtype=torch.long, device=FIRST)
    assert spread_model(tokens_BT, theta_KP).device == FIRST


def test_rows_go_on_from_keys_and_values_on_both_devices(spread_model):
    theta_KP = torch.empty(3, spread_model.layout.num_parameters, device=FIRST)
    cache, tokens_BT = RowCache(spread_model), torch.zeros(3, 7, dtype=torch.long, device=FIRST)
    with torch.no_grad():
        state = cache.extend(tokens_BT, torch.ones_like(tokens_BT), theta_KP)
        assert next_logits(spread_model, state[:, -1]).device == FIRST
        more = cache.extend(tokens_BT[:, :2], torch.ones_like(tokens_BT[:, :2]), theta_KP)
        assert next_logits(spread_model, more[:, -1]).device == FIRST


@pytest.mark.parametrize("family", PLACES)
def test_under_accelerates_hooks_logits_and_gradients_are_those_without(family):
    """Its hooks wrap `forward` of the modules that ours follow."""
    results = []
    for is_dispatched in (False, True):
        base = make_wide(family).double()
        if is_dispatched:
            dispatch_model(base, dict.fromkeys(PLACES[family], "cpu"), force_hooks=True)
            assert any(hasattr(module, "_hf_hook") for module in base.modules())
        adapted = AdaptedModel(base, make_layout(base, LORA))
        theta_BP = torch.stack([random_adapter(base, adapted.layout, row) for row in range(3)]).double()
        theta_BP.requires_grad_()
        logits_BTV = adapted(torch.arange(3, 24).view(3, 7), theta_BP)
        logits_BTV.log_softmax(-1)[..., 5].sum().backward()
        results.append((logits_BTV.detach(), theta_BP.grad, adapted.head is None))
    (logits, grad, has_head), (same_logits, same_grad, also_has_head) = results
    assert torch.equal(logits, same_logits)
    assert torch.equal(grad, same_grad)
    assert has_head is also_has_head is False


def test_a_base_on_one_device_is_moved():
    base = make_wide("llama")
    base.hf_device_map = {"": FIRST}  # type: ignore[assignment]
    assert not is_spread(base)
    assert placed(base, SECOND).device == SECOND


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_spreading_is_refused(tmp_path):
    model = ModelConfig(name=stored(tmp_path, "opt", None).name, device_map="auto")
    with pytest.raises(InputError, match=r"^model.device_map=auto: this process has no GPU"):
        load_base(model, DataConfig())


def test_a_part_without_room_on_the_gpus_is_refused():
    base, model = make_wide("opt"), ModelConfig(device_map="auto")
    base.hf_device_map = {"model": 0, "lm_head": 1}  # type: ignore[assignment]
    refuse_offloading(base, model)
    for place in ("cpu", "disk", torch.device("cpu")):
        base.hf_device_map = {"model": 0, "lm_head": place}  # type: ignore[assignment]
        with pytest.raises(InputError, match=r"^model.device_map=auto: the GPUs have no room for lm_head"):
            refuse_offloading(base, model)


@pytest.mark.parametrize("setting", ["ray.workers_per_trial=2", "train.device=cpu", "train.compile=true"])
def test_settings_that_need_the_base_on_one_device_are_refused(setting):
    with pytest.raises(InputError, match=rf"^model.device_map=auto: .*{setting}"):
        load_config(["model.device_map=auto", setting])
