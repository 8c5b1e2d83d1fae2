"""Fits on prompts and on conversations, as they are used: generate, exports in PEFT with the chat template, cards."""

import json
import re

import pytest
import torch
from chats import CHATML, make_byte_tokenizer, make_chat_base
from peft import PeftModel, PeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from bora_sweep.cli import main
from bora_sweep.serve.export import export
from bora_sweep.serve.generate import Prompt, Sampling, generate

NAMES = {"ann": "Ann", "bob": "Bo"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Fits of a tiny Llama on prompts with completions, on conversations, and on rows with two columns to fill in."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = make_byte_tokenizer(CHATML)
    make_chat_base("llama", tokenizer, torch.float32).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [(task, f"{n}?", f"{name} {n}") for n in range(12) for task, name in NAMES.items()]
    shapes = {
        "prompt": [{"task": t, "prompt": q, "completion": a} for t, q, a in rows],
        "chat": [{"task": t, "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
                 for t, q, a in rows],
        "columns": [{"task": t, "question": q, "mood": "glad", "answer": a} for t, q, a in rows],
    }  # fmt: skip
    more = {"columns": ["data.prompt={mood}: {question} ", "data.template=> {text}", "data.text_column=answer"]}
    for shape, lines in shapes.items():
        (folder / f"{shape}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = [f"data.path={folder / shape}.jsonl", f"model.name={folder / 'base'}", "model.max_tokens=64",
                    "lora.rank=2", "train.max_epochs=2", "train.learning_rate=0.1", "train.device=cpu", "prior.tau=1",
                    f"output={folder / 'run' / shape}", *more.get(shape, [])]  # fmt: skip
        assert main(["fit", *settings]) == 0
    return folder


def texts(run, prompt, tasks, num=12):
    ((_, found),) = generate(run, [prompt], tasks, sampling=Sampling(num, 0.0))
    return dict(found)


@torch.no_grad()
def peft_generates(runs, folder, ids, ends, num=12):
    """What PEFT's model generates greedily, as text."""
    base = AutoModelForCausalLM.from_pretrained(runs / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    tokens = model.generate(
        input_ids=torch.tensor([ids]), max_new_tokens=num, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
    )[0, len(ids) :]
    return AutoTokenizer.from_pretrained(runs / "base").decode(tokens, skip_special_tokens=True)


def test_a_chats_exports_generate_in_peft_what_generate_does(runs, tmp_path):
    names = export(runs / "run/chat", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(runs / "base")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "3?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    ends = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    ours = texts(runs / "run/chat", Prompt(messages=tuple(messages)), list(NAMES))
    for name, folder in {"_global": "_global", **names}.items():
        assert ours[name] == peft_generates(runs, tmp_path / "out" / folder, ids, ends)
    assert len(set(ours.values())) > 1


def test_prompts_exports_generate_in_peft_what_generate_does(runs, tmp_path):
    names = export(runs / "run/prompt", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(runs / "base")
    ids = tokenizer("3?", add_special_tokens=False)["input_ids"]
    ours = texts(runs / "run/prompt", Prompt("3?"), list(NAMES))
    for name, folder in {"_global": "_global", **names}.items():
        assert ours[name] == peft_generates(runs, tmp_path / "out" / folder, ids, [tokenizer.eos_token_id])


@pytest.mark.parametrize("shape", ["prompt", "chat", "columns"])
def test_the_code_on_the_card_begins_as_generate_does(runs, shape, tmp_path, monkeypatch):
    export(runs / "run" / shape, tmp_path / "out", tasks=["ann"])
    card = (tmp_path / "out/ann/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    asked = []

    def record(_model, **given):
        asked.append(given["input_ids"])
        return torch.ones(1, 99).long()

    monkeypatch.setattr(PeftModelForCausalLM, "generate", record)
    exec(code, {})
    tokenizer = AutoTokenizer.from_pretrained(runs / "base")
    wanted = {"prompt": "…", "chat": "<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n",
              "columns": "…mood…: …question… > "}  # fmt: skip
    assert tokenizer.decode(asked[0][0]) == wanted[shape]
    says = {
        "prompt": "What follows `prompt` is scored: completion, &#60;/s&#62;",
        "columns": "“&#62; ”, completion, &#60;/s&#62;",
        "chat": "Every turn of the assistant is scored, with the token that ends it",
    }
    assert says[shape] in card


def test_generation_ends_with_the_turn(runs):
    """Where the tokens after the end of the turn would go on."""
    text = texts(runs / "run/chat", Prompt("3?"), ["ann"], num=40)
    assert all("<|im_end|>" not in reply for reply in text.values())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--task", "ann", "3?"], "user: 3?"),
        (["--task", "_global", "--chat", "3?"], "user: 3?"),
        (["--task", "ann", "--system", "Be kind.", "3?"], "system: Be kind.\nuser: 3?"),
    ],
)
def test_the_command_chats(runs, arguments, shown, capsys):
    assert main(["generate", str(runs / "run/chat"), "--max-new-tokens", "4", *arguments]) == 0
    out = capsys.readouterr().out
    assert "== _global ==" in out
    assert ("== ann ==" in out) == ("ann" in arguments)
    assert shown in out or shown == "user: 3?"


def test_a_file_of_conversations_is_replied_to(runs, tmp_path, capsys):
    talk = [{"role": "user", "content": "1?"}]
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk) + "\n" + json.dumps({"messages": talk}) + "\n")
    command = ["generate", str(runs / "run/chat"), "--task", "ann", "--max-new-tokens", "4", "--messages"]
    assert main([*command, str(tmp_path / "talks.jsonl")]) == 0
    assert capsys.readouterr().out.count("user: 1?") == 2
    (tmp_path / "bad.jsonl").write_text(json.dumps([*talk, {"role": "assistant", "content": "x"}]))
    assert main([*command, str(tmp_path / "bad.jsonl")]) == 2
    assert "ends with the assistant" in capsys.readouterr().err


def test_further_columns_of_a_prompt(runs, capsys):
    command = ["generate", str(runs / "run/columns"), "--task", "ann", "--max-new-tokens", "2"]
    assert main([*command, "--column", "mood=glad", "3?"]) == 0
    for arguments, says in (
        (["3?"], "give all but one by --column NAME=TEXT"),
        (["--column", "mood=glad", "--column", "colour=red", "3?"], "colour"),
        (["--column", "mood=glad", "--chat", "3?"], "drop one"),
        ([], "give one of them"),
    ):
        capsys.readouterr()
        assert main([*command, *arguments]) == 2
        assert says in capsys.readouterr().err
