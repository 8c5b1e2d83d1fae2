"""Generated text equals a loop over the model's logits, and does not depend on the other tasks."""

import pytest
import torch
from tiny import make_base, make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from bora_sweep.cli import main
from bora_sweep.data.decode import continuation
from bora_sweep.data.encode import Encoder
from bora_sweep.errors import visible
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_tokenizer
from bora_sweep.serve.generate import Prompt, Sampling, generate
from bora_sweep.serve.load import load_trial

PROMPT = "w1 w2"


def texts_of(run, tasks, sampling):
    """The texts that follow PROMPT, by name."""
    ((_, texts),) = generate(run, [Prompt(PROMPT)], tasks, sampling=sampling)
    return texts


VARIANTS = {"opt": "dora", "gpt2": "lora", "llama": "mora"}
families = pytest.mark.parametrize("family", VARIANTS)


@pytest.fixture(scope="module")
def runs(corpus_file, tmp_path_factory):
    """A fit of each family."""
    folder = tmp_path_factory.mktemp("runs")
    for family, variant in VARIANTS.items():
        base = make_base(family, dtype=torch.float32)
        base.generation_config.update(do_sample=True, repetition_penalty=5.0, top_k=1)  # settings for chats
        base.save_pretrained(folder / "base" / family)
        make_tokenizer().save_pretrained(folder / "base" / family)
        fit = [f"data.path={corpus_file}", f"model.name={folder / 'base' / family}", "model.max_tokens=16",
               f"lora.variant={variant}", "lora.rank=2", "train.max_epochs=1", "train.device=cpu",
               "train.learning_rate=0.1", "prior.tau=1", f"output={folder / family}"]  # fmt: skip
        assert main(["fit", *fit]) == 0
    return folder


@torch.no_grad()
def most_likely(model, theta_P, num: int) -> str:
    """The most likely text from `</s>` to `</s>`, by a forward pass of the whole sequence for each token."""
    tokenizer, tokens = make_tokenizer(), [2, 4, 5]
    while len(tokens) < 3 + num and tokens[-1] != 2:
        tokens_BT = torch.tensor([tokens])
        logits_BTV = model(tokens_BT, theta_P[None]) if theta_P is not None else model.base(input_ids=tokens_BT).logits
        tokens.append(int(logits_BTV[0, -1].argmax()))
    return str(tokenizer.decode(tokens[3:], skip_special_tokens=True))


@families
def test_at_temperature_0_each_token_is_the_most_likely(family, runs):
    texts = texts_of(runs / family, ["bob", "ann"], Sampling(8, 0.0))
    assert [name for name, _ in texts] == ["base model", "_global", "bob", "ann"]
    loaded = load_trial(runs / family)
    model = AdaptedModel(make_base(family, dtype=torch.float32), loaded.layout)
    adapters = [None, loaded.mean_P, loaded.theta_of["bob"], loaded.theta_of["ann"]]
    assert [text.strip() for _, text in texts] == [most_likely(model, theta_P, 8) for theta_P in adapters]
    assert len({text for _, text in texts}) > 1


@families
def test_a_text_depends_on_the_seed_but_not_on_the_others(family, runs):
    alone, beside = (dict(texts_of(runs / family, tasks, Sampling(8))) for tasks in (["ann"], ["bob", "ann"]))
    assert alone["ann"] == beside["ann"]
    assert alone["ann"] != dict(texts_of(runs / family, ["ann"], Sampling(8, seed=1)))["ann"]


def test_special_tokens_in_a_prompt_are_plain_text(runs):
    loaded = load_trial(runs / "opt")
    encoder = Encoder(load_tokenizer(loaded.config.model, loaded.config.data))
    assert Prompt("w1 w2").tokens(encoder, loaded, "ann") == [2, 4, 5]
    start, *rest = Prompt("w1 </s><pad> w2").tokens(encoder, loaded, "ann")
    assert (start, rest[0], rest[-1]) == (2, 4, 5)
    assert not {1, 2} & set(rest)


def test_if_the_decoded_text_does_not_start_with_the_prompt_the_new_tokens_are_decoded_alone():
    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, "<unk>"))
    made.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    assert continuation(tokenizer, [2], [1, 2]) == "c"
    assert continuation(tokenizer, [1], [2, 2]) == "bb"


def test_the_command_prints_one_block_per_text(runs, capsys):
    arguments = ["--task", "ann", "--max-new-tokens", "5", "--temperature", "0.5", "--seed", "3", PROMPT]
    assert main(["generate", str(runs / "opt"), *arguments]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    texts = texts_of(runs / "opt", ["ann"], Sampling(5, 0.5, 3))
    assert blocks == [PROMPT, *(f"== {name} ==\n{text}" for name, text in texts[:-1]), f"== ann ==\n{texts[-1][1]}\n"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "eve"], "--task eve"),
        (["--task", "ann", "--trial", "7"], "--trial 7"),
        (["--task", "ann", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--task", "ann", "--max-new-tokens", "62"], "64 positions"),
        (["--task", "ann", "--temperature", "nan"], "--temperature nan"),
        (["--task", "ann", "--seed", "-1"], "--seed -1"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments, says, runs, capsys):
    assert main(["generate", str(runs / "opt"), *arguments, PROMPT]) == 2
    assert says in capsys.readouterr().err


def test_control_characters_are_escaped():
    assert visible("a\x1b[2Jb\n\tø") == "a\\x1b[2Jb\n\tø"
