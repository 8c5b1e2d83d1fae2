"""Tokens and masks beside those of TRL's `SFTTrainer`, where TRL is installed (`pip install --no-deps trl`)."""

import json

import pytest
import torch
from chats import CHATML, make_byte_tokenizer, make_chat_base
from datasets import Dataset

from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize_for

trl = pytest.importorskip("trl", reason="TRL is not installed")

PLAIN = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
MARKED = CHATML.replace(
    PLAIN,
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    + PLAIN
    + "{% endif %}",
)
TALKS = [
    [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"},
     {"role": "user", "content": "more"}, {"role": "assistant", "content": f"b {n}"}] for n in range(12)
]  # fmt: skip


def ours(rows, template, folder):
    """Tokens and mask of each row."""
    lines = [json.dumps({"task": f"t{n % 2}", "id": str(n), **row}) for n, row in enumerate(rows)]
    (folder / "x.jsonl").write_text("\n".join(lines))
    config = load_config([{"data": {"path": str(folder / "x.jsonl"), "id_column": "id"}, "model": {"max_tokens": 512}}])
    made = tokenize_for(config, load_corpus(config.data), make_byte_tokenizer(template))
    found = {}
    for n, name in enumerate(made.documents["document_id"]):
        where = slice(made.offsets[n], made.offsets[n + 1])
        found[int(name)] = made.tokens[where].tolist(), made.scored[where].tolist()
    return [found[n] for n in range(len(rows))]


def theirs(rows, template, folder, **options):
    """The same by `SFTTrainer`."""
    tokenizer = make_byte_tokenizer(template)
    config = trl.SFTConfig(output_dir=str(folder), max_length=512, report_to=[], use_cpu=True, **options)
    base = make_chat_base("llama", tokenizer, torch.float32)
    trainer = trl.SFTTrainer(model=base, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in trainer.train_dataset]


def test_prompts_and_completions_are_theirs(tmp_path):
    rows = [{"prompt": f"q {n}:", "completion": f" a {n}"} for n in range(12)]
    assert ours(rows, CHATML, tmp_path) == theirs(rows, CHATML, tmp_path)


@pytest.mark.parametrize("template", [MARKED, CHATML])
def test_conversations_are_theirs_up_to_the_last_scored_token(template, tmp_path):
    """TRL needs the template's marks; growing prefixes find the same."""
    rows = [{"messages": talk} for talk in TALKS]
    for (tokens, scored), (all_tokens, labels) in zip(
        ours(rows, template, tmp_path), theirs(rows, MARKED, tmp_path, assistant_only_loss=True), strict=True
    ):
        assert all_tokens[: len(tokens)] == tokens
        assert labels == scored + [False] * (len(labels) - len(scored))


def test_of_a_conversations_completion_they_score_the_white_space_after_it_too(tmp_path):
    rows = [{"prompt": talk[:3], "completion": talk[3:]} for talk in TALKS]
    for (tokens, scored), (all_tokens, labels) in zip(
        ours(rows, CHATML, tmp_path), theirs(rows, CHATML, tmp_path), strict=True
    ):
        assert all_tokens[: len(tokens)] == tokens
        assert labels[: len(scored)] == scored
        assert make_byte_tokenizer().decode(all_tokens[len(tokens) :]) == "\n"
