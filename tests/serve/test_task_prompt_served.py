"""A trial of `task_prompt` is served with the tokens before a text that it was trained and scored with."""

import pytest
from tiny import make_frame, make_tokenizer

from bora_sweep.config import load_config, with_values
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.encode import Encoder
from bora_sweep.data.task_prompt import with_task_names
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.errors import InputError
from bora_sweep.model.base import load_base
from bora_sweep.serve.export import begin_export, write_card
from bora_sweep.serve.generate import Prompt
from bora_sweep.serve.load import load_trial
from bora_sweep.trials.trial import Trial, run_trial

PROMPT = "w7 {task} w8 "


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    """Trial 000 with the task's name before each text, and 001 without; the names are words of the tokenizer."""
    folder = tmp_path_factory.mktemp("named")
    make_frame({"w1": 20, "w2": 14}).to_parquet(folder / "speeches.parquet")
    config = load_config([
        f"data.path={folder / 'speeches.parquet'}", f"model.name={model_folder}", "model.max_tokens=16", "lora.rank=2",
        "train.max_epochs=1", "train.device=cpu", "prior.tau=inf",
    ])  # fmt: skip
    config = with_values(config, search={"task_prompt": PROMPT})
    corpus = tokenize_for(config, load_corpus(config.data), make_tokenizer())
    for trial_id, method in (("000", "task_prompt"), ("001", "map")):
        trial = Trial(trial_id, with_values(config, method=method))
        run_trial(trial, corpus, lambda: load_base(config.model, config.data), folder)
    return folder, corpus


def test_a_prompt_begins_as_the_fits_own_texts_do(run):
    folder, corpus = run
    loaded, encoder = load_trial(folder, "000"), Encoder(make_tokenizer())
    named = with_task_names(loaded.config, corpus, encoder)
    seen = set()
    for n, task in enumerate(corpus.task_C.tolist()):
        own, longer = (c.tokens[c.offsets[n] : c.offsets[n + 1]].tolist() for c in (corpus, named))
        text = make_tokenizer().decode(own[1:-1])
        assert Prompt(text).tokens(encoder, loaded, corpus.tasks[task]) == longer[:-1]
        assert Prompt(text).tokens(encoder, load_trial(folder, "001"), corpus.tasks[task]) == own[:-1]
        seen.add(task)
    assert len(seen) == corpus.num_tasks > 1


def test_without_a_task_a_prompt_is_refused(run):
    folder, *_ = run
    with pytest.raises(InputError, match=r"the run's prompts name the task; also give --task NAME"):
        Prompt("w1").tokens(Encoder(make_tokenizer()), load_trial(folder, "000"), None)


def test_the_card_says_what_to_put_before_a_text(run, tmp_path):
    folder, corpus = run
    start = Prompt("").tokens(Encoder(make_tokenizer()), load_trial(folder, "000"), corpus.tasks[0])
    cards = []
    for trial_id in ("000", "001"):
        begun = begin_export(folder, tmp_path / trial_id, trial_id, None, ())
        (tmp_path / trial_id).mkdir()
        write_card(begun, tmp_path / trial_id, begun.loaded.results, task=None)
        cards.append((tmp_path / trial_id / "README.md").read_text())
    assert f"start = {start}  # what a document begins with, here one of {corpus.tasks[0]!r}" in cards[0]
    assert "write it before each text, which is not scored" in cards[0]
    assert "start = [2]  # what a document begins with\n" in cards[1]
