"""An exported model has the perplexities in the results, computed by code that shares nothing with the package."""

import html
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from tiny import make_base, make_frame, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from bora_sweep.cli import main
from bora_sweep.config import Config, ModelConfig, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize
from bora_sweep.model.full_model import merged_weights
from bora_sweep.model.peft_io import read_adapters
from bora_sweep.runs.results import SCHEMAS, read_results, trial_rows, write_table
from bora_sweep.serve.load import load_trial
from bora_sweep.train.checkpoint import load_adapters
from bora_sweep.train.fit import fit
from bora_sweep.train.state import Start

SIZES = {"Ann <b>|": 24, "b*b\n---": 16, "漢": 14}
MAX_TOKENS = 9  # some documents are longer
SMALL = [f"model.max_tokens={MAX_TOKENS}", "lora.rank=2", "lora.alpha=3", "train.max_epochs=2", "train.batch_size=8",
         "train.device=cpu", "train.learning_rate=0.03", "prior.tau=10", "data.test_fraction=0.33"]  # fmt: skip


def settings_of(folder) -> list[str]:
    return [f"data.path={folder / 'speeches.parquet'}", f"model.name={folder / 'base'}", *SMALL]


def a_fit(folder, family: str, *settings: str, sizes: dict[str, int] = SIZES) -> list[str]:
    """Make a model and a corpus in `folder` and fit; returns the settings, without `output`."""
    make_base(family, dtype=torch.float32).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    make_frame(sizes).to_parquet(folder / "speeches.parquet")
    given = [*settings_of(folder), *settings]
    assert main(["fit", *given, f"output={folder / 'run'}"]) == 0
    return given


@torch.no_grad()
def perplexity_elsewhere(model, words_of: list[list[str]], vocabulary: dict[str, int]) -> float:
    """One document at a time: `</s>`, its words, `</s>`, cut to MAX_TOKENS; all but the first token predicted."""
    nats, count = 0.0, 0
    for words in words_of:
        inside = [vocabulary[word] for word in words][: MAX_TOKENS - 2]
        sequence = torch.tensor([[2, *inside, 2]])
        logits = model(input_ids=sequence, attention_mask=torch.ones_like(sequence)).logits[0].double()
        for place in range(1, sequence.shape[1]):
            row = logits[place - 1]
            nats += float(torch.logsumexp(row, 0) - row[sequence[0, place]])
            count += 1
    return math.exp(nats / count)


CASES = [("opt", "lora"), ("gpt2", "lora"), ("llama", "lora"), ("opt", "dora"), ("gpt2", "dora"), ("llama", "rslora"),
         ("opt", "lora_plus")]  # fmt: skip


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_every_exported_adapter_has_the_perplexity_in_the_results(family, variant, tmp_path):
    settings = a_fit(tmp_path, family, f"lora.variant={variant}", "lora.target_modules=all-linear")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    frame = make_frame(SIZES)
    assert (frame["text"].str.split().str.len() > MAX_TOKENS).any()
    results = read_results(tmp_path / "run")
    scored = results.document_scores.query("split == 'test'")
    words = {task: [frame["text"][int(n)].split() for n in own["document_id"]] for task, own in scored.groupby("task")}  # type: ignore
    vocabulary = json.loads((tmp_path / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    known = results.task_scores.query("split == 'test'").set_index("task")["perplexity"]

    def found(folder: str, words_of: list[list[str]]) -> float:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        return perplexity_elsewhere(
            PeftModel.from_pretrained(base, tmp_path / "out" / folder).eval(), words_of, vocabulary
        )

    folders = json.loads((tmp_path / "out" / "tasks.json").read_text(encoding="utf-8"))
    assert set(folders) == set(SIZES) == set(words)
    for task, folder in folders.items():
        assert found(folder, words[task]) == pytest.approx(known[task], rel=1e-4)

    config = load_config(settings)
    corpus = tokenize(load_corpus(config.data), make_tokenizer(), MAX_TOKENS)
    mean_P = load_adapters(tmp_path / "run" / "trials" / "fit")[0]["mean_P"]
    start = Start(mean_P, mean_P.expand(len(SIZES), -1))
    ours = fit(
        load_config([*settings, "method=zero_shot"]), corpus, make_base(family, dtype=torch.float32), start=start
    )
    at_theta = math.exp(np.sum(ours.nll_nats["test"]) / corpus.num_tokens("test"))
    assert found("_global", [one for task in words.values() for one in task]) == pytest.approx(at_theta, rel=1e-4)
    assert all(abs(known[task] / at_theta - 1) > 1e-3 for task in SIZES)  # the adapters differ


HOSTILE = {"../../x": 14, "<script>": 14, "x" * 300: 14, "🙂": 14, "Ann": 14, "CON": 14}


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_at_tau_inf_the_global_adapter_has_the_perplexities_in_the_results_with_any_task_names(family, tmp_path):
    """At tau = inf Theta was scored: on all documents and on each task's."""
    a_fit(tmp_path, family, "prior.tau=inf", "lora.target_modules=all-linear", sizes=HOSTILE)
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), str(out)]) == 0
    assert json.loads((out / "tasks.json").read_text(encoding="utf-8")) == dict.fromkeys(HOSTILE, "_global")
    assert {path.name for path in out.iterdir()} == {"README.md", "_global", "documents.parquet", "tasks.json"}

    frame, results = make_frame(HOSTILE), read_results(tmp_path / "run")
    scored = results.document_scores.query("split == 'test'")
    vocabulary = json.loads((tmp_path / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, out / "_global").eval()
    words = [frame["text"][int(n)].split() for n in scored["document_id"]]  # type: ignore[reportAttributeAccessIssue]
    known = trial_rows(tmp_path / "run")[0]["test_perplexity"]
    assert perplexity_elsewhere(model, words, vocabulary) == pytest.approx(known, rel=1e-4)
    for task, own in results.task_scores.query("split == 'test'").set_index("task")["perplexity"].items():
        rows = scored.loc[scored["task"] == task, "document_id"]
        found = perplexity_elsewhere(model, [frame["text"][int(n)].split() for n in rows], vocabulary)  # type: ignore
        assert found == pytest.approx(own, rel=1e-4)


def test_folders_of_tasks_with_any_names_stay_below_the_export(tmp_path):
    a_fit(tmp_path, "opt", "train.max_epochs=1", sizes=HOSTILE | {"README.md": 14})
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "deep" / "er" / "out"
    assert main(["export", str(tmp_path / "run"), str(out)]) == 0
    assert {path for path in set(tmp_path.rglob("*")) - before if out not in (path, *path.parents)} == {
        tmp_path / "deep", tmp_path / "deep" / "er"
    }  # fmt: skip
    folders = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    assert set(folders) == {*HOSTILE, "README.md"}
    assert len({name.casefold() for name in folders.values()}) == len(folders)
    files = {"README.md", "documents.parquet", "tasks.json"}
    assert {path.name for path in out.iterdir()} == {"_global", *files, *folders.values()}
    assert {path.name for path in out.iterdir() if path.is_file()} == files


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with fits at tau = 0, 10 and inf, and its export."""
    folder = tmp_path_factory.mktemp("cards")
    a_fit(folder, "opt")
    results, run = read_results(folder / "run"), folder / "run"
    for trial_id, tau, factor in (("000", 0.0, 1.1), ("001", math.inf, 1.2), ("002", math.inf, 9.0)):
        scores = results.task_scores[SCHEMAS["task_scores"].names]
        write_table(run, "task_scores", trial_id, scores.assign(tau=tau, nll_nats=scores["nll_nats"] * factor))
        row = trial_rows(run)[-1] | {"tau": tau, "validation_perplexity": 1e6 * factor}
        write_table(run, "trials", trial_id, [row])
        write_table(run, "trials", f"{trial_id}-other", [row | {"lora_rank": 99, "validation_perplexity": 1e3}])
    assert main(["export", str(run), str(folder / "out")]) == 0
    return folder


def test_a_merged_model_has_the_same_perplexity_without_peft(exported, tmp_path, capsys):
    task = "漢"
    arguments = ["--trial", "fit", "--merge", "--task", task]
    assert main(["export", str(exported / "run"), str(tmp_path / "full"), *arguments]) == 0
    assert "full models of _global and 1 task" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == [
        "README.md",
        "_global",
        "documents.parquet",
        "tasks.json",
        task,
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full" / task)
    results = read_results(exported / "run")
    rows = results.document_scores.query("split == 'test' and task == @task")["document_id"]
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "full" / task).get_vocab()
    texts = make_frame(SIZES)["text"]
    found = perplexity_elsewhere(model, [texts[int(n)].split() for n in rows], vocabulary)  # type: ignore
    known = results.task_scores.query("split == 'test' and task == @task and trial_id == 'fit'")["perplexity"].item()
    assert found == pytest.approx(known, rel=1e-4)
    card = (tmp_path / "full" / task / "README.md").read_text(encoding="utf-8")
    assert "peft" not in card.lower()
    assert "library_name: transformers" in card


def test_a_fit_starts_at_exported_adapters(tmp_path):
    settings = a_fit(tmp_path, "opt")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    again = ["prior.tau=0", "train.max_epochs=1", "train.learning_rate=1e-9", f"init_from={tmp_path / 'out'}"]
    assert main(["fit", *settings, *again, f"output={tmp_path / 'again'}"]) == 0
    loaded = load_trial(tmp_path / "run")
    mean_P, theta_KP = read_adapters(tmp_path / "out", loaded.layout, loaded.lora, list(loaded.theta_of))
    assert torch.equal(mean_P, loaded.mean_P)
    assert torch.equal(theta_KP, torch.stack(list(loaded.theta_of.values())))
    first, then = (read_results(tmp_path / name).document_scores["nll_nats"] for name in ("run", "again"))
    np.testing.assert_allclose(first, then, rtol=1e-5)
    curve = read_results(tmp_path / "again").curves.query("epoch == 0 and split == 'validation'")
    assert curve["nll_nats"].item() == pytest.approx(trial_rows(tmp_path / "run")[0]["validation_nll_nats"], rel=1e-6)
    (tmp_path / "out").rename(tmp_path / "gone")
    assert main(["fit", "--resume", f"output={tmp_path / 'again'}"]) == 0


@pytest.mark.parametrize(
    ("command", "changes", "says"),
    [
        ("fit", ["lora.rank=3"], "lora.rank=2"),
        ("fit", ["method=zero_shot"], "drop init_from"),
        ("fit", ["init_from=nowhere"], "no such folder"),
        ("sweep", [], "drop it, or use fit"),
    ],
)
def test_a_wrong_start_is_refused_before_anything_is_written(command, changes, says, exported, tmp_path, capsys):
    arguments = [*settings_of(exported), f"init_from={exported / 'out'}", *changes, f"output={tmp_path / 'new'}"]
    assert main([command, *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_card_has_the_perplexities_in_the_results(exported):
    card = (exported / "out" / "漢" / "README.md").read_text(encoding="utf-8")
    scores = read_results(exported / "run").task_scores.query("task == '漢'").set_index(["trial_id", "split"])
    for label, trial_id in (
        ("this adapter (τ = 10)", "fit"),
        ("one model per task (τ = 0)", "000"),
        ("one model for all (τ = ∞)", "001"),
    ):
        values = [
            math.exp(scores.nll_nats[trial_id, s] / scores.num_tokens[trial_id, s]) for s in ("validation", "test")
        ]
        shown = re.search(rf"\| {re.escape(label)} \| ([\d.,]+) \| ([\d.,]+) \|", card)
        assert shown is not None, label
        assert [float(text.replace(",", "")) for text in shown.groups()] == pytest.approx(values, rel=1e-3)
    train = scores.loc[("fit", "train")]
    assert f"| {train.num_documents} ({train.num_tokens} tokens) |" in card
    assert "speeches.parquet" in card


def code_of(folder: Path) -> str:
    """The Python code in a folder's card."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    return code[1]


FRAMED = ["data.prompt=w1 {task} w2", "data.template=w3 {text} w4"]


@pytest.mark.parametrize("merge", [[], ["--merge", "--dtype", "float32"]])
@pytest.mark.parametrize("around", [[], FRAMED])
def test_the_code_in_a_card_gives_the_scores_in_the_results(around, merge, tmp_path, monkeypatch):
    """Also if the base's files are in another precision: here bfloat16, which would change the scores."""
    make_base("opt", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    sizes = {"ann": 16, "b'b": 14}
    make_frame(sizes).to_parquet(tmp_path / "speeches.parquet")
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["fit", *settings_of(tmp_path), "lora.target_modules=all-linear", *around, f"output={run}"]) == 0
    assert main(["export", str(run), str(out), *merge]) == 0
    scored, texts = read_results(run).document_scores.query("split == 'test'"), make_frame(sizes)["text"]
    monkeypatch.chdir(out)
    for task, folder in json.loads((out / "tasks.json").read_text(encoding="utf-8")).items():
        scope = {}
        exec(code_of(out / folder), scope)
        model, tokenizer, start = (scope[name] for name in ("model", "tokenizer", "start"))
        for row in scored[scored["task"] == task].to_dict("records"):  # type: ignore[reportCallIssue]
            text = texts[int(row["document_id"])]
            words = f"w3 {text} w4" if around else text
            ids = start + tokenizer(words, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*ids[: MAX_TOKENS - 1], 2]])
            with torch.no_grad():
                picked = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])
            assert -picked[len(start) - 1 :].sum() == pytest.approx(row["nll_nats"], rel=1e-5)
        if around:
            assert (start[0], start[-1]) == (4, 5)  # w1 and w2
            assert "here one of 'ann'" in code_of(out / "_global")
            card = html.unescape((out / folder / "README.md").read_text(encoding="utf-8"))
            assert "follows `start` is scored: “w3 ”, text, “ w4”, </s>; at most 9 tokens of a document" in card


def test_the_code_in_the_documentation_loads_switches_and_merges(exported):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    named = {"facebook/opt-350m": str(exported / "base"), "OUT": str(exported / "out"), "task_3": "task_2"}
    scope = {}
    exec(re.sub("|".join(named), lambda found: named[found[0]], block[1]), scope)
    loaded = load_trial(exported / "run", "fit")
    layout, theta_P = loaded.layout, list(loaded.theta_of.values())[2]
    expected = merged_weights(make_base("opt", dtype=torch.float32), layout, theta_P)
    for name, weight in expected.items():
        torch.testing.assert_close(scope["merged"].state_dict()[name], weight)


def test_names_with_markup_are_escaped_in_a_card(exported):
    for task, folder in json.loads((exported / "out" / "tasks.json").read_text(encoding="utf-8")).items():
        card = (exported / "out" / folder / "README.md").read_text(encoding="utf-8")
        empty, front, body = card.split("---\n", 2)
        assert empty == ""
        assert yaml.safe_load(front) == {
            "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["bora", "lora"]
        }  # fmt: skip
        assert not re.search(r"^---", body, re.MULTILINE)
        assert "<b>" not in body
        assert body.count("\n# ") == 1
        assert {line.count("|") for line in body.splitlines() if line.startswith("| ")} == {3, 4}, task


@pytest.mark.parametrize("base", ["facebook/opt-350m", "gpt2", "/models/opt", "../opt", "a\nb", "x/y/z", None])
def test_the_front_matter_names_the_base_only_if_it_is_a_hub_name(exported, base):
    from bora_sweep.serve.model_card import ExportedFolder, TextFormat, model_card

    results = read_results(exported / "run")
    row = results.trials.set_index("trial_id", drop=False).loc["fit"].to_dict()
    config = Config(model=ModelConfig(name=base))
    text_format = TextFormat(
        form="text", task="a", depends_on_task=False, start_tokens=[2], prompt="", before="", after="",
        end_token="</s>", has_own_template=False, template_variables={},
    )  # fmt: skip
    exported_folder = ExportedFolder(
        row=row, task=None, folder="_global", corpus="x", config=config, text_format=text_format, merge=None
    )
    front = yaml.safe_load(model_card(exported_folder, results).split("---\n")[1])
    named = {"base_model": base, "base_model_relation": "adapter"} if base in ("facebook/opt-350m", "gpt2") else {}
    assert front == named | {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["bora", "lora"]}


def test_what_cannot_be_exported_is_refused(exported, tmp_path, capsys):
    run, out = str(exported / "run"), str(exported / "out")
    for arguments, says in [
        ([str(tmp_path / "nowhere"), str(tmp_path / "x")], "nowhere"),
        ([run, str(tmp_path / "x"), "--trial", "../fit"], "no such finished trial"),
        ([run, str(tmp_path / "x"), "--task", "漢", "Ann"], "--task Ann: the run has no such task; the nearest"),
        ([run, out], "not empty"),
    ]:
        assert main(["export", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_adapter_that_changes_nothing_is_said_to(tmp_path, capsys):
    make_base("opt", dtype=torch.float32).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    make_frame(SIZES).to_parquet(tmp_path / "speeches.parquet")
    for method in ("zero_shot", "map"):
        run, out = tmp_path / method, tmp_path / f"{method}-out"
        assert main(["fit", *settings_of(tmp_path), f"method={method}", f"output={run}"]) == 0
        assert main(["export", str(run), str(out), "--trial", "fit"]) == 0
        assert ("its adapter changes nothing" in capsys.readouterr().out) == (method == "zero_shot")


def test_the_help_of_export_names_its_arguments(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(
        word in printed for word in ("RUN", "OUT", "--trial", "best", "--task", "--merge", "_global", "tasks.json")
    )
