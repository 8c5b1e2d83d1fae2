"""The embedded base model: the same bytes for a seed, made once, with a tokenizer that loses nothing."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bora_sweep.config import SyntheticConfig
from bora_sweep.data.synthetic import MAX_WORDS, VOCABULARY, documents, world_documents
from bora_sweep.errors import InputError
from bora_sweep.model import embedded
from bora_sweep.model.embedded import Pretraining, base_model_folder, build_tokenizer, pretrain, score

CONFIG = SyntheticConfig(num_tasks=2, min_documents=6, max_documents=6)
TINY = Pretraining(num_steps=3, batch_size=4, width=16, num_heads=2, ffn_width=32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(*_, **__):
    raise AssertionError("trained again")


def test_the_same_seed_gives_the_same_bytes_whatever_the_callers_state(monkeypatch, tmp_path):
    first = contents(base_model_folder(CONFIG, pretraining=TINY))
    monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path / "elsewhere"))
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert contents(base_model_folder(CONFIG, pretraining=TINY)) == first
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(first)
    other = contents(base_model_folder(replace(CONFIG, seed=1), pretraining=TINY))
    assert other["model.safetensors"] != first["model.safetensors"]


def test_the_callers_random_state_is_not_changed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    base_model_folder(CONFIG, pretraining=TINY)
    assert torch.equal(torch.rand(3), expected)


def test_it_is_trained_once_for_all_corpora_of_a_seed_and_again_for_other_sizes(monkeypatch, cache):
    folder = base_model_folder(CONFIG, pretraining=TINY)
    monkeypatch.setattr(embedded, "pretrain", refuse)
    speakers = SyntheticConfig(num_tasks=7, similarity=0.1, shift=0.3, min_documents=9, max_documents=10)
    assert base_model_folder(speakers, pretraining=TINY) == folder
    assert [path.name for path in cache.iterdir()] == [folder.name]
    for other in (replace(TINY, width=32), replace(TINY, num_steps=4)):
        with pytest.raises(AssertionError, match="trained again"):
            base_model_folder(CONFIG, pretraining=other)
    with pytest.raises(AssertionError, match="trained again"):
        base_model_folder(replace(CONFIG, seed=9), pretraining=TINY)
    assert [path.name for path in cache.iterdir()] == [folder.name]  # nothing of what failed is left


def test_of_two_processes_the_second_uses_the_folder_of_the_first(monkeypatch, cache):
    def overtaken(config, tokenizer, pretraining, progress):
        monkeypatch.setattr(embedded, "pretrain", pretrain)
        folder = cache / f"base-{embedded._key(config.seed, pretraining)}"
        embedded._write(folder, config, pretraining, progress)
        (folder / "first").touch()
        return pretrain(config, tokenizer, pretraining, progress)

    monkeypatch.setattr(embedded, "pretrain", overtaken)
    folder = base_model_folder(CONFIG, pretraining=TINY)
    assert (folder / "first").exists()
    assert [path.name for path in cache.iterdir()] == [folder.name]
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == TINY.width


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BORA_SWEEP_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a"),
        ({"XDG_CACHE_HOME": "b"}, "b/bora_sweep"),
        ({}, "home/.cache/bora_sweep"),
    ],
)
def test_cache_folder(monkeypatch, tmp_path, variables, expected):
    monkeypatch.delenv("BORA_SWEEP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(embedded, "_write", lambda *_: None)
    assert base_model_folder(CONFIG, pretraining=TINY).parent == tmp_path / expected


def test_a_cache_that_cannot_be_written_is_an_input_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="BORA_SWEEP_CACHE"):
        base_model_folder(CONFIG, pretraining=TINY)


def test_each_word_and_full_stop_is_a_token_and_decoding_restores_the_text():
    folder = base_model_folder(CONFIG, pretraining=TINY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "</s>", "<pad>")
    for text in [*documents(CONFIG)["text"], *world_documents(CONFIG, 50)]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == ["</s>", *text.replace(".", " .").split()]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) <= MAX_WORDS + 1
    assert tokenizer("foxes zzz")["input_ids"][-1] == tokenizer.unk_token_id
    assert len(tokenizer) == len(VOCABULARY) + 3


def test_padding_and_other_rows_change_no_score():
    tokenizer = build_tokenizer()
    model = pretrain(CONFIG, tokenizer, TINY)
    texts = world_documents(CONFIG, 6)
    together, num_tokens = score(model, tokenizer, texts)
    alone = [score(model, tokenizer, [text]) for text in texts]
    assert together.item() == pytest.approx(sum(nats.item() for nats, _ in alone), rel=1e-5)
    assert num_tokens == sum(n for _, n in alone) == sum(len(text.replace(".", " .").split()) + 1 for text in texts)


def test_pretraining_teaches_the_world_language():
    tokenizer = build_tokenizer()
    held_out = world_documents(SyntheticConfig(seed=0), 3000)[-300:]

    def nats_per_token(seed, num_steps):
        model = pretrain(SyntheticConfig(seed=seed), tokenizer, Pretraining(num_steps=num_steps, batch_size=16))
        with torch.no_grad():
            nll_nats, num_tokens = score(model, tokenizer, held_out)
        return nll_nats.item() / num_tokens

    before, after = nats_per_token(0, 1), nats_per_token(0, 80)
    assert before == pytest.approx(math.log(len(VOCABULARY)), abs=0.7)
    assert after < 3.3 < before
