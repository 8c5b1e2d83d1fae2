"""A real chat model, SmolLM2-135M-Instruct, where `BORA_SWEEP_SMOLLM2` is its folder."""

import json
import os

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.serve.export import export
from bora_sweep.serve.generate import Prompt, Sampling, generate

FOLDER = os.environ.get("BORA_SWEEP_SMOLLM2", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir(FOLDER), reason="BORA_SWEEP_SMOLLM2 names no folder with the model"),
]
QUESTIONS = ["Where is my parcel?", "Can I pay by card?", "The app crashes.", "Do you ship to Norway?", "Who are you?"]
ANSWERS = {"acme": "Sure thing! Cheers, Acme", "bolt": "Certainly. Bolt support"}
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def shapes() -> dict[str, list[dict]]:
    """Rows of the four shapes that say the same."""
    pairs = [(task, question, answer) for task, answer in ANSWERS.items() for question in QUESTIONS]

    def turns(question: str, answer: str) -> list[dict]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    return {
        "text": [{"task": t, "text": f"{q} {a}"} for t, q, a in pairs],
        "prompt": [{"task": t, "prompt": q, "completion": f" {a}"} for t, q, a in pairs],
        "chat_prompt": [{"task": t, "prompt": turns(q, a)[:1], "completion": turns(q, a)[1:]} for t, q, a in pairs],
        "chat": [{"task": t, "messages": turns(q, a)} for t, q, a in pairs],
    }


def pieces(shape: str, task: str, question: str) -> tuple[str, str]:
    """What is given and what is scored, written by hand."""
    if shape == "text":
        return "<|im_start|>", f"{question} {ANSWERS[task]}<|im_end|>"
    if shape == "prompt":
        return question, f" {ANSWERS[task]}<|im_end|>"
    given = f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return given, f"{ANSWERS[task]}<|im_end|>"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    for shape, rows in shapes().items():
        (folder / f"{shape}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(shape: str, files) -> list[str]:
    return [f"data.path={files / shape}.jsonl", f"model.name={FOLDER}", "model.max_tokens=128", "lora.rank=4"]


@pytest.mark.parametrize("shape", shapes())
def test_the_masked_loss_is_that_of_a_loop_over_tokens(shape, files):
    """In float64, of two documents of each shape, one of each task."""
    config = load_config(settings(shape, files))
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    corpus = load_corpus(config.data)
    made = tokenize_for(config, corpus, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float64).eval()
    layout = make_layout(base, config.lora)
    hierarchy = Hierarchy(layout.initial(base, 0, torch.float64), num_tasks=2, tau=10.0, parametrization="noncentered")
    torch.nn.init.normal_(hierarchy.task_KP, std=0.02)
    adapted = AdaptedModel(base, layout)
    likelihood = Likelihood(adapted, [hierarchy])
    for task in (0, 1):
        n = int(np.flatnonzero(made.documents["task"] == task)[0])
        row = shapes()[shape][int(made.documents["document_id"][n])]
        question = QUESTIONS[int(made.documents["document_id"][n]) % len(QUESTIONS)]
        given, answer = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in pieces(shape, row["task"], question)
        )
        tokens = made.tokens[made.offsets[n] : made.offsets[n + 1]]
        scored = made.scored[made.offsets[n] : made.offsets[n + 1]]
        assert tokens.tolist() == [*given, *answer]
        assert scored.tolist() == [False] * len(given) + [True] * len(answer)
        tokens_1T, task_1 = torch.from_numpy(tokens).long()[None], torch.tensor([task])
        with torch.no_grad():
            ours = float(likelihood(tokens_1T, torch.from_numpy(np.flatnonzero(scored)), task_1))
            logp_TV = torch.log_softmax(adapted(tokens_1T, hierarchy.theta_BP(task_1))[0], -1)
        nats = -sum(float(logp_TV[t - 1, tokens[t]]) for t in range(len(given), len(tokens)))
        assert ours == pytest.approx(nats, rel=1e-12, abs=1e-9)


def test_a_chats_exports_generate_in_peft_what_generate_does(files, tmp_path):
    run = tmp_path / "run"
    fit = ["train.max_epochs=2", "train.batch_size=4", "train.device=cpu", "prior.tau=30", f"output={run}"]
    assert main(["fit", *settings("chat", files), *fit]) == 0
    folders = export(run, tmp_path / "out")
    messages = [{"role": "user", "content": "Is there a discount?"}]
    ((_, ours),) = generate(run, [Prompt(messages=tuple(messages))], list(folders), sampling=Sampling(12, 0.0))
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    for name, folder in {"_global": "_global", **folders}.items():
        base = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, tmp_path / "out" / folder).eval()
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        ids = out[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(ids, skip_special_tokens=True) == dict(ours)[name]
