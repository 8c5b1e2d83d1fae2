"""An adapter that PEFT would not load unchanged is refused: before the fit if possible, else without leaving files."""

import json
from dataclasses import replace

import pytest
import torch
from families import make_family
from safetensors.torch import load_file, save_file
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.cli import main
from bora_sweep.config import LoraConfig
from bora_sweep.errors import InputError
from bora_sweep.model import full_model as full
from bora_sweep.model.full_model import merged_weights, write_full
from bora_sweep.model.layout import layout_of_sites, make_layout
from bora_sweep.model.lora import Site
from bora_sweep.model.peft_check import check_like, check_peft_folder, sites_by_weight
from bora_sweep.model.peft_io import WEIGHTS, read_adapters, write_adapter
from bora_sweep.serve import export as folders

LORA = LoraConfig(rank=2, target_modules="all-linear")


def made(base, config: LoraConfig = LORA):
    layout = make_layout(base, config)
    return layout, layout.initial(base, 0) + 0.1 * torch.randn(layout.num_parameters)


def test_target_parameters_are_used_only_where_peft_mistakes_a_module():
    base = make_family("deepseek_v3")
    layout, _ = made(base)
    by_weight = sites_by_weight(base, layout, LORA)
    assert {name.rpartition(".")[2] for name in by_weight} == {"gate_proj", "up_proj", "down_proj"}
    llama = make_base("llama")
    assert sites_by_weight(llama, make_layout(llama, LORA), LORA) == frozenset()


@pytest.mark.parametrize("targets", [["gate_proj"], ["gate_proj", "up_proj"], ["down_proj", "o_proj"]])
def test_modules_whose_names_peft_rewrites_can_be_exported(targets, tmp_path):
    base, config = make_family("deepseek_v3"), replace(LORA, target_modules=targets)
    layout, theta_P = made(base, config)
    write_adapter(tmp_path / "a", layout, theta_P, config, None, sites_by_weight(base, layout, config))
    check_peft_folder(base, tmp_path / "a", layout, theta_P)


def test_what_peft_does_not_load_is_refused_and_the_message_names_targets_that_it_loads():
    base, config = make_family("deepseek_v3"), replace(LORA, variant="dora")
    with pytest.raises(InputError, match=r"no dora adapter of gate_proj, up_proj, down_proj .* or lora.variant=lora$"):
        sites_by_weight(base, make_layout(base, config), config)
    base = make_family("mamba")
    names = ["in_proj", "out_proj"]
    sites = [
        (f"backbone.layers.0.mixer.{name}", base.get_submodule(f"backbone.layers.0.mixer.{name}")) for name in names
    ]
    layout = layout_of_sites([Site(name, m.in_features, m.out_features, transposed=False) for name, m in sites], LORA)
    with pytest.raises(InputError, match=r"no lora adapter of out_proj in a mamba model .*=\[in_proj\]$"):
        sites_by_weight(base, layout, LORA)


def _named_alone(folder, layout, theta_P) -> None:
    write_adapter(folder / "again", layout, theta_P, LORA, None)
    (folder / "again" / "adapter_config.json").replace(folder / "adapter_config.json")


def _changed(change):
    def spoil(folder, layout, theta_P) -> None:  # noqa: ARG001
        named = load_file(folder / WEIGHTS)
        change(named, next(iter(named)))
        save_file(named, folder / WEIGHTS)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_named_alone, "would load .*gate_proj.* otherwise than it was fitted"),
        (_changed(lambda named, key: named[key].add_(1e-6)), "otherwise than it was fitted"),
        (_changed(lambda named, key: named.pop(key)), "otherwise than it was fitted"),
    ],
)
def test_a_folder_that_peft_loads_differently_is_refused(spoil, says, tmp_path):
    base = make_family("deepseek_v3")
    layout, theta_P = made(base)
    write_adapter(tmp_path / "a", layout, theta_P, LORA, None, sites_by_weight(base, layout, LORA))
    check_peft_folder(base, tmp_path / "a", layout, theta_P)
    spoil(tmp_path / "a", layout, theta_P)
    with pytest.raises(InputError, match=says):
        check_peft_folder(base, tmp_path / "a", layout, theta_P)


@pytest.mark.parametrize("spoil", [_named_alone, _changed(lambda named, key: named[key].add_(1e-6)),
                                   _changed(lambda named, key: named.pop(key)),
                                   _changed(lambda named, key: named.update(more=named[key].clone()))])  # fmt: skip
def test_a_folder_that_is_unlike_one_that_peft_has_loaded_is_refused(spoil, tmp_path):
    base = make_family("deepseek_v3")
    layout, theta_P = made(base)
    by_weight = sites_by_weight(base, layout, LORA)
    for name in ("first", "a"):
        write_adapter(tmp_path / name, layout, theta_P, LORA, None, by_weight)
    check_like(tmp_path / "first", tmp_path / "a", layout, theta_P)
    spoil(tmp_path / "a", layout, theta_P)
    with pytest.raises(InputError, match="nothing is exported"):
        check_like(tmp_path / "first", tmp_path / "a", layout, theta_P)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A fit of a base with routed and shared experts, and its settings without `output`."""
    folder = tmp_path_factory.mktemp("experts")
    make_family("deepseek_v3").save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    make_frame({"ann": 16, "bob": 14}).to_parquet(folder / "speeches.parquet")
    settings = [f"data.path={folder / 'speeches.parquet'}", f"model.name={folder / 'base'}", "model.max_tokens=16",
                "lora.target_modules=all-linear", "lora.rank=2", "train.max_epochs=1", "train.device=cpu"]  # fmt: skip
    assert main(["fit", *settings, f"output={folder / 'run'}"]) == 0
    return folder, settings


def test_an_export_of_a_model_with_experts_loads_and_starts_a_fit(experts, tmp_path):
    folder, settings = experts
    assert main(["export", str(folder / "run"), str(tmp_path / "out")]) == 0
    described = json.loads((tmp_path / "out" / "ann" / "adapter_config.json").read_text(encoding="utf-8"))
    assert all(name.endswith("_proj.weight") for name in described["target_parameters"])
    again = [*settings, f"init_from={tmp_path / 'out'}", "prior.tau=0", f"output={tmp_path / 'again'}"]
    assert main(["fit", *again]) == 0


@pytest.mark.parametrize("merge", [[], ["--merge"]])
def test_an_export_that_does_not_load_leaves_no_files(merge, experts, tmp_path, monkeypatch, capsys):
    folder, _ = experts
    monkeypatch.setattr(folders, "sites_by_weight", lambda *_: frozenset())
    monkeypatch.setattr(full, "merged_weights", lambda *_: {})
    assert main(["export", str(folder / "run"), str(tmp_path / "out"), *merge]) == 2
    assert ("logits are off by" if merge else "PEFT would load") in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_a_fit_whose_export_peft_could_not_load_is_refused_at_the_start(experts, tmp_path, capsys):
    _, settings = experts
    assert main(["fit", *settings, "lora.variant=dora", f"output={tmp_path / 'run'}"]) == 2
    assert "an export could not be used" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_dora_on_a_quantised_base_is_refused_at_the_start(experts, tmp_path, capsys):
    _, settings = experts
    make_base("opt", dtype=torch.float32).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    described = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    described["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(described), encoding="utf-8")
    changes = [f"model.name={tmp_path / 'base'}", "lora.variant=dora", f"output={tmp_path / 'run'}"]
    assert main(["fit", *settings, *changes]) == 2
    assert "is quantised; DoRA needs the norms of plain weights: set lora.variant=lora or" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _quantised(base) -> None:
    base.config.quantization_config = {"quant_method": "fp8"}


def _adapted_already(base) -> None:
    base._hf_peft_config_loaded = True


def _tied(base) -> None:
    base.model.decoder.layers[1].fc1.weight = base.model.decoder.layers[0].fc1.weight


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_quantised, "the base is quantised"),
        (_adapted_already, "has an adapter already"),
        (_tied, "layers.0.fc1 shares its weight with model.decoder.layers.1.fc1.weight"),
    ],
)
def test_a_base_that_cannot_be_merged_is_refused(spoil, says):
    base = make_base("opt", dtype=torch.float32)
    layout, theta_P = made(base)
    spoil(base)
    with pytest.raises(InputError, match=f"^--merge: .*{says}.*; export adapters, without --merge$"):
        merged_weights(base, layout, theta_P)


def test_a_full_model_with_other_logits_than_its_adapter_is_refused(tmp_path):
    """Jamba uses the weight of dt_proj without calling it: a merged adapter has an effect, a separate one has none."""
    base = make_family("jamba")
    module = base.get_submodule("model.layers.0.mamba.dt_proj")
    layout = layout_of_sites(
        [Site("model.layers.0.mamba.dt_proj", module.in_features, module.out_features, False)], LORA
    )
    with pytest.raises(InputError, match=r"merged model.s logits are off by .*%|change no logit"):
        write_full(tmp_path / "full", base, layout, layout.initial(base, 0) + torch.randn(layout.num_parameters))


def test_the_rounding_error_of_a_merge_is_returned(tmp_path):
    lost_of = {}
    for dtype in (torch.float32, torch.bfloat16):
        base = make_base("llama", dtype=dtype)
        layout, theta_P = made(base)
        lost_of[dtype] = write_full(tmp_path / str(dtype), base, layout, theta_P * 0.05).rounding_error
    assert lost_of[torch.float32] < 0.01 < 0.1 < lost_of[torch.bfloat16]


def test_a_full_model_that_does_not_load_as_merged_is_refused(tmp_path, monkeypatch):
    base = make_base("opt", dtype=torch.float32)
    layout, theta_P = made(base)
    monkeypatch.setattr(base, "save_pretrained", lambda folder, **_: type(base).save_pretrained(base, folder))
    with pytest.raises(InputError, match=r"--merge: model\.\S+ would not load as it was merged"):
        write_full(tmp_path / "full", base, layout, theta_P)


@pytest.mark.parametrize(
    ("found", "base", "is_refused"),
    [
        ("facebook/opt-350m", "facebook/opt-350m", False),
        ("facebook/opt-350m", "./models/opt-350m/", False),
        ("/cache/models--facebook--opt-350m/snapshots/0a1b", "opt-350m", False),
        (None, "opt-350m", False),
        ("facebook/opt-350m", "facebook/opt-125m", True),
        ("models/opt-350m", "opt-350m-chat", True),
    ],
)
def test_a_fit_does_not_start_from_an_adapter_of_another_base(found, base, is_refused, tmp_path):
    layout, theta_P = made(make_base("opt"))
    write_adapter(tmp_path / "a", layout, theta_P, LORA, found)
    if is_refused:
        with pytest.raises(InputError, match=f"is an adapter of {found}, and the fit's base is model.name={base}"):
            read_adapters(tmp_path / "a", layout, LORA, ["a"], base)
    else:
        assert torch.equal(read_adapters(tmp_path / "a", layout, LORA, ["a"], base)[0], theta_P)


def test_a_fit_does_not_start_from_mora_nan_or_transposed_target_parameters(tmp_path):
    base, mora = make_base("gpt2"), LoraConfig(rank=2, variant="mora")
    layout, theta_P = made(base)
    mora_layout = make_layout(base, mora)
    write_adapter(tmp_path / "mora", mora_layout, mora_layout.initial(base, 0), mora, None)
    write_adapter(tmp_path / "nan", layout, theta_P.index_fill(0, torch.tensor([5]), torch.nan), LORA, None)
    write_adapter(tmp_path / "transposed", layout, theta_P, LORA, None, [layout.sites[0].name])
    for name, says in [("mora", "no PEFT adapter"), ("nan", "no finite numbers"), ("transposed", "target_parameters")]:
        (tmp_path / "tasks.json").write_text(json.dumps({"a": name}), encoding="utf-8")
        with pytest.raises(InputError, match=f"^init_from=.*{says}"):
            read_adapters(tmp_path, layout, LORA, ["a"])
