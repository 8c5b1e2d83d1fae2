"""The help text of the configuration's keys."""

import re
from pathlib import Path

import pytest

from bora_sweep.cli import COMMANDS, main
from bora_sweep.commands import describe
from bora_sweep.config import Config
from bora_sweep.config.help import all_keys, describe_keys, find_keys
from bora_sweep.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
WITH_KEYS = [module for module in (*COMMANDS.values(), describe) if hasattr(module, "SECTIONS")]


def test_every_key_is_explained():
    lines = describe_keys(list(Config.__dataclass_fields__)).splitlines()
    assert len(lines) > 100
    unexplained = [key for key, text in zip(lines[::2], lines[1::2], strict=True) if not text.strip()]
    assert not unexplained


@pytest.mark.parametrize("key", all_keys(), ids=lambda key: key.name)
def test_the_page_of_a_key_mentions_it(key):
    text = (ROOT / key.page).read_text(encoding="utf-8")
    name = key.name.rpartition(".")[2] if key.name.startswith("data.synthetic") else key.name
    assert re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text), f"{key.name} is not in {key.page}"


@pytest.mark.parametrize("command", WITH_KEYS, ids=lambda command: command.__name__.rpartition(".")[2])
def test_the_help_of_a_command_shows_ten_keys_of_its_sections(command, capsys):
    name = command.__name__.rpartition(".")[2]
    words = ["data", name] if command is describe else [name]
    assert len(set(command.KEYS)) == len(command.KEYS) == 10
    assert {key.partition(".")[0] for key in command.KEYS} <= {*command.SECTIONS}
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    short = capsys.readouterr().out
    assert [key.name for key in all_keys() if f"  {key.assignment} " in short] == sorted(
        command.KEYS, key=[key.name for key in all_keys()].index
    )
    assert all(f"\n  {section} " in short for section in command.SECTIONS)
    with pytest.raises(SystemExit):
        main([*words, "--help-all"])
    every = capsys.readouterr().out
    assert all((f"  {key.assignment}\n" in every) is (key.section in command.SECTIONS) for key in all_keys())


def test_keys_are_found_by_section_by_name_and_by_a_word_in_their_text():
    assert [key.name for key in find_keys("prior")] == [
        "prior.tau", "prior.tau_2", "prior.parametrization", "prior.penalty", "prior.groups", "prior.group_scales"
    ]  # fmt: skip
    assert [key.name for key in find_keys("train.max_epochs")] == ["train.max_epochs"]
    assert [key.name for key in find_keys("metrics")] == ["metrics"]
    assert {"train.bank", "train.gradient_checkpointing", "search.estimate_tau"} <= {
        key.name for key in find_keys("Memory")
    }
    assert all("memory" in (key.name + key.text).lower() for key in find_keys("memory"))


@pytest.mark.parametrize(
    ("word", "near"),
    [("serach", "search"), ("train.max_epoch_", "train.max_epochs"), ("micro_bacth", "micro_batch_size")],
)
def test_a_word_without_a_key_is_answered_with_near_ones(word, near):
    with pytest.raises(InputError, match=near):
        find_keys(word)


def test_a_word_that_is_near_to_nothing_is_answered_with_the_sections():
    with pytest.raises(InputError, match="the sections are data, model"):
        find_keys("xyzzy")


def test_kinds_in_words():
    kind = {key.name: key.kind for key in all_keys()}
    assert kind["train.max_epochs"] == "a whole number (at least 1)"
    assert kind["search.pack"] == "a whole number (at least 1) or auto"
    assert kind["search.taus"] == "a list, each a number (from 0 to inf)"
    assert kind["prior.group_scales"] == "names, each with a number (above 0)"
    assert kind["lora.target_modules"] == "a list, each text or text or null"
    assert kind["model.dtype"] == "one of auto, float32, bfloat16, float64"


def test_choices_are_what_a_key_takes():
    choices = {key.name: key.choices for key in all_keys()}
    assert choices["train.compile"] == ["true", "false"]
    assert choices["model.quantization"] == ["nf4", "int8", "fp8", "null"]
    assert "ties" in choices["search.baselines"]
    assert choices["train.max_epochs"] == []


def test_the_command_shows_type_default_and_page(capsys):
    assert main(["keys", "lora.rank"]) == 0
    assert capsys.readouterr().out.startswith("lora.rank=8\n    a whole number (at least 1); docs/adapters.md\n")
    assert main(["keys"]) == 0
    assert capsys.readouterr().out.count("; docs/") == len(all_keys())
    assert main(["keys", "serach"]) == 2
    assert "search" in capsys.readouterr().err
