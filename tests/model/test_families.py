"""An exported adapter has the same loss and gradients in PEFT, one row at a time, as in a batch here, for any base.

Each case is a tiny random model, trained-looking adapters of several tasks, and a batch of rows of different lengths.
"""

import pytest
import torch
from families import EASY, VOCABULARY, WORST, make_family
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.full_model import write_full
from bora_sweep.model.layout import make_layout
from bora_sweep.model.peft_check import check_peft_folder, sites_by_weight
from bora_sweep.model.peft_config import PEFT_NAMES
from bora_sweep.model.peft_io import read_adapters, write_adapter

LENGTHS = (11, 7, 9)
ALWAYS = {("opt", None, "lora"), ("deepseek_v3", "all-linear", "rslora"), ("deepseek_v3", "all-linear", "dora")}
ALWAYS |= {(family, "all-linear", "lora") for family in ("gpt2", "llama", "deepseek_v3", "qwen3_next")}
"""The cases of `make test`: (family, targets, variant)."""
NOT_CAUSAL, NO_DORA = "rows one after another", "no dora adapter of gate_proj, up_proj, down_proj"
REFUSED = {("xlnet", variant): NOT_CAUSAL for variant in ("lora", "dora")}
REFUSED |= {(family, "dora"): NO_DORA for family in ("deepseek_v3", "qwen3_next", "qwen3_moe")}
"""The refused cases, and part of the message."""
WITHOUT_GRADIENTS = {"rwkv"}
"""Families without gradients in PEFT, because transformers overwrites a tensor that the gradient needs."""


def cases():
    kinds = [(None, "lora"), ("all-linear", "lora"), ("all-linear", "dora")]
    for family in (*EASY, *WORST):
        for targets, variant in kinds + ([("all-linear", "rslora")] if family == "deepseek_v3" else []):
            marks = () if (family, targets, variant) in ALWAYS else pytest.mark.families
            yield pytest.param(family, targets, variant, marks=marks, id=f"{family}-{targets or 'default'}-{variant}")


def nll_nats(logits_TV: torch.Tensor, tokens_T: torch.Tensor) -> torch.Tensor:
    """The summed loss of all tokens but the first, by a loop."""
    total = torch.zeros((), dtype=torch.float64)
    for place in range(1, len(tokens_T)):
        row = logits_TV[place - 1].double()
        total = total + torch.logsumexp(row, 0) - row[tokens_T[place]]
    return total


def made(family: str, targets: str | None, variant: str):
    """A base, its layout, and an adapter for each row, with noise as large as a fit's."""
    base = make_family(family)
    config = LoraConfig(rank=2, alpha=3.0, variant=variant, target_modules=targets)
    layout = make_layout(base, config)
    by_weight = sites_by_weight(base, layout, config)
    noise = torch.randn(len(LENGTHS), layout.num_parameters, generator=torch.Generator().manual_seed(1))
    return base, config, layout, by_weight, layout.initial(base, 0) + 0.1 * noise


@pytest.mark.parametrize(("family", "targets", "variant"), cases())
def test_peft_gives_an_exported_adapter_the_same_loss_and_gradients(family, targets, variant, tmp_path):
    if (family, variant) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[family, variant]):
            made(family, targets, variant)
        return
    base, config, layout, by_weight, theta_BP = made(family, targets, variant)
    generator = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(3, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    adapted, theta_BP = AdaptedModel(base, layout), theta_BP.requires_grad_()
    logits_BTV = adapted(tokens_BT, theta_BP)
    nll_B = torch.stack([nll_nats(logits_BTV[i], tokens_BT[i, :n]) for i, n in enumerate(LENGTHS)])
    nll_B.sum().backward()
    adapted.remove_hooks()

    for row, theta_P in enumerate(theta_BP.detach()):
        write_adapter(tmp_path / f"task_{row}", layout, theta_P, config, None, by_weight)
        check_peft_folder(base, tmp_path / f"task_{row}", layout, theta_P)
        assert torch.equal(read_adapters(tmp_path / f"task_{row}", layout, config, ["a"])[0], theta_P)
    peft = PeftModel.from_pretrained(make_family(family), tmp_path / "task_0", "task_0", is_trainable=True)
    for row in (1, 2):
        peft.load_adapter(tmp_path / f"task_{row}", f"task_{row}", is_trainable=True)
    for row, length in enumerate(LENGTHS):
        peft.eval().set_adapter(f"task_{row}")
        nll = nll_nats(peft(input_ids=tokens_BT[row : row + 1, :length]).logits[0], tokens_BT[row, :length])
        assert nll_B[row].item() == pytest.approx(nll.item(), rel=3e-7)
        if family in WITHOUT_GRADIENTS:
            continue
        nll.backward()
        theirs = {name: weight.grad for name, weight in peft.named_parameters() if f".task_{row}." in name}
        for site, parts in layout.split(theta_BP.grad[row]).items():
            for kind, ours in parts.items():
                named = PEFT_NAMES[kind].removesuffix(".weight")
                found = theirs[f"base_model.model.{site}.{named}.task_{row}.weight"]
                torch.testing.assert_close(ours, found, rtol=1e-3, atol=1e-4 * ours.abs().max().item() + 1e-6)

    write_full(tmp_path / "full", base, layout, theta_BP.detach()[0])
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32).eval()
    with torch.no_grad():
        nll = nll_nats(full(input_ids=tokens_BT[:1]).logits[0], tokens_BT[0])
    assert nll.item() == pytest.approx(nll_B[0].item(), rel=1e-5)
    fresh = make_family(family).state_dict()
    assert all(torch.equal(weight, fresh[name]) for name, weight in base.state_dict().items())
