"""Fits on a quantised base: they train, resume, generate and export, and PEFT gives the export the same logits."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from quantised import KINDS, make_wide, needs_bitsandbytes, stored
from safetensors import safe_open
from tiny import make_frame
from transformers import AutoModelForCausalLM

from bora_sweep.cli import main
from bora_sweep.config import ModelConfig
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_base
from bora_sweep.model.quantization import is_packed, use_one_path
from bora_sweep.runs.results import read_results
from bora_sweep.serve.load import load_trial

SIZES = {"ann": 24, "bob": 16}
SMALL = ["model.max_tokens=9", "lora.rank=2", "lora.target_modules=all-linear", "train.max_epochs=2",
         "train.batch_size=8", "train.device=cpu", "train.learning_rate=0.03", "prior.tau=10"]  # fmt: skip


def a_fit(folder: Path, family: str, kind: str, *settings: str) -> list[str]:
    """Fit on a made corpus; returns the settings, with `output`."""
    stored(folder / "base", family, kind)
    make_frame(SIZES).to_parquet(folder / "speeches.parquet")
    given = [f"data.path={folder / 'speeches.parquet'}", f"model.name={folder / 'base'}", f"model.quantization={kind}",
             *SMALL, *settings, f"output={folder / 'run'}"]  # fmt: skip
    assert main(["fit", *given]) == 0
    return given


def quantised_as_the_card_says(card: str) -> torch.nn.Module:
    """The base that the card's code loads."""
    code = card.partition("```python\n")[2].partition("\n```")[0]
    lines = code.partition("tokenizer =")[0].replace("trust_remote_code=True", "")
    namespace: dict = {}
    exec(
        lines.replace("from_pretrained(", 'from_pretrained(device_map={"": "cpu"}, pretrained_model_name_or_path='),
        namespace,
    )
    use_one_path(namespace["model"])  # some CPUs have another in bfloat16, see docs/serving.md
    return namespace["model"].eval()


CASES = [(family, kind) for kind in ("nf4", "int8", "fp8") for family in ("llama", "opt", "opt-350m", "gpt2", "qwen2")]
MARKS = {kind.values[0]: kind.marks for kind in KINDS}


@pytest.mark.parametrize(
    ("family", "kind"),
    [pytest.param(*case, marks=MARKS[case[1]]) for case in CASES if case != ("gpt2", "fp8")],  # torchao has no Conv1D
)
def test_peft_gives_an_export_the_logits_of_the_fit_on_the_base_that_the_card_loads(family, kind, tmp_path):
    a_fit(tmp_path, family, kind)
    row = read_results(tmp_path / "run").trials.iloc[0]
    curve = read_results(tmp_path / "run").curves.query("split == 'train'").sort_values("epoch")
    assert row["status"] == "finished"
    assert curve["nll_nats"].iloc[-1] < curve["nll_nats"].iloc[0]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    loaded = load_trial(tmp_path / "run")
    assert loaded.config.model.quantization == kind
    adapted = AdaptedModel(load_base(loaded.config.model, loaded.config.data), loaded.layout)
    tokens_BT = torch.randint(3, 43, (2, 9), generator=torch.Generator().manual_seed(1))
    for task, folder in json.loads((tmp_path / "out" / "tasks.json").read_text(encoding="utf-8")).items():
        card = (tmp_path / "out" / folder / "README.md").read_text(encoding="utf-8")
        assert f"the base with its linear layers in {kind}" in card
        with safe_open(tmp_path / "out" / folder / "adapter_model.safetensors", "pt") as weights:
            assert weights.metadata()["base_quantization"] == kind
        base = quantised_as_the_card_says(card)
        assert any(map(is_packed, base.modules()))
        with torch.no_grad():
            expected = adapted(tokens_BT, loaded.theta_of[task][None])
            bare = base(input_ids=tokens_BT).logits
            found = PeftModel.from_pretrained(base, tmp_path / "out" / folder).eval()(input_ids=tokens_BT).logits
        effect = (expected - bare).norm()
        assert effect > 1e-3 * bare.norm()
        # int8 rounds the inputs of a layer, so that a last digit may become a step.
        assert (found - expected).norm() < (0.05 if kind == "int8" else 1e-4) * effect


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merge_is_into_the_weights_that_were_not_quantised(family, tmp_path, capsys):
    a_fit(tmp_path, family, "nf4")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapters"), "--task", "ann"]) == 0
    assert "fitted and scored on a base in nf4, as the cards load the base" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--task", "ann", "--merge"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "fitted and scored on a base in nf4, merged into the base as it was before" in said
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "ann", dtype=torch.float32)
    assert getattr(ours.config, "quantization_config", None) is None
    theirs = PeftModel.from_pretrained(make_wide(family), tmp_path / "adapters" / "ann").merge_and_unload()
    for (name, weight), (other, expected) in zip(
        sorted(ours.named_parameters()), sorted(theirs.named_parameters()), strict=True
    ):
        assert name == other
        assert torch.allclose(weight, expected, atol=1e-6)
    card = (tmp_path / "out" / "ann" / "README.md").read_text(encoding="utf-8")
    assert "the perplexities are not of this model" in card
    assert "before they were quantised to nf4" in card
    assert "quantization" not in card.partition("```python")[2].partition("```")[0]


@needs_bitsandbytes
def test_a_run_does_not_resume_with_another_quantization(tmp_path, capsys):
    settings = a_fit(tmp_path, "opt", "nf4")
    assert main(["fit", "--resume", settings[-1]]) == 0
    for other in ("model.quantization=int8", "model.quantization=null", "model.device_map=auto"):
        assert main(["fit", "--resume", settings[-1], other]) == 2
    assert "model.quantization=int8: the run was begun with nf4" in capsys.readouterr().err


@needs_bitsandbytes
def test_generate_draws_from_the_quantised_base(tmp_path, capsys):
    a_fit(tmp_path, "llama", "nf4")
    capsys.readouterr()
    asked = ["--task", "ann", "--max-new-tokens", "4", "--temperature", "0"]
    assert main(["generate", str(tmp_path / "run"), *asked, "w3 w4"]) == 0
    printed = capsys.readouterr().out
    base = load_base(
        ModelConfig(name=str(tmp_path / "base"), quantization="nf4"), load_trial(tmp_path / "run").config.data
    )
    sequence = [2, 6, 7]
    for _ in range(4):
        sequence.append(int(base(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
    words = [f"w{token - 3}" for token in sequence[3:] if token >= 3]
    assert all(re.search(rf"\b{word}\b", printed) for word in words)


@needs_bitsandbytes
def test_a_sweep_on_a_quantised_base_scores_all_its_trials(tmp_path, ray_here):  # noqa: ARG001
    stored(tmp_path / "base", "opt", "nf4")
    make_frame(SIZES).to_parquet(tmp_path / "speeches.parquet")
    given = [f"data.path={tmp_path / 'speeches.parquet'}", f"model.name={tmp_path / 'base'}", "model.quantization=nf4",
             *[setting for setting in SMALL if not setting.startswith("prior.tau")], "search.taus=[0,10,inf]",
             "search.num_trials=3", f"output={tmp_path / 'run'}"]  # fmt: skip
    assert main(["sweep", *given]) == 0
    trials = read_results(tmp_path / "run").trials
    assert set(trials["status"]) == {"finished"}
    assert all(math.isfinite(value) for value in trials["test_perplexity"])
    assert all('"quantization": "nf4"' in config for config in trials["config_json"])


@needs_bitsandbytes
def test_mora_on_a_quantised_base_is_exported_with_the_name_of_its_quantization(tmp_path):
    a_fit(tmp_path, "llama", "nf4", "lora.variant=mora")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    with safe_open(tmp_path / "out" / "ann" / "mora.safetensors", "pt") as weights:
        assert weights.metadata()["base_quantization"] == "nf4"
