"""PEFT loads written folders and gives the same logits; a fit can start from what PEFT writes."""

import json
import shutil
import unicodedata

import pytest
import torch
from grids import grid
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, make_base

from bora_sweep.config import LoraConfig
from bora_sweep.data.known_documents import DOCUMENTS
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.full_model import merged_weights, write_full
from bora_sweep.model.layout import make_layout
from bora_sweep.model.peft_io import GLOBAL, TASKS, folder_names, read_adapters, write_adapter

VARIANTS = ["lora", "rslora", "lora_plus", "dora"]
HOSTILE = ["documents.parquet", "", "CON", "nul.txt", "_global", "tasks.json", "..", "../../etc", "---", "<script>",
           "a.", "a", "Ann", "ann", "e\u0301", "\u00e9", "x" * 300, "x" * 300 + "y",
           "😀", "🙃", "李白", "a\nb", "ß", "ss", "-rf"]  # fmt: skip


def made(base, config: LoraConfig, tasks: list[str], dtype: torch.dtype = torch.float32):
    """A layout and random adapters of the tasks."""
    layout = make_layout(base, config)
    theta_KP = layout.initial(base, 0, dtype) + 0.3 * torch.randn(len(tasks), layout.num_parameters, dtype=dtype)
    return layout, theta_KP


def written(out, base, config: LoraConfig, tasks: list[str], with_global: bool = True):
    """A layout and random adapters of the tasks, written like an export."""
    layout, theta_KP = made(base, config, tasks)
    names = folder_names(tasks)
    for task, theta_P in zip(tasks, theta_KP, strict=True):
        write_adapter(out / names[task], layout, theta_P, config, None)
    if with_global:
        write_adapter(out / GLOBAL, layout, theta_KP[0] * 2, config, None)
    (out / TASKS).write_text(json.dumps(names), encoding="utf-8")
    return layout, theta_KP


@pytest.mark.parametrize(
    ("family", "variant", "dtype"), grid(["opt", "gpt2", "llama"], VARIANTS, [torch.float64, torch.float32])
)
def test_peft_loads_a_written_adapter_with_the_same_logits(family, variant, dtype, tmp_path):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    base = make_base(family, dtype=dtype)
    config = LoraConfig(variant=variant, rank=3, alpha=5.0, target_modules="all-linear")
    layout, (theta_P,) = made(base, config, ["a"], dtype)
    write_adapter(tmp_path / "out", layout, theta_P, config, None)
    tokens_BT = torch.randint(VOCABULARY, (2, 9))
    expected = AdaptedModel(base, layout)(tokens_BT, theta_P[None])
    peft = PeftModel.from_pretrained(make_base(family, dtype=dtype), tmp_path / "out").eval()
    torch.testing.assert_close(peft(input_ids=tokens_BT).logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("family", "variant"), grid(["opt", "gpt2", "llama"], [*VARIANTS, "mora"]))
def test_a_full_model_has_the_logits_of_its_adapter_and_the_base_is_unchanged(family, variant, tmp_path):
    base = make_base(family, dtype=torch.float32)
    config = LoraConfig(variant=variant, rank=2, target_modules="all-linear")
    layout, (theta_P,) = made(base, config, ["a"])
    tokens_BT = torch.randint(VOCABULARY, (2, 9))
    with torch.no_grad():
        expected, before = AdaptedModel(base, layout)(tokens_BT, theta_P[None]), base(input_ids=tokens_BT).logits
        write_full(tmp_path / "full", base, layout, theta_P)
        loaded = type(base).from_pretrained(tmp_path / "full").eval()
        torch.testing.assert_close(loaded(input_ids=tokens_BT).logits, expected, rtol=0, atol=1e-4)
        assert torch.equal(base(input_ids=tokens_BT).logits, before)
    assert not torch.allclose(expected, before, atol=1e-2)


def test_a_head_tied_to_the_embeddings_is_not_merged():
    base = make_base("opt")
    layout, (theta_P,) = made(base, LoraConfig(rank=2, target_modules=["q_proj", "lm_head"]), ["a"], torch.float64)
    with pytest.raises(InputError, match="lm_head shares its weight"):
        merged_weights(base, layout, theta_P)


def test_the_names_are_those_that_peft_writes(tmp_path):
    base, config = make_base("gpt2"), LoraConfig(variant="dora", rank=2)
    layout, (theta_P,) = made(base, config, ["a"], torch.float64)
    write_adapter(tmp_path / "ours", layout, theta_P, config, None)
    PeftModel.from_pretrained(base, tmp_path / "ours").save_pretrained(tmp_path / "peft")
    ours, theirs = (load_file(tmp_path / by / "adapter_model.safetensors") for by in ("ours", "peft"))
    assert {name: part.shape for name, part in ours.items()} == {name: part.shape for name, part in theirs.items()}


def test_mora_has_its_own_format(tmp_path):
    base, config = make_base("llama"), LoraConfig(variant="mora", rank=2)
    layout, (theta_P,) = made(base, config, ["a"], torch.float64)
    write_adapter(tmp_path / "a", layout, theta_P, config, None)
    assert "not a PEFT adapter" in json.loads((tmp_path / "a" / "config.json").read_text())["format"]
    read = load_file(tmp_path / "a" / "mora.safetensors")
    for name, parts in layout.split(theta_P).items():
        assert torch.equal(read[name], parts["M"])


@given(tasks=st.lists(st.text(st.characters(codec=None), max_size=80), min_size=1, unique=True))
@example(tasks=HOSTILE)
@example(tasks=[*"aA.", "a" * 300, "A" * 301])
@settings(max_examples=200, deadline=None)
def test_folder_names_are_safe_and_unique_on_any_file_system(tasks):
    names = folder_names(tasks)
    assert list(names) == tasks
    taken = [*names.values(), GLOBAL, TASKS, DOCUMENTS]
    assert len({unicodedata.normalize("NFD", name).casefold() for name in taken}) == len(taken)
    for name in names.values():
        assert name.isprintable()
        assert 0 < len(name.encode()) <= 255
        assert not set(name) & set('<>:"/\\|?* ')
        assert name[0] not in "._-~"
        assert name[-1] not in "._-"
        assert name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}


def test_plain_names_do_not_change():
    assert folder_names(["romeo", "Åse", "_global", "Ann", "ann"]) == {
        "romeo": "romeo",
        "Åse": "Åse",
        "_global": "global",
        "Ann": "Ann~17239b6e2501",
        "ann": "ann~49915e0d7d4b",
    }


@pytest.mark.parametrize(("family", "variant"), grid(["opt", "gpt2", "llama"], VARIANTS))
def test_written_adapters_are_read_back_bit_for_bit(family, variant, tmp_path):
    base, config = make_base(family), LoraConfig(variant=variant, rank=2)
    layout, theta_KP = written(tmp_path, base, config, HOSTILE)
    mean_P, read_KP = read_adapters(tmp_path, layout, config, HOSTILE[::-1])
    assert torch.equal(mean_P, theta_KP[0] * 2)
    assert torch.equal(read_KP, theta_KP.flip(0))


def test_missing_adapters_start_at_theta_and_missing_theta_at_the_mean(tmp_path):
    base, config = make_base("opt"), LoraConfig(rank=2)
    layout, theta_KP = written(tmp_path, base, config, ["a", "b"], with_global=False)
    mean_P, read_KP = read_adapters(tmp_path, layout, config, ["b", "new"])
    torch.testing.assert_close(mean_P, theta_KP.mean(0))
    assert torch.equal(read_KP, torch.stack([theta_KP[1], mean_P]))
    alone_P, both_KP = read_adapters(tmp_path / "a", layout, config, ["a", "b"])
    assert torch.equal(alone_P, theta_KP[0])
    assert torch.equal(both_KP, theta_KP[0].expand(2, -1))


def test_a_fit_can_start_from_an_adapter_that_peft_wrote(tmp_path):
    base, config = make_base("gpt2", dtype=torch.float32), LoraConfig(variant="rslora", rank=3, alpha=7)
    there = PeftConfig(
        r=3, lora_alpha=7, use_rslora=True, lora_dropout=0.1, init_lora_weights=False, target_modules="all-linear"
    )
    peft = get_peft_model(make_base("gpt2", dtype=torch.float32), there).eval()
    peft.save_pretrained(tmp_path)
    layout = make_layout(base, config)
    mean_P, _ = read_adapters(tmp_path, layout, config, ["a"])
    tokens_BT = torch.randint(VOCABULARY, (2, 9))
    with torch.no_grad():
        logits_BTV = AdaptedModel(base, layout)(tokens_BT, mean_P[None])
        torch.testing.assert_close(logits_BTV, peft(input_ids=tokens_BT).logits, rtol=0, atol=1e-4)


ASKED = {"variant": "lora", "rank": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rank": 3}, "has lora.rank=2, lora.alpha=2, the fit lora.rank=3, lora.alpha=3"),
        ({"alpha": 4.0}, "has lora.alpha=2, the fit lora.alpha=4"),
        ({"variant": "dora"}, "has lora.variant=lora, the fit lora.variant=dora"),
        ({"variant": "mora"}, "the fit lora.variant=mora"),
        ({"target_modules": ["q_proj"]}, r"no place for \S+v_proj\S+, and 3 more"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, r"lacks \S+k_proj\S+, and 3 more"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(asked, says, tmp_path):
    base = make_base("opt")
    written(tmp_path, base, LoraConfig(**ASKED), ["a"])
    config = LoraConfig(**{**ASKED, **asked})
    with pytest.raises(InputError, match=says):
        read_adapters(tmp_path, make_layout(base, config), config, ["a"])


def _described(folder, **changes) -> None:
    path = folder / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _other_shape(folder) -> None:
    named = load_file(folder / "a" / "adapter_model.safetensors")
    save_file({name: part[:, :1].contiguous() for name, part in named.items()}, folder / "a/adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda f: (f / TASKS).unlink(), "neither adapter_config.json nor tasks.json"),
        (lambda f: (f / TASKS).write_text("{"), "cannot be read"),
        (lambda f: (f / TASKS).write_text("[]"), "no JSON object"),
        (lambda f: (f / TASKS).write_text('{"a": "../a"}'), "plain name"),
        (lambda f: (f / TASKS).write_text('{"a": ""}'), "plain name"),
        (lambda f: (f / TASKS).write_text("{}"), "names no task"),
        (lambda f: (f / "a" / "adapter_model.safetensors").unlink(), "nothing is unpickled"),
        (lambda f: (f / "a" / "adapter_model.safetensors").write_bytes(b"no"), "nothing is unpickled"),
        (lambda f: _described(f, peft_type="LOHA"), "peft_type='LOHA'"),
        (lambda f: _described(f, rank_pattern={"q_proj": 4}), "rank_pattern"),
        (lambda f: _described(f, init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (lambda f: _described(f, made_up=True), "made_up"),
        (_other_shape, r"has shape \(2, 1\) where the model needs \(2, 16\)"),
    ],
)
def test_a_folder_without_a_valid_adapter_is_refused(spoil, says, tmp_path):
    base, config = make_base("opt"), LoraConfig(**ASKED)
    layout, _ = written(tmp_path / "out", base, config, ["a"], with_global=False)
    spoil(tmp_path / "out")
    with pytest.raises(InputError, match=f"^init_from.*{says}"):
        read_adapters(tmp_path / "out", layout, config, ["a"])
