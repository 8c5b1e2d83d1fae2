"""Metrics beside perplexity: accuracy and generated text are those of a plain loop over documents, in float64."""

import json
import math
import string
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from answers import END, make_answers
from families import make_family
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tiny import make_base, make_corpus, make_tokenizer

from bora_sweep.config import load_config, read_config
from bora_sweep.data.decode import continuation
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.row_cache import RowCache
from bora_sweep.process import Interrupted
from bora_sweep.runs.results import objective, read_results
from bora_sweep.train.fit import fit, fit_pack
from bora_sweep.train.metrics import functions, scorer
from bora_sweep.train.metrics.functions import check_metrics, exact_match, rouge_l, scores_of
from bora_sweep.train.state import FitSpec
from bora_sweep.train.trainer import Trainer
from bora_sweep.trials import outcome
from bora_sweep.trials.path import run_path
from bora_sweep.trials.trial import Trial, run_pack, run_trial

SETTINGS = [
    "lora.rank=2", "train.device=cpu", "train.batch_size=3", "train.max_epochs=3", "train.learning_rate=0.05",
    "train.patience=2", "metric.max_new_tokens=6", "prior.tau=10", "lora.target_modules=null",
]  # fmt: skip
ALL = "metrics=[accuracy,exact_match,rouge_l]"


def fit_of(*settings: str, corpus=None, base=None, **arguments):
    config = load_config([*SETTINGS, ALL, *settings])
    corpus = make_answers() if corpus is None else corpus
    base = make_base("llama") if base is None else base
    return fit(config, corpus, base, tokenizer=make_tokenizer(), **arguments), config, corpus, base


def plain_predictions(done, config, corpus, base) -> pd.DataFrame:
    """The predictions by a loop over documents, each answer and each token by a pass of one row."""
    references, tokenizer, rows = corpus.references, make_tokenizer(), []
    adapted = AdaptedModel(base, make_layout(base, config.lora))

    def log_probs(tokens, theta_P):
        with torch.no_grad(), adapted.with_adapter(theta_P):
            return base(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)

    for n, document in enumerate(references.document_N):
        theta_P = done.theta_KP[corpus.documents["task"].iloc[document]]
        prompt = corpus.tokens[corpus.offsets[document] :][: references.given_N[n]].tolist()
        scores = []
        for answer in references.choice_tokens_N[n]:
            log_TV = log_probs([*prompt, *answer], theta_P)
            nats = sum(log_TV[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
            scores.append(nats / len(answer) if config.metric.normalize else nats)
        chosen = references.choices_N[n][int(np.argmax(scores))]
        tokens = list(prompt)
        while len(tokens) < len(prompt) + config.metric.max_new_tokens and tokens[len(prompt) :][-1:] != [END]:
            tokens.append(int(log_probs(tokens, theta_P)[-1].argmax()))
        text = str(tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)).strip()
        rows.append({"document": document, "accuracy": chosen, "exact_match": text, "rouge_l": text})
    adapted.remove_hooks()
    return pd.DataFrame(rows)


def assert_as_a_plain_loop(done, config, corpus, base) -> None:
    plain, references = plain_predictions(done, config, corpus, base), corpus.references
    for metric in config.metrics:
        found = done.predictions[done.predictions["metric"] == metric]
        assert found["document"].tolist() == references.document_N.tolist()
        assert found["reference"].tolist() == list(references.text_N)
        assert [text.strip() for text in found["prediction"]] == plain[metric].tolist()
        scores = {"accuracy": exact_match, "exact_match": exact_match, "rouge_l": rouge_l}[metric]
        expected = [scores(a, b) for a, b in zip(references.text_N, plain[metric], strict=True)]
        assert found["score"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings",
    [
        ["prior.tau=0"],
        ["prior.tau=10", "metric.normalize=true"],
        ["prior.tau=inf"],
        ["method=zero_shot"],
        ["method=vi"],
        ["prior.tau=10", "lora.variant=dora", "train.micro_batch_size=1"],
        ["prior.tau=10", "train.padding=scored", "train.likelihood=documents"],
    ],
    ids=" ".join,
)
def test_the_metrics_of_a_fit_are_those_of_a_plain_loop_under_its_adapters(settings):
    done, config, corpus, base = fit_of(*settings)
    assert_as_a_plain_loop(done, config, corpus, base)
    assert done.predictions.groupby("metric")["prediction"].nunique().min() > 1
    assert all(not module._forward_hooks for module in base.modules())


def test_normalised_and_plain_likelihoods_choose_unlike_answers():
    """Else the test above could not tell them apart."""
    chosen = [
        fit_of(f"metric.normalize={normalize}", "metrics=[accuracy]")[0].predictions["prediction"].tolist()
        for normalize in ("true", "false")
    ]
    assert chosen[0] != chosen[1]


def test_the_metrics_are_those_of_the_best_epoch():
    """After it the adapters have moved on, to other answers."""
    settings = ["train.learning_rate=0.2", "train.max_epochs=9", "train.patience=5", "prior.tau=0.1"]
    done, config, corpus, base = fit_of(*settings)
    assert done.state.best_epoch < done.state.epoch
    assert_as_a_plain_loop(done, config, corpus, base)


def test_fits_of_a_pack_have_the_predictions_that_each_has_alone():
    corpus, base = make_answers(), make_base("llama")
    configs = [load_config([*SETTINGS, ALL, f"prior.tau={tau}"]) for tau in (0.5, 1e4, math.inf)]
    packed = fit_pack([FitSpec(config) for config in configs], corpus, base, tokenizer=make_tokenizer())
    for place, done in packed:
        alone = fit(configs[place], corpus, base, tokenizer=make_tokenizer())
        pd.testing.assert_frame_equal(done.predictions, alone.predictions)


LONG = ["train.max_epochs=8", "train.patience=8", "train.learning_rate=0.03"]


@pytest.mark.parametrize("tau", [0, 10, math.inf])
@pytest.mark.parametrize("metric", ["accuracy", "rouge_l"])
def test_early_stopping_by_a_metric_keeps_the_epoch_of_its_highest_mean_on_validation(metric, tau, monkeypatch):
    """Of equal means that of the lower perplexity; at tau = 0 for each task."""
    corpus, seen = make_answers({"a": 20, "b": 16, "c": 4}), []
    task_N = corpus.documents["task"].to_numpy()[corpus.split("validation")]
    update_best = Trainer.update_best

    def watched(trainer, nll_N, seconds, score_F=None):
        nats_F = np.bincount(task_N, nll_N) if tau == 0 else [nll_N.sum()]
        seen.append((np.zeros(len(nats_F)) if score_F is None else score_F, nats_F))
        update_best(trainer, nll_N, seconds, score_F)

    def best_epochs() -> list[int]:
        fits = range(len(seen[0][0]))
        return [max(range(len(seen)), key=lambda e: (seen[e][0][f], -seen[e][1][f])) for f in fits]

    monkeypatch.setattr(Trainer, "update_best", watched)
    done, config, corpus, base = fit_of(f"prior.tau={tau}", f"metric.early_stopping={metric}", *LONG, corpus=corpus)
    assert len(seen) == 1 + done.state.epoch
    assert done.state.best_epochs == best_epochs()
    assert_as_a_plain_loop(done, config, corpus, base)
    is_scored = np.isin(done.predictions["document"], corpus.split("validation"))
    found: Any = done.predictions[is_scored & (done.predictions["metric"] == metric)]
    if tau == 0:
        means = found.groupby(corpus.documents["task"].to_numpy()[found["document"]])["score"].mean()
        assert [done.state.best_scores[task] for task in means.index] == pytest.approx(means.tolist())
    else:
        assert done.state.best_scores == pytest.approx([found["score"].mean()])
    seen.clear()
    by_perplexity, *_ = fit_of(f"prior.tau={tau}", *LONG, corpus=corpus)
    assert by_perplexity.state.best_epochs == best_epochs()
    assert by_perplexity.state.best_epochs != done.state.best_epochs


def test_a_fit_that_a_metric_stops_is_resumed_with_the_same_epoch(tmp_path):
    settings = ("metric.early_stopping=rouge_l", *LONG)
    whole, *_ = fit_of(*settings)

    def die(state) -> None:
        if state.epoch == whole.state.best_epoch + 1:
            raise KeyError

    with pytest.raises(KeyError):
        fit_of(*settings, folder=tmp_path, on_epoch=die)
    resumed, *_ = fit_of(*settings, folder=tmp_path)
    assert resumed.state.best_epochs == whole.state.best_epochs
    assert resumed.state.best_scores == whole.state.best_scores
    pd.testing.assert_frame_equal(resumed.predictions, whole.predictions)


def test_equally_likely_answers_give_the_first():
    corpus = make_answers()
    same = (((7, END),) * 3,) * len(corpus.references.text_N)
    choices = tuple((f"other {n}", text, "third") for n, text in enumerate(corpus.references.text_N))
    corpus = replace(corpus, references=replace(corpus.references, choices_N=choices, choice_tokens_N=same))
    done, *_ = fit_of("metrics=[accuracy]", corpus=corpus)
    assert done.predictions["prediction"].tolist() == [first for first, *_ in choices]
    assert done.predictions["score"].sum() == 0


def test_where_memory_runs_out_passes_get_smaller_and_the_predictions_stay(monkeypatch):
    expected = fit_of()[0].predictions
    extend, sizes = RowCache.extend, []

    def extend_few(self, tokens_BT, mask_BT, theta_BP):
        sizes.append(len(tokens_BT))
        if len(tokens_BT) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return extend(self, tokens_BT, mask_BT, theta_BP)

    monkeypatch.setattr(scorer, "cache_problem", lambda *_: None)
    monkeypatch.setattr(RowCache, "extend", extend_few)
    done, *_ = fit_of()
    assert max(sizes) > 2
    pd.testing.assert_frame_equal(done.predictions, expected)
    assert any("out of memory" in note for note in done.state.notes)


@pytest.mark.parametrize("family", ["roberta", "mamba", "phi3"])
def test_a_model_that_cannot_go_on_over_a_cache_is_scored_whole_and_says_so(family):
    """phi3 rotates by other angles in rows of more than 16 tokens: by a row's own length, not that of its batch."""
    base, corpus = make_family(family), make_answers({"a": 12, "b": 8})
    done, config, corpus, base = fit_of("metric.max_new_tokens=14", "train.max_epochs=1", corpus=corpus, base=base)
    assert_as_a_plain_loop(done, config, corpus, base)
    assert any("metrics took longer" in note for note in done.state.notes)
    assert not any("metrics took longer" in note for note in fit_of()[0].state.notes)


def test_no_answer_is_padded_beyond_a_length_at_which_the_model_changes(monkeypatch):
    """phi3 again: answers on both sides of its 16 tokens, each with the nats of its row alone."""
    base, corpus, found = make_family("phi3"), make_answers(), {}
    references, longer = corpus.references, tuple(range(5, 16))
    corpus = replace(
        corpus,
        references=replace(
            references,
            choices_N=tuple((*choices, "long") for choices in references.choices_N),
            choice_tokens_N=tuple((*tokens, longer) for tokens in references.choice_tokens_N),
        ),
    )
    whole = scorer.Scorer._whole_nats
    monkeypatch.setattr(scorer.Scorer, "_whole_nats", lambda *arguments: found.update(whole(*arguments)) or found)
    done, config, _, _ = fit_of(
        "metrics=[accuracy]", "train.max_epochs=1", "train.batch_size=20", corpus=corpus, base=base
    )
    adapted = AdaptedModel(base, make_layout(base, config.lora))
    lengths = set()
    for n, document in enumerate(corpus.references.document_N):
        prompt = corpus.tokens[corpus.offsets[document] :][: corpus.references.given_N[n]].tolist()
        for place, answer in enumerate(corpus.references.choice_tokens_N[n]):
            with torch.no_grad(), adapted.with_adapter(done.theta_KP[corpus.documents["task"].iloc[document]]):
                logits_TV = base(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
            log_TV = logits_TV.double().log_softmax(-1)
            nats = -sum(log_TV[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
            assert found[n][place] == pytest.approx(nats, rel=1e-5)
            lengths.add(len(prompt) + len(answer))
    assert min(lengths) < 16 < max(lengths)


def test_a_prompt_near_the_models_end_leaves_room_for_fewer_tokens_and_the_notes_say_so():
    base, corpus = make_base("gpt2"), make_answers()
    short = base.config.n_positions - int(corpus.references.given_N.max())
    done, config, corpus, base = fit_of(f"metric.max_new_tokens={short + 3}", corpus=corpus, base=base)
    assert_as_a_plain_loop_but_for_the_end(done, config, corpus, base)
    count = int((corpus.references.given_N > base.config.n_positions - short - 3).sum())
    notes = "; ".join(done.state.notes)
    assert f"{count} prompt" in notes
    assert f"fewer new tokens than metric.max_new_tokens={short + 3}" in notes
    assert "did not end within" in notes


def assert_as_a_plain_loop_but_for_the_end(done, config, corpus, base) -> None:
    adapted = AdaptedModel(base, make_layout(base, config.lora))
    texts = done.predictions.query("metric == 'exact_match'")["prediction"]
    for n, (document, text) in enumerate(zip(corpus.references.document_N, texts, strict=True)):
        prompt = corpus.tokens[corpus.offsets[document] :][: corpus.references.given_N[n]].tolist()
        room = min(config.metric.max_new_tokens, base.config.n_positions - len(prompt))
        theta_P = done.theta_KP[corpus.documents["task"].iloc[document]]
        with adapted.with_adapter(theta_P), torch.no_grad():
            tokens = base.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                max_new_tokens=room, eos_token_id=END, pad_token_id=END,
            )[0, len(prompt) :].tolist()  # fmt: skip
        assert text == continuation(make_tokenizer(), prompt, [token for token in tokens if token != END])
    adapted.remove_hooks()


def test_an_answer_for_which_the_model_has_no_positions_is_refused_before_the_fit():
    corpus = make_answers()
    long = ((*range(3, 3 + 40), *range(3, 3 + 30), END),)
    longer = tuple((*tokens, *long) for tokens in corpus.references.choice_tokens_N)
    choices = tuple((*texts, "long") for texts in corpus.references.choices_N)
    corpus = replace(corpus, references=replace(corpus.references, choices_N=choices, choice_tokens_N=longer))
    steps = []
    with pytest.raises(InputError, match=r"metrics=\['accuracy'\]: .*up to \d+ tokens, but .*64 positions"):
        fit_of("metrics=[accuracy]", corpus=corpus, base=make_base("gpt2"), on_step=steps.append)
    assert not steps


@pytest.mark.parametrize("references", [None, "empty"])
def test_metrics_without_answers_are_refused_before_the_fit(references):
    corpus = make_answers()
    none = np.zeros(0, dtype=np.int64)
    empty = replace(corpus.references, document_N=none, given_N=none, text_N=(), choices_N=(), choice_tokens_N=())
    corpus = replace(corpus, references=empty if references else None)
    with pytest.raises(InputError, match=r"metrics=.*no document .* has an answer"):
        fit_of(corpus=corpus)


def test_a_search_for_a_metric_needs_answers_in_validation():
    corpus = make_answers()
    kept = np.isin(corpus.references.document_N, corpus.split("test"))
    fields = {
        name: tuple(value for value, keep in zip(getattr(corpus.references, name), kept, strict=True) if keep)
        for name in ("text_N", "choices_N", "choice_tokens_N")
    }
    arrays = {name: getattr(corpus.references, name)[kept] for name in ("document_N", "given_N")}
    corpus = replace(corpus, references=replace(corpus.references, **fields, **arrays))
    with pytest.raises(InputError, match=r"search\.objective=accuracy"):
        fit_of("search.objective=accuracy", corpus=corpus)
    assert set(fit_of(corpus=corpus)[0].predictions["document"]) <= set(corpus.split("test"))


def test_ctrl_c_ends_the_scoring_between_two_batches():
    calls, batches = [], []
    fit_of(check_stop=lambda: calls.append(0))
    fit_of("metrics=[]", check_stop=lambda: batches.append(0))
    assert len(calls) > len(batches) + 4

    count = iter(range(10_000))

    def stop() -> None:
        if next(count) == len(batches) + 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit_of(check_stop=stop)


def test_exact_match_is_but_for_white_space_around():
    assert [exact_match("a b", text) for text in ("a b", " a b\n", "a  b", "A b", "")] == [1, 1, 0, 0, 0]


@given(*[st.text(alphabet=string.ascii_letters + string.digits + " .,_-'\n", max_size=40)] * 2)
def test_rouge_of_ascii_text_is_that_of_the_packages_own_tokenizer(reference, prediction):
    theirs = RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(reference, prediction) == theirs


def test_rouge_keeps_letters_of_all_scripts():
    assert rouge_l("Så kjøpte vi øl", "så kjøpte han øl") == pytest.approx(3 / 4)
    assert rouge_l("мама мыла раму", "мама мыла окно") == pytest.approx(2 / 3)
    assert rouge_l("हिन्दी भाषा", "हिन्दी पाठ") == pytest.approx(1 / 2)  # vowel signs are marks, not letters
    assert rouge_l("我爱北京", "我在北京") == pytest.approx(3 / 4)  # no spaces: each character is a word
    assert rouge_l("cafe\u0301", "café") == 1


def own_metric(folder, code: str, monkeypatch, name: str) -> str:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return f"{name}:score"


def test_a_function_of_the_users_own_is_found_in_the_working_directory(tmp_path, monkeypatch):
    code = "def score(reference, prediction):\n    return len(prediction.split()) + 100 * ('w' in reference)\n"
    metric = own_metric(tmp_path, code, monkeypatch, "own_a")
    with pytest.raises(InputError, match="own_a"):
        functions.score_function(metric)
    check_metrics(load_config([f"metrics=[{metric}]"]))
    done, *_ = fit_of(f"metrics=[{metric},exact_match]")
    found = done.predictions
    texts = found.query("metric == 'exact_match'")["prediction"].tolist()
    assert found.query("metric == @metric")["score"].tolist() == [100.0 + len(text.split()) for text in texts]
    assert found.query("metric == @metric")["prediction"].tolist() == texts


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, "No module named"),
        ("score = 1", "need a function"),
        ("def other(): pass", "no attribute 'score'"),
        ("def score(text): return 1.0", "need a function score"),
        ("raise SystemExit(3)", "cannot be imported"),
        ("import no_such_package", "no_such_package"),
    ],
    ids=["no module", "no function", "another name", "one argument", "a script", "a package"],
)
def test_a_function_that_cannot_be_imported_is_refused_with_its_name_and_a_mend(code, says, tmp_path, monkeypatch):
    name = f"own_b{abs(zlib_of(str(code)))}"
    metric = f"{name}:score" if code is None else own_metric(tmp_path, code, monkeypatch, name)
    with pytest.raises(InputError, match=says) as caught:
        check_metrics(load_config([f"metrics=[{metric}]"]))
    assert metric in str(caught.value)
    assert "PYTHONPATH" in str(caught.value) or "score(reference" in str(caught.value)
    with pytest.raises(InputError, match=metric):  # on a worker, before anything is fitted
        fit_of(f"metrics=[{metric}]", on_step=lambda _: pytest.fail("a step was made"))


def zlib_of(text: str) -> int:
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(text))


@pytest.mark.parametrize("value", ["nan", "float('inf')", "None", "'0.5'", "[1]", "1 / 0"])
def test_what_is_no_finite_number_is_refused_with_document_task_and_value(value, monkeypatch):
    score = eval(f"lambda reference, prediction: {value} if reference == 'b' else True", {"nan": math.nan})
    monkeypatch.setattr(functions, "score_function", lambda _: score)
    assert scores_of("m:f", ["a"], ["x"], ["document '1' of task 'ann'"]) == [1.0]
    with pytest.raises(InputError, match=r"m:f .*document '7' of task 'bob'"):
        scores_of("m:f", ["a", "b"], ["x", "y"], ["document '1' of task 'ann'", "document '7' of task 'bob'"])


def test_a_model_that_gives_no_likelihood_of_answers_is_refused(monkeypatch):
    monkeypatch.setattr(scorer, "cached_nats", lambda *args: [np.full(len(a), math.nan) for a in args[2]])
    with pytest.raises(InputError, match="no likelihood of the candidate answers of document"):
        fit_of("metrics=[accuracy]")


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    """A trial in a run's folder."""
    folder, corpus = tmp_path_factory.mktemp("run"), make_answers()
    config = load_config([*SETTINGS, ALL, "search.objective=rouge_l", f"model.name={model_folder}"])
    row = run_trial(Trial("fit", config), corpus, lambda: make_base("opt", dtype=torch.float32), folder)
    return folder, corpus, row


def test_a_run_holds_each_prediction_and_their_means(run):
    folder, corpus, row = run
    results = read_results(folder)
    found, documents = results.predictions, corpus.documents.iloc[corpus.references.document_N]
    assert len(found) == 3 * len(documents)
    for metric in ("accuracy", "exact_match", "rouge_l"):
        own = found[found["metric"] == metric]
        assert own["document_id"].tolist() == documents["document_id"].tolist()
        assert own["split"].tolist() == documents["split"].tolist()
        assert own["task"].tolist() == [corpus.tasks[task] for task in documents["task"]]
        for split in ("validation", "test"):
            of_split = own.query("split == @split")
            assert json.loads(row[f"{split}_metrics"])[metric] == pytest.approx(np.mean(of_split["score"]))
            by_task = results.task_scores.query("split == @split").set_index("task")["metrics"]
            for task, scores in of_split.groupby("task")["score"]:
                assert json.loads(by_task[task])[metric] == pytest.approx(np.mean(scores))
    assert results.task_scores.query("split == 'train'")["metrics"].isna().all()
    assert results.trials["search_objective"].tolist() == ["rouge_l"]


def test_the_objective_of_a_row_is_the_metric_that_the_search_names(run):
    _, _, row = run
    assert objective(row) == -json.loads(row["validation_metrics"])["rouge_l"]
    assert 0 < -objective(row) < 1
    nats = row["validation_nll_nats"] / row["validation_num_tokens"]
    for older in ({"search_objective": "perplexity"}, {"search_objective": None}):
        assert objective(row | older) == nats
    assert math.isnan(objective(row | {"validation_metrics": None}))
    assert math.isnan(objective(row | {"validation_metrics": "{}"}))
    assert objective(row | {"search_objective": math.nan}) == nats


def test_a_run_without_metrics_has_no_predictions(tmp_path):
    row = run_trial(Trial("fit", load_config(SETTINGS)), make_corpus(), make_base, tmp_path)
    assert row["validation_metrics"] is None
    assert not (tmp_path / "results" / "predictions").exists()
    assert read_results(tmp_path).predictions.empty


def test_a_pack_of_trials_writes_the_predictions_of_each(tmp_path, model_folder):
    configs = [load_config([*SETTINGS, ALL, f"prior.tau={tau}", f"model.name={model_folder}"]) for tau in (1, 100)]
    trials = [Trial(f"{n:03d}", config) for n, config in enumerate(configs)]
    corpus = make_answers()
    run_pack(trials, corpus, lambda: make_base("opt", dtype=torch.float32), tmp_path)
    assert (
        read_results(tmp_path).predictions["trial_id"].value_counts().tolist()
        == [3 * len(corpus.references.text_N)] * 2
    )


PATH = ["metrics=[accuracy]", "search.objective=accuracy", "search.mode=path", "search.num_trials=3"]


def test_a_path_walks_by_the_metric(tmp_path, monkeypatch):
    asked: list[dict[float, float]] = []
    monkeypatch.setattr("bora_sweep.trials.path._Path.try_best_from_below", lambda _: None)
    monkeypatch.setattr(
        "bora_sweep.trials.path.next_tau", lambda found, *_: asked.append(dict(found)) or 1e5 / 10 ** len(asked)
    )
    rows = run_path(load_config([*SETTINGS, *PATH]), make_answers(), make_base, tmp_path, "002")
    expected = {row["tau"]: -json.loads(row["validation_metrics"])["accuracy"] for row in rows}
    assert asked[-1] == {tau: expected[tau] for tau in list(expected)[:-1]}


@pytest.mark.parametrize(("accuracy", "nats", "is_kept"), [(1.0, 1e9, True), (-1.0, 1e-9, False)])
def test_the_better_of_two_fits_of_a_value_is_that_of_the_better_metric(accuracy, nats, is_kept, tmp_path, monkeypatch):
    """Whatever its perplexity."""
    seen = []

    def result_of(*arguments):
        final, tables = outcome.result_of(*arguments)
        seen.append(final["validation_metrics"])
        return final | {"validation_metrics": json.dumps({"accuracy": accuracy}), "validation_nll_nats": nats}, tables

    monkeypatch.setattr("bora_sweep.trials.path.result_of", result_of)
    monkeypatch.setattr(
        "bora_sweep.trials.path._Path.objectives",
        lambda path: {tau: abs(place - 1) for place, tau in enumerate(path.rows)},  # the second of all is best
    )
    rows = run_path(load_config([*SETTINGS, *PATH]), make_answers(), make_base, tmp_path, "002")
    (kept,) = [row for row in rows if (tmp_path / "trials" / row["trial_id"] / "upward.json").exists()]
    assert kept["trial_id"] == "002.01"
    assert (kept["started_from"] != "002") == is_kept
    assert len(seen) == 1
    assert not is_kept or kept["validation_metrics"] == seen[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["metrics=[bleu]"], "accuracy, exact_match, rouge_l, or my_module:score"),
        (["metrics=[a.b:c, ':score']"], "':score'"),
        (["metrics=[accuracy,rouge_l,accuracy]"], "named twice"),
        (["metrics=[accuracy]", "search.objective=rouge_l"], r"search\.objective=rouge_l.*\['accuracy'\]"),
        (["metric.max_new_tokens=0"], r"metric\.max_new_tokens=0"),
        (["metrics=[accuracy]", "search.objective=accuracy", "search.scheduler=asha"], "drop one of the two"),
        (["metric.early_stopping=rouge_l"], r"metric\.early_stopping=rouge_l"),
        (["metrics=[rouge_l]", "metric.early_stopping=rouge_l", "train.reported=best_epochs"], "chosen by perplexity"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        load_config(settings)


def test_metrics_read_back_from_a_configuration():
    config = load_config(["metrics=[accuracy,my.module:score]", "search.objective=my.module:score"])
    assert config.metrics == ["accuracy", "my.module:score"]
    assert read_config(config.to_json()) == config
    assert load_config([]).search.objective == "perplexity"
