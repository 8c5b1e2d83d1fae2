"""Templates of text: their placeholders, and braces that are braces."""

import json

import pytest

from bora_sweep.config import load_config
from bora_sweep.data.encode import fill
from bora_sweep.errors import InputError


@pytest.mark.parametrize(
    ("key", "words", "says"),
    [
        ("prompt", "{text}", r"\{text\} is what is scored, and would be given"),
        ("prompt", "Q: {question} A: {completion}", r"\{completion\} is what is scored, and would be given"),
        ("prompt", "{ task }", "no placeholder"),
        ("prompt", "{task!r}", "no placeholder"),
        ("prompt", "{task:>9}", "no placeholder"),
        ("prompt", "{}", "no placeholder"),
        ("prompt", '{"a": 1}', "{{ or }} is a brace itself"),
        ("prompt", "{task", "{{ or }} is a brace itself"),
        ("prompt", "task}", "{{ or }} is a brace itself"),
        ("prompt", "{{task}}", "with one brace on each side"),
        ("template", "{{text}}", "with one brace on each side"),
        ("template", "{question}", r"need \{text\} in it once"),
        ("template", "{text} {completion}", r"need \{text\} in it once"),
        ("template", "words", r"need \{text\} in it once"),
        ("template", "", r"need \{text\} in it once"),
        ("template", "{text} {text}", r"need \{text\} in it once"),
    ],
)
def test_a_template_with_other_placeholders_is_refused(key, words, says, tmp_path):
    (tmp_path / "a.yaml").write_text(json.dumps({"data": {key: words}}))
    for way in (f"data.{key}={words}", {"data": {key: words}}, tmp_path / "a.yaml"):
        with pytest.raises(InputError, match=says) as caught:
            load_config([way])
        assert f"data.{key}=" in str(caught.value)


def test_braces_are_doubled_and_those_of_a_text_or_a_name_mean_nothing():
    data = load_config(['data.prompt={{"of": "{task}"}}', "data.template=<{task}> {{}} {text}!"]).data
    assert fill(data.prompt or "", {"task": "{text}"}) == '{"of": "{text}"}'
    assert fill(data.template, {"task": "{task}{", "text": "}{x}{text}"}) == "<{task}{> {} }{x}{text}!"
