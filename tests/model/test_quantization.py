"""A quantised base computes with the weights that its packed numbers stand for, and each row by itself."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from families import EASY, make_family
from quantised import EXACT, FAMILIES, KINDS, make_wide, needs_bitsandbytes, stored
from tiny import make_frame, make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora_sweep.cli import main
from bora_sweep.config import DataConfig, LoraConfig, ModelConfig, load_config
from bora_sweep.errors import InputError
from bora_sweep.model import quantization
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import empty_base, load_base
from bora_sweep.model.base_check import random_adapter
from bora_sweep.model.layout import Layout, make_layout
from bora_sweep.model.placement import placed
from bora_sweep.model.quantization import is_packed
from bora_sweep.model.trial_logits import is_precise, widened

DATA = DataConfig()
LORA = LoraConfig(rank=2)
NF4 = torch.tensor(  # the paper's table, QLoRA, appendix E
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], dtype=torch.float64,
)  # fmt: skip


def weight_of(module: Any) -> Tensor:
    """What a packed weight stands for, (O, I) in float64, by the libraries' own functions."""
    weight = module.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).double()
    if type(weight).__name__ == "Int8Params":
        scale = module.state.SCB if module.state.SCB is not None else weight.SCB
        return weight.data.double() * scale.double()[:, None] / 127
    return weight.dequantize().double()


def plain_twin(base: PreTrainedModel, family: str) -> PreTrainedModel:
    """A plain base in float64 whose weights are what those of the quantised base stand for."""
    twin = make_wide(family).double()
    for name, module in base.named_modules():
        if is_packed(module):
            own: Any = twin.get_submodule(name)
            weight = weight_of(module)
            own.weight.data.copy_(weight.T if isinstance(own, Conv1D) else weight)
    return twin


def loss_gradient(adapted: AdaptedModel, theta_BP: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of a loss of them by the adapters, both in float64."""
    theta_BP = theta_BP.clone().requires_grad_()
    logits_BTV = adapted(tokens_BT, theta_BP)
    logits_BTV.double().log_softmax(-1)[..., 7].sum().backward()
    assert theta_BP.grad is not None
    return logits_BTV.detach().double(), theta_BP.grad.double()


def adapters(base: PreTrainedModel, layout: Layout, rows: int = 3) -> Tensor:
    return torch.stack([random_adapter(base, layout, row) for row in range(rows)])


def tokens(rows: int = 3, length: int = 9) -> Tensor:
    return torch.randint(3, 43, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_stand_for_the_nearest_values_of_their_kind(kind, tmp_path):
    """An independent quantiser gives the same weights: NF4's table by blocks of 64, or steps by rows."""
    base = load_base(stored(tmp_path, "llama", kind), DATA)
    plain = make_wide("llama").double()
    packed = [name for name, module in base.named_modules() if is_packed(module)]
    assert len(packed) == 2 * 7
    for name in packed:
        weight, found = plain.get_parameter(f"{name}.weight").data, weight_of(base.get_submodule(name))
        if kind == "nf4":
            block_N64 = weight.reshape(-1, 64)
            scale_N1 = block_N64.abs().amax(dim=1, keepdim=True)
            expected = (NF4[((block_N64 / scale_N1)[..., None] - NF4).abs().argmin(-1)] * scale_N1).view_as(weight)
            atol = 0.02 * scale_N1.max()  # the blocks' scales are quantised too, to 8 bits
        elif kind == "int8":
            scale_O1 = weight.abs().amax(dim=1, keepdim=True)
            expected, atol = (weight * 127 / scale_O1).round() * scale_O1 / 127, 1.01 * scale_O1.max() / 127
        else:
            expected, atol = weight, weight.abs() * 2.0**-4 + 1e-3  # three bits of mantissa
        assert (found - expected).abs().le(atol).all()
        assert not torch.allclose(found, weight, atol=1e-6)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_a_plain_base_with_the_weights_that_the_packed_ones_stand_for(
    family, kind, tmp_path
):
    if (family, kind) == ("gpt2", "fp8"):
        pytest.skip("torchao quantises no Conv1D")
    base = load_base(stored(tmp_path, family, kind), DATA)
    twin = plain_twin(base, family)
    layout = make_layout(base, replace(LORA, target_modules="all-linear"))
    theta_BP, tokens_BT = adapters(twin, layout), tokens()
    found, expected = (
        loss_gradient(AdaptedModel(model, layout), theta_BP.to(model.dtype), tokens_BT) for model in (base, twin)
    )
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_int8_rounds_each_tokens_inputs_to_127_steps_and_its_gradients_are_those_of_the_weights(family, tmp_path):
    base = load_base(stored(tmp_path, family, "int8"), DATA)
    for module in [module for module in base.modules() if is_packed(module)]:
        x_BTI = torch.randn(2, 5, module.in_features).half().float().requires_grad_()
        output_BTO = module(x_BTI)
        grad_BTO = torch.randn_like(output_BTO)
        output_BTO.backward(grad_BTO)
        weight_OI, step = weight_of(module), x_BTI.abs().amax(dim=-1, keepdim=True).double() / 127
        expected = (x_BTI / step).round() * step @ weight_OI.T + (0 if module.bias is None else module.bias)
        assert (output_BTO - expected).norm() < 3e-3 * expected.norm()  # numbers on the edge of a step go either way
        assert x_BTI.grad is not None
        assert (x_BTI.grad - grad_BTO.double() @ weight_OI).abs().max() < 1e-5


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen2"])
def test_logits_and_gradients_with_int8_are_near_those_of_its_weights(family, tmp_path):
    """They differ by the rounding of the inputs, through which gradients pass as they are."""
    base = load_base(stored(tmp_path, family, "int8"), DATA)
    twin = plain_twin(base, family)
    layout = make_layout(base, replace(LORA, target_modules="all-linear"))
    theta_BP, tokens_BT = adapters(base, layout), tokens()
    found, expected = (
        loss_gradient(AdaptedModel(model, layout), theta_BP.to(model.dtype), tokens_BT) for model in (base, twin)
    )
    for one, other in zip(found, expected, strict=True):
        assert 1e-4 < (one - other).norm() / other.norm() < 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_rows_logits_are_the_same_alone_and_in_a_batch(family, kind, tmp_path):
    if (family, kind) == ("gpt2", "fp8"):
        pytest.skip("torchao quantises no Conv1D")
    base = load_base(stored(tmp_path, family, kind), DATA)
    layout = make_layout(base, LORA)
    adapted, theta_BP, tokens_BT = AdaptedModel(base, layout), adapters(base, layout, 6), tokens(6)
    with torch.no_grad():
        together = adapted(tokens_BT, theta_BP)
        alone = torch.cat([adapted(tokens_BT[row, None], theta_BP[row, None]) for row in range(6)])
    assert (together - alone).abs().max() < 1e-5 * (together[0] - together[1]).abs().max()


@needs_bitsandbytes
def test_with_bitsandbytes_own_threshold_a_row_would_depend_on_the_others(tmp_path):
    """The reason for the threshold of 0."""
    model = stored(tmp_path, "llama", "int8")
    default = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(
        model.name, dtype=torch.float32, quantization_config=default, device_map={"": "cpu"}
    ).eval()
    for norm in [module for name, module in base.named_modules() if name.endswith("layernorm")]:
        norm.weight.data[3] = 6.0  # in some tokens beyond the threshold
    tokens_BT = tokens(6)
    with torch.no_grad():
        together = base(input_ids=tokens_BT).logits
        alone = torch.cat([base(input_ids=tokens_BT[row, None]).logits for row in range(6)])
    assert (together - alone).abs().max() > 1e-4 * (together[0] - together[1]).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_without_gradients_are_those_of_training(kind, tmp_path):
    """Some CPUs have a faster path in bfloat16, which bitsandbytes takes where no gradient is asked for."""
    base = load_base(stored(tmp_path, "llama", kind), DATA)
    layout = make_layout(base, LORA)
    adapted, theta_BP, tokens_BT = AdaptedModel(base, layout), adapters(base, layout), tokens()
    trained = adapted(tokens_BT, theta_BP.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(adapted(tokens_BT, theta_BP), trained)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_but_the_linear_layers_is_in_dtype_and_the_head_too(kind, dtype, tmp_path):
    base = load_base(stored(tmp_path, "llama", kind, dtype), DATA)
    packed = {name for name, module in base.named_modules() if is_packed(module)}
    assert all(name.startswith("model.layers.") for name in packed)
    assert not is_packed(base.get_output_embeddings())
    others = [weight for name, weight in base.named_parameters() if name.rpartition(".")[0] not in packed]
    assert {weight.dtype for weight in others} == {getattr(torch, dtype)} == {base.dtype}
    assert is_precise(base) == (dtype == "float32" and kind != "int8")
    if kind == "nf4":
        assert {base.get_submodule(name).compute_dtype for name in packed} == {getattr(torch, dtype)}


@pytest.mark.parametrize("kind", KINDS)
def test_widening_leaves_packed_weights_alone(kind, tmp_path):
    base = load_base(stored(tmp_path, "llama", kind, "bfloat16"), DATA)
    before = {name: (weight.dtype, weight.data_ptr()) for name, weight in base.named_parameters() if kind != "fp8"}
    with widened(base) as is_wider:
        assert not is_wider
        base(input_ids=tokens())
    assert before == {name: (w.dtype, w.data_ptr()) for name, w in base.named_parameters() if kind != "fp8"}


@needs_bitsandbytes
@pytest.mark.parametrize("family", [*EASY, "mamba", "llama4_text", "qwen2_moe", "gemma2", "phi3", "bamba"])
def test_adapters_are_where_a_plain_base_has_them(family, tmp_path):
    """What is laid out before a fit without weights fits the base that is loaded; Conv1D is packed as a Linear."""
    make_family(family).save_pretrained(tmp_path)
    model = ModelConfig(name=str(tmp_path), quantization="nf4")
    base = load_base(model, DATA)
    assert any(map(is_packed, base.modules()))
    assert (
        make_layout(base, LORA) == make_layout(empty_base(model, DATA), LORA) == make_layout(make_family(family), LORA)
    )


@pytest.mark.parametrize("kind", quantization.PACKAGE_OF)
def test_a_missing_package_is_refused_with_the_command_that_installs_it(kind, tmp_path, monkeypatch, capsys):
    model, package = stored(tmp_path, "opt", kind), quantization.PACKAGE_OF[kind]
    monkeypatch.setattr(quantization, "find_spec", lambda name: None if name == package else find_spec(name))
    command = rf"pip install 'bora-sweep\[{quantization.EXTRA_OF[package]}\]'"
    with pytest.raises(InputError, match=rf"^model.quantization={kind}: needs the package {package}.*{command}"):
        load_base(model, DATA)
    settings = [f"model.name={model.name}", f"model.quantization={kind}", f"output={tmp_path / 'run'}"]
    assert main(["fit", *settings]) == 2
    assert f"model.quantization={kind}: needs the package {package}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.dtype=float64"], r"^model.quantization=nf4: .*model.dtype=float64"),
        (["lora.variant=dora"], r"^lora.variant=dora: .*model.quantization=nf4"),
    ],
)
def test_settings_that_packed_weights_cannot_have_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        load_config(["model.quantization=nf4", *settings])


@needs_bitsandbytes
def test_layers_that_peft_adapts_by_their_weights_alone_are_refused_before_a_fit(tmp_path, capsys):
    """In DeepSeek V3 an export has `target_parameters`, which PEFT cannot add to packed weights."""
    make_family("deepseek_v3").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    make_frame({"a": 12, "b": 12}).to_parquet(tmp_path / "speeches.parquet")
    settings = [f"data.path={tmp_path / 'speeches.parquet'}", f"model.name={tmp_path / 'base'}", "model.max_tokens=9",
                "lora.target_modules=[gate_proj,q_a_proj]", f"output={tmp_path / 'run'}"]  # fmt: skip
    assert main(["fit", *settings, "model.quantization=nf4"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.quantization=nf4: PEFT adapts model.layers.0.mlp.gate_proj" in said
    assert not (tmp_path / "run").exists()


@needs_bitsandbytes
def test_a_model_whose_files_are_quantised_already_is_refused(tmp_path):
    load_base(stored(tmp_path / "plain", "opt", "nf4"), DATA).save_pretrained(tmp_path / "packed")
    make_tokenizer().save_pretrained(tmp_path / "packed")
    model = ModelConfig(name=str(tmp_path / "packed"), quantization="int8")
    for load in (load_base, empty_base):
        with pytest.raises(InputError, match=r"^model.quantization=int8: the files .* are quantised already"):
            load(model, DATA)
    base = load_base(replace(model, quantization=None), DATA)
    assert any(map(is_packed, base.modules()))
    AdaptedModel(base, make_layout(base, LORA)).remove_hooks()  # runs, on any CPU


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values == ("fp8",)])
def test_a_model_without_a_layer_that_the_library_quantises_is_refused(kind, tmp_path):
    with pytest.raises(InputError, match=r"^model.quantization=fp8: torchao quantises no layer of a GPT2LMHeadModel"):
        load_base(stored(tmp_path, "gpt2", kind), DATA)


@needs_bitsandbytes
def test_weights_that_bitsandbytes_misreads_on_this_cpu_are_refused(tmp_path):
    """Inputs of no multiple of 64: where the kernel counts the blocks right, the base is taken."""
    make_family("llama").save_pretrained(tmp_path)
    base, plain = load_base(ModelConfig(name=str(tmp_path), quantization="nf4"), DATA), make_family("llama")
    name = "model.layers.0.mlp.up_proj"
    weight = plain.get_parameter(f"{name}.weight").data
    error = (weight_of(base.get_submodule(name)) - weight).norm() / weight.norm()
    if error < 0.15:  # that of 4 bits
        assert placed(base, torch.device("cpu")) is base
    else:
        with pytest.raises(
            InputError, match=r"^model.quantization=nf4: .* misreads .* inputs are 32, no multiple of 64"
        ):
            placed(base, torch.device("cpu"))


@needs_bitsandbytes
@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_files_of_another_model_are_refused_quantised_too(change, tmp_path):
    base = make_wide("llama")
    weights = base.state_dict()
    key = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[key]
    elif change == "shape":
        weights[key] = torch.zeros(32, 64)
    else:
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(128, 64)
    base.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(InputError, match=r"^model\.name=.*mlp\.up_proj\.weight"):
        load_base(ModelConfig(name=str(tmp_path), quantization="nf4"), DATA)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_run_again_have_the_same_gradients(kind, tmp_path):
    """Also where a packed layer keeps its inputs by itself."""
    base = placed(load_base(stored(tmp_path, "llama", kind), DATA), torch.device("cpu"))
    layout, gradients = make_layout(base, LORA), []
    for checkpointed in (False, True):
        theta_BP = torch.stack([random_adapter(base, layout, row) for row in range(3)]).requires_grad_()
        adapted = AdaptedModel(base, layout, checkpointed=checkpointed, longest=9)
        tokens_BT = torch.arange(27).view(3, 9) + 4
        adapted(tokens_BT, theta_BP).logsumexp(-1).sum().backward()
        adapted.remove_hooks()
        gradients.append(theta_BP.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6 * gradients[0].abs().max().item())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_beside_packed_layers_is_refused(precision):
    with pytest.raises(InputError, match=f"train.precision={precision}.*model.dtype=bfloat16"):
        load_config(["model.quantization=nf4", f"train.precision={precision}"])
