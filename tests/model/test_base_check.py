"""A base model that cannot be fine-tuned correctly is refused, and the message names the reason."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, make_base, make_corpus, make_tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from bora_sweep.config import DataConfig, LoraConfig, ModelConfig, load_config
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_base, refuse_mismatch
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits, too_long
from bora_sweep.model.sites import find_sites, notes_on_sites
from bora_sweep.serve.generate import _sample
from bora_sweep.train.fit import fit

WIDTH = 16
ROBERTA = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "max_position_embeddings": 66, "type_vocab_size": 1}  # fmt: skip
LLAMA = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.0], "long_factor": [2.0, 4.0],
            "original_max_position_embeddings": 8, "factor": 8.0}  # fmt: skip


class Layer(nn.Module):
    """Replaces a Llama's feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


class TimeMajor(Layer):
    """Rows are not the first dimension, which the shapes show."""

    def forward(self, x):
        return self.second(self.first(x.transpose(0, 1)).tanh()).transpose(0, 1)


class Interleaved(Layer):
    """Rows are not outermost, which no shape shows."""

    def forward(self, x):
        flat = x.transpose(0, 1).reshape(-1, WIDTH)
        return self.first(self.second(flat).tanh()).view(x.shape[1], x.shape[0], WIDTH).transpose(0, 1)


class Gathered(Layer):
    """A router and two experts, each of which gets only some of the tokens."""

    def forward(self, x):
        flat = x.reshape(-1, WIDTH)
        is_rank_zero = (flat[:, 0] > 0)[:, None]
        out = torch.empty_like(flat)
        out[is_rank_zero[:, 0]] = self.first(flat[is_rank_zero[:, 0]])
        out[~is_rank_zero[:, 0]] = self.second(flat[~is_rank_zero[:, 0]])
        return out.view_as(x)


class ByWeight(Layer):
    """Uses the weight of a module without calling it."""

    def forward(self, x):
        return self.second(F.linear(x, self.first.weight).tanh())


class Unused(Layer):
    """Calls a module and ignores its output."""

    def forward(self, x):
        self.first(x)
        return self.second(x)


class Sharing(Layer):
    """A row's output depends on the other rows."""

    def forward(self, x):
        return self.second(self.first(x).tanh()) + x.mean(0, keepdim=True)


class Noisy(Layer):
    """Random in evaluation mode, like dropout that is left on."""

    def forward(self, x):
        return self.second(self.first(x).tanh()) + torch.randn_like(x)


class Pair(nn.Linear):
    """A subclass that returns a pair."""

    def forward(self, x):
        return super().forward(x), 1


class Paired(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.first = Pair(WIDTH, WIDTH)

    def forward(self, x):
        return self.second(self.first(x)[0].tanh())


def llama(layer: Callable[[], nn.Module] | None = None, **changes) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})).eval()
        for block in base.model.layers if layer else []:
            block.mlp = layer()  # type: ignore[reportOptionalCall]
    return base


def adapted_sites(base, targets) -> set[str]:
    adapted = AdaptedModel(base, make_layout(base, LoraConfig(rank=2, target_modules=targets)))
    adapted.remove_hooks()
    return {site.name.rpartition(".")[2] for site in adapted.layout.sites}


def roberta(**changes) -> RobertaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RobertaForCausalLM(RobertaConfig(**{**ROBERTA, "is_decoder": True, **changes})).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_base_that_sees_later_tokens_is_refused(dtype):
    assert adapted_sites(roberta().to(dtype), None) == {"query", "value"}
    with pytest.raises(InputError, match="RobertaForCausalLM: the model is not causal"):
        adapted_sites(roberta(is_decoder=False).to(dtype), None)


@pytest.mark.parametrize(
    ("layer", "says"),
    [(Sharing, "the other rows of its batch"), (Noisy, "other logits each time")],
)
def test_a_base_whose_rows_depend_on_other_rows_or_on_chance_is_refused(layer, says):
    with pytest.raises(InputError, match=says):
        adapted_sites(llama(layer), ["q_proj"])


@pytest.mark.parametrize("layer", [Interleaved, Gathered])
def test_modules_whose_input_mixes_rows_are_refused_by_name(layer):
    assert adapted_sites(llama(layer), ["q_proj", "o_proj"]) == {"q_proj", "o_proj"}
    base = llama(layer)
    for targets in ("all-linear", ["first", "q_proj"]):
        with pytest.raises(InputError, match=r"share a batch at model.layers.\*.mlp.first.*such as q_proj"):
            adapted_sites(base, targets)
    assert not any(module._forward_hooks for module in base.modules()), "a base that is refused is left as it was"


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (TimeMajor, "does not see a batch's rows"),
        (ByWeight, "is never called"),
        (Unused, "has an output that the logits"),
        (Paired, "is a Pair, whose output"),
    ],
)
def test_modules_without_effect_are_left_out_with_a_note_and_refused_if_named(layer, why):
    base, everything = llama(layer), LoraConfig(target_modules="all-linear")
    sites = adapted_sites(base, "all-linear")
    assert sites >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "first" not in sites
    assert [note for note in notes_on_sites(base, everything) if "model.layers.*.mlp.first" in note and why in note]
    for targets in (["first"], ".*first", ["q_proj", "first"]):
        with pytest.raises(InputError, match=f"mlp.first {why}"):
            find_sites(base, LoraConfig(target_modules=targets))
    empty = copy.deepcopy(llama(layer)).to("meta")
    assert find_sites(empty, everything) == find_sites(base, everything), "with and without weights"


def test_an_adapter_that_a_kernel_bypasses_is_refused():
    """On the meta device the module is called; on a real device its weight is used, and no hook runs."""
    base = llama(Layer)
    for block in base.model.layers:
        block.mlp.forward = lambda x, mlp=block.mlp: (
            mlp.second(mlp.first(x)) if x.is_meta else mlp.second(F.linear(x, mlp.first.weight))
        )
    layout = make_layout(base, LoraConfig(target_modules=["first"]))
    with pytest.raises(InputError, match=r"model.layers.\*.mlp.first change no logit"):
        AdaptedModel(base, layout)


def test_a_mambas_sites_have_an_effect_and_load_in_peft():
    base = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, state_size=4))
    base = base.bfloat16().eval()
    assert adapted_sites(base, None) == adapted_sites(base, "all-linear") == {"in_proj", "x_proj"}
    layout = make_layout(base, LoraConfig(rank=2))
    logits_BTV = AdaptedModel(base, layout)(torch.ones(2, 3, dtype=torch.long), torch.zeros(1, layout.num_parameters))
    assert logits_BTV.isfinite().all()
    for name in ("dt_proj", "out_proj"):
        with pytest.raises(InputError, match=name):
            find_sites(base, LoraConfig(target_modules=["in_proj", name]))


def test_a_family_without_default_targets_in_peft_gets_some_and_a_note():
    base = MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2, num_experts_per_tok=1)).eval()
    assert "routed experts, model.layers.*.mlp.experts" in "".join(notes_on_sites(base, LoraConfig()))
    pefts = LoraConfig(target_modules=None)
    base.config.model_type = "none_of_pefts"  # type: ignore[reportAttributeAccessIssue]
    assert adapted_sites(base, None) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "no default for a none_of_pefts model; adapters are at all linear" in notes_on_sites(base, pefts)[0]
    assert notes_on_sites(make_base("opt"), LoraConfig()) == notes_on_sites(make_base("opt"), pefts) == []


class RoutedBlock(torch.nn.Module):
    """Experts as layers of their own, as models have them whose code is older."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(WIDTH, 2, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.gate(x).softmax(-1)
        return sum(weight[..., k, None] * expert(x) for k, expert in enumerate(self.experts))  # type: ignore[return-value]


def test_all_linear_leaves_out_experts_that_are_layers_with_their_router_unless_they_are_named():
    base: Any = make_base("llama")
    base.model.layers[0].mlp = RoutedBlock().to(base.dtype)
    names = {site.name for site in find_sites(base, LoraConfig(target_modules="all-linear"))}
    assert names == {site.name for site in find_sites(make_base("llama"), LoraConfig())} - {
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    (note,) = notes_on_sites(base, LoraConfig())
    assert (
        "no adapters at routed experts and their routers, model.layers.*.mlp.gate, model.layers.*.mlp.experts.*" in note
    )
    named = LoraConfig(target_modules=r".*experts\.\d")
    assert {site.name for site in find_sites(base, named)} == {f"model.layers.0.mlp.experts.{k}" for k in (0, 1)}
    assert notes_on_sites(base, named) == []


def test_a_decoder_without_its_encoder_has_no_adapters_of_cross_attention():
    config = BartConfig(vocab_size=VOCABULARY, d_model=WIDTH, decoder_layers=1, decoder_attention_heads=2,
                        decoder_ffn_dim=32, max_position_embeddings=64)  # fmt: skip
    base = BartForCausalLM(config).eval()
    names = {site.name for site in find_sites(base, LoraConfig())}
    own = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")
    assert names == {f"model.decoder.layers.0.{name}" for name in own}


def test_the_message_names_a_precision_in_which_a_model_does_not_run():
    base = MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2, num_experts_per_tok=1)).double().eval()
    with pytest.raises(InputError, match=r"model.dtype=float64"):
        adapted_sites(base, ["q_proj"])


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_the_check_changes_neither_weights_nor_random_state(family):
    base = make_base(family, dtype=torch.bfloat16)
    before, state = copy.deepcopy(base.state_dict()), torch.get_rng_state()
    AdaptedModel(base, make_layout(base, LoraConfig(rank=2))).remove_hooks()
    length_limits(base, 3, 20)
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in base.state_dict().items():
        assert weight.dtype == before[name].dtype
        assert torch.equal(weight, before[name])
    assert all(parameter.grad is None for parameter in base.parameters())


def mpt() -> MptForCausalLM:
    return MptForCausalLM(
        MptConfig(d_model=WIDTH, n_heads=2, n_layers=1, vocab_size=VOCABULARY, max_seq_len=32, expansion_ratio=2)
    ).eval()


@pytest.mark.parametrize(("make", "most"), [(mpt, 32), (lambda: roberta(max_position_embeddings=34), 32)])
def test_the_longest_row_is_run(make, most):
    base = make()
    assert length_limits(base, 3, most) == ()
    with pytest.raises(InputError, match=f"model.max_tokens: sequences of {most + 1} tokens.* at most {most} "):
        length_limits(base, 3, most + 1)


def test_a_model_without_limit_has_none():
    base = XLNetLMHeadModel(XLNetConfig(vocab_size=VOCABULARY, d_model=WIDTH, n_layer=1, n_head=2, d_inner=32)).eval()
    refuse_mismatch(base, 5, 300)
    assert too_long(base, 300) is None


def large_weights(base):
    """Random weights so large that any difference of logits exceeds rounding."""
    for parameter in base.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return base


def phi3() -> Phi3ForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Phi3ForCausalLM(Phi3Config(**LLAMA, rope_parameters=LONGROPE, original_max_position_embeddings=8)).eval()


def test_documents_are_not_padded_beyond_a_length_limit():
    corpus, base = make_corpus(), large_weights(phi3())
    lengths = np.diff(corpus.offsets)
    assert lengths.min() <= 8 < lengths.max()
    assert length_limits(base, 3, 16) == length_limits(phi3(), 3, 16) == (8,)
    scores = []
    for rows in (1, 8):
        settings = ["lora.rank=2", "train.batch_size=8", f"train.micro_batch_size={rows}", "train.max_epochs=1"]
        scores.append(fit(load_config([*settings, "train.device=cpu"]), corpus, base).nll_nats["test"])
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_a_model_whose_logits_depend_on_padding_is_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    base = large_weights(llama(max_position_embeddings=16, rope_parameters=rope))
    with pytest.raises(InputError, match=r"set model.max_tokens=16"):
        length_limits(base, 3, 40)
    assert length_limits(base, 3, 16) == ()
    with pytest.raises(InputError, match=r"sequences of 40 tokens, but beyond 16 .* dynamic RoPE"):
        refuse_mismatch(base, 5, 40)


def saved(base, folder) -> ModelConfig:
    base.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return ModelConfig(name=str(folder))


def change_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_weight(folder, key: str) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), key: torch.ones(1)}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: LlamaModel(LlamaConfig(**LLAMA)).save_pretrained(folder), "no lm_head.weight"),
        (lambda folder: change_config(folder, intermediate_size=24), r"shape \(16, 32\).*\(16, 24\)"),
        (lambda folder: change_config(folder, num_hidden_layers=1), "have model.layers.1"),
        (lambda folder: change_config(folder, num_hidden_layers=3), "no model.layers.2"),
        (lambda folder: add_weight(folder, "model.layers.0.self_attn.q_proj.weight_scale"), "q_proj.weight_scale"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds adapter_config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 40), "cannot be loaded"),
        (lambda folder: change_config(folder, architectures=["T5"], model_type="t5"), "cannot be loaded"),
    ],
)
def test_files_that_are_not_exactly_the_model_are_refused(damage, says, tmp_path):
    model = saved(llama(), tmp_path / "base")
    load_base(model, DataConfig(path="x"))
    damage(tmp_path / "base")
    with pytest.raises(InputError, match=says):
        load_base(model, DataConfig(path="x"))


def test_weights_of_parts_that_a_causal_model_lacks_are_ignored(tmp_path):
    model = saved(llama(), tmp_path / "base")
    before = load_base(model, DataConfig(path="x")).state_dict()
    add_weight(tmp_path / "base", "score.weight")
    torch.testing.assert_close(load_base(model, DataConfig(path="x")).state_dict(), before, rtol=0, atol=0)


class Packed(nn.Linear):
    """Stores its weights as a 4-bit layer does."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.zeros(WIDTH * WIDTH // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x


def test_packed_weights_are_refused_for_dora_only():
    base = llama()
    base.model.layers[0].self_attn.o_proj = Packed()
    assert adapted_sites(base, ["o_proj"]) == {"o_proj"}
    layout = make_layout(base, LoraConfig(variant="dora", target_modules=["o_proj"]))
    with pytest.raises(
        InputError, match=r"lora.variant=dora: model.layers.0.self_attn.o_proj keeps its weights packed"
    ):
        layout.initial(base, 0)


def test_the_message_says_when_a_model_cannot_generate(monkeypatch):
    base = llama()
    monkeypatch.setattr(base, "generate", lambda *_, **__: [][0])
    with pytest.raises(InputError, match=r"no text from a LlamaForCausalLM \(IndexError"):
        _sample(base, [1], 0)


def test_nan_logits_are_refused():
    base = llama()
    with torch.no_grad():
        base.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(InputError, match="its logits are no numbers"):
        adapted_sites(base, ["q_proj"])


class Counting(LlamaForCausalLM):
    """The logits depend on the number of end tokens in the row, wherever they are."""

    kind = 2

    def forward(self, input_ids, **options):
        made = super().forward(input_ids, **options)
        made.logits = made.logits * (1 + (input_ids == self.kind).sum(1))[:, None, None]
        return made


class Latecomers(LlamaForCausalLM):
    """Causal in rows of up to 16 tokens only."""

    def forward(self, input_ids, **options):
        made = super().forward(input_ids, **options)
        if input_ids.shape[1] > 16:
            made.logits = torch.cat([made.logits[:, :16], made.logits[:, 16:] + made.logits.mean(1, keepdim=True)], 1)
        return made


class Capped(LlamaForCausalLM):
    """Caps logits at a value that short texts of an untrained model do not reach."""

    def forward(self, input_ids, **options):
        made = super().forward(input_ids, **options)
        made.logits = made.logits.clamp(-4.5, 4.5)
        return made


class Changing(LlamaForCausalLM):
    """Changes its attention in its first call."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.attention_type = "sparse"

    def forward(self, input_ids, **options):
        self.attention_type = "full"
        return super().forward(input_ids, **options)


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Counting, "the model is not causal"), (Changing, "attention_type from sparse to full .* attention_type=full")],
)
def test_a_model_that_depends_on_padding_or_on_earlier_calls_is_refused(kind, says):
    with pytest.raises(InputError, match=says):
        adapted_sites(kind(LlamaConfig(**LLAMA)).eval(), ["q_proj"])


def test_a_model_that_is_causal_only_in_short_rows_is_limited_to_them():
    base = Latecomers(LlamaConfig(**LLAMA)).eval()
    assert adapted_sites(base, ["q_proj"]) == {"q_proj"}
    assert length_limits(base, 3, 16) == ()
    with pytest.raises(InputError, match=r"more than 1[67] tokens .* depend on how many follow"):
        length_limits(base, 3, 40)


def test_a_head_whose_logits_are_capped_is_not_taken_as_linear():
    plain, capped = (kind(LlamaConfig(**LLAMA)).eval() for kind in (LlamaForCausalLM, Capped))
    layouts = [make_layout(base, LoraConfig(target_modules=["q_proj"])) for base in (plain, capped)]
    assert AdaptedModel(plain, layouts[0]).head is plain.lm_head
    assert AdaptedModel(capped, layouts[1]).head is None
