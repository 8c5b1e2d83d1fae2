"""What an error message may show: one line, and no secrets."""

import pytest

from bora_sweep.errors import InputError, one_line, plural, redact, require


def test_values_of_secrets_in_the_environment_are_not_said(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SOME_TOKEN", "true")
    said = redact("401 for hf_abcdefgh at https://me:pass@host/x?token=zzz&a=1; 0123456789abcdef; true")
    assert said == "401 for *** at https://***@host/x?token=***&a=1; ***; true"


def test_an_error_is_one_short_line():
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert one_line(InputError("data.path=x: no such file")) == "data.path=x: no such file"
    assert one_line(KeyError()) == "KeyError: no message"
    assert one_line(ValueError("x" * 50), limit=20) == "ValueError: xxxxxxx…"


def test_what_is_required_is_refused_by_its_message():
    require(True, "not raised")
    with pytest.raises(InputError, match="need 1"):
        require(False, "need 1")


def test_a_number_agrees_with_its_noun():
    assert [plural(number, "task") for number in (0, 1, 1200)] == ["0 tasks", "1 task", "1,200 tasks"]
