"""What a notebook does with a run: its adapters, its tables, texts, and settings that complete and are checked."""

import functools
import inspect
import json
import logging
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import pandas as pd
import pytest
import torch
from chats import make_byte_tokenizer, make_chat_base
from peft import PeftModel
from rich.console import Console

import bora_sweep
from bora_sweep.cli import main
from bora_sweep.config import flatten
from bora_sweep.console import LoggedConsole
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import load_base
from bora_sweep.progress import FitProgress
from bora_sweep.serve import adapters
from bora_sweep.serve.load import load_trial
from bora_sweep.train.state import State, StepReport

TRAIN = {"max_epochs": 2, "device": "cpu", "learning_rate": 0.02}
PRIVATE = "my neighbour said on Tuesday"


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus_file, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("python")
    model = {"name": model_folder, "max_tokens": 16}
    for name, more in {"run": {}, "mora": {"lora": {"rank": 4, "variant": "mora"}}}.items():
        bora_sweep.fit("prior.tau=30", data=corpus_file, model=model, train=TRAIN, output=folder / name, **more)
    return folder / "run"


@torch.no_grad()
def test_an_adapter_is_a_peft_model_that_gives_the_fitted_logits_over_a_base_that_is_loaded_once(run, monkeypatch):
    loads = []
    monkeypatch.setattr(adapters, "load_base", lambda *given: loads.append(given) or load_base(*given))
    results = bora_sweep.read_results(run)
    loaded = load_trial(run)
    ours = AdaptedModel(load_base(loaded.config.model, loaded.config.data), loaded.layout)
    tokens_BT = torch.randint(3, 43, (2, 9), generator=torch.Generator().manual_seed(0))
    seen = []
    for task in ["ann", "_global", "dot", "ann"]:
        model = results.adapter(task)
        assert isinstance(model, PeftModel)
        theta_P = loaded.mean_P if task == "_global" else loaded.theta_of[task]
        logits = model(input_ids=tokens_BT).logits
        torch.testing.assert_close(logits, ours(tokens_BT, theta_P[None]), rtol=0, atol=1e-5)
        seen.append((model, logits))
    assert len({id(model) for model, _ in seen}) == len(loads) == 1
    assert torch.equal(seen[0][1], seen[-1][1])
    assert not torch.allclose(seen[0][1], seen[1][1], atol=1e-3)
    assert results.tokenizer.decode([5]) == "w2"


def test_results_know_their_best_trial_and_their_folder(run):
    results = bora_sweep.read_results(run)
    assert results.folder == run
    assert (results.best["trial_id"], results.best["tau"]) == ("fit", 30)
    several = bora_sweep.read_results([run, run.parent / "mora"])
    for ask in (lambda: several.folder, lambda: several.best, lambda: several.adapter("ann")):
        with pytest.raises(bora_sweep.InputError, match=r"results of 2 runs: ask each run alone, read_results\("):
            ask()


@pytest.mark.parametrize(
    ("name", "task", "says"),
    [
        ("run", "amn", r"^task amn: the run has no such task; the nearest names are ann, "),
        ("mora", "ann", r"^task=ann: PEFT has no lora.variant=mora; use generate\(\), or export\(merge=True\)$"),
    ],
)
def test_an_adapter_that_is_not_there_is_refused(name, task, says, run):
    with pytest.raises(bora_sweep.InputError, match=says):
        bora_sweep.read_results(run.parent / name).adapter(task)


def test_texts_are_those_of_the_command(run, capsys):
    texts = bora_sweep.generate(run, ["w1 w2", "w3"], ["ann", "dot"], max_new_tokens=4, seed=3)
    assert list(texts["adapter"]) == ["base model", "_global", "ann", "dot"] * 2
    assert list(texts["prompt"].unique()) == ["w1 w2", "w3"]
    options = ["--task", "ann", "--task", "dot", "--max-new-tokens", "4", "--seed", "3", "w3"]
    capsys.readouterr()
    assert main(["generate", str(run), *options]) == 0
    printed = capsys.readouterr().out
    for row in texts.query("prompt == 'w3'").to_dict("records"):
        assert f"== {row['adapter']} ==\n{row['text']}" in printed
    assert len(bora_sweep.generate(run, "w1", "ann", max_new_tokens=1)) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompts": "w1", "tasks": "amn"}, "^tasks amn: the run has no such task"),
        ({"prompts": "w1", "tasks": "ann", "max_new_tokens": 0}, "^max_new_tokens 0: need at least 1$"),
        ({"prompts": "w1", "tasks": "ann", "max_new_tokens": 999}, "lower max_new_tokens, or shorten the prompt"),
        ({"prompts": "w1", "tasks": "ann", "temperature": -1}, "^temperature -1"),
        ({"prompts": "w1", "tasks": "ann", "trial": "x"}, "^trial x: no such finished trial"),
        ({"prompts": pd.DataFrame({"a": [PRIVATE]}), "tasks": "ann"}, "^prompts: a DataFrame; give a text"),
        ({"prompts": [7], "tasks": "ann"}, r"^prompts\[0\]: a int; give a text or a list of messages"),
    ],
)
def test_a_wrong_argument_of_generate_is_named(given, says, run):
    with pytest.raises(bora_sweep.InputError, match=says) as caught:
        bora_sweep.generate(run, **given)
    assert "--" not in str(caught.value)
    assert PRIVATE not in str(caught.value)


def test_a_conversation_is_a_prompt(tmp_path):
    tokenizer = make_byte_tokenizer()
    make_chat_base("llama", tokenizer, torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {"who": who, "messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{who} {n}"}]}
        for n in range(8)
        for who in ("ann", "bob")
    ]
    bora_sweep.fit(
        "data.task_column=who", data=pd.DataFrame(rows), model={"name": tmp_path / "base", "max_tokens": 64},
        lora={"rank": 2}, train=TRAIN | {"max_epochs": 1}, output=tmp_path / "run",
    )  # fmt: skip
    asked = {"max_new_tokens": 3, "temperature": 0.0}
    said = bora_sweep.generate(tmp_path / "run", "1?", "ann", **asked)
    whole = bora_sweep.generate(tmp_path / "run", [{"role": "user", "content": "1?"}], "ann", **asked)
    assert list(said["text"]) == list(whole["text"])
    both = bora_sweep.generate(tmp_path / "run", [[{"role": "user", "content": "1?"}], "2?"], "ann", **asked)
    assert list(both["text"][:3]) == list(whole["text"])


def test_a_corpus_is_described_as_the_command_does(corpus_file, model_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = bora_sweep.describe(str(corpus_file))
    assert main(["data", "describe", str(corpus_file)]) == 0
    assert capsys.readouterr().out.split() == str(plain).split()
    assert plain.tasks.loc["ann", "documents"].sum() == 40
    assert (plain.example, "tokens" in plain.tasks) == (None, False)
    assert any("unequal" in note or "fewer than" in note for note in plain.notes)
    frame = pd.read_parquet(corpus_file)
    of_frame = bora_sweep.describe(data=frame, model={"name": model_folder, "max_tokens": 16})
    pd.testing.assert_frame_equal(of_frame.tasks["documents"], plain.tasks["documents"])
    assert of_frame.tasks["tokens"].to_numpy().sum() > 0
    assert "as tokens" in (of_frame.example or "")
    assert "<pre" in of_frame._repr_html_()
    assert not any(tmp_path.iterdir())
    with pytest.raises(bora_sweep.InputError, match=r"^data: no column 'x'"):
        bora_sweep.describe("data.task_column=x", data=frame)


def test_a_split_is_named_as_it_was_given(corpus_file, tmp_path):
    frame = pd.read_parquet(corpus_file)
    train, test = (datasets.Dataset.from_pandas(part) for part in (frame, frame.rename(columns={"text": "said"})))
    given = datasets.DatasetDict({"train": train, "validation": train, "test": test})
    for call in (bora_sweep.describe, functools.partial(bora_sweep.fit, output=tmp_path / "run", model={"name": "x"})):
        with pytest.raises(bora_sweep.InputError, match=r"^data\['test'\]: no column 'text'"):
            call(data=given)


def test_nothing_in_the_place_of_several_is_refused_by_name(run, tmp_path):
    with pytest.raises(bora_sweep.InputError, match=r"^read_results\(\[\]\): no run is given"):
        bora_sweep.read_results([])
    with pytest.raises(bora_sweep.InputError, match=r"^prompts: empty;"):
        bora_sweep.generate(run, [], ["ann"])
    with pytest.raises(bora_sweep.InputError, match=r"run: give a list of two runs or more$"):
        bora_sweep.Comparison(str(run))  # type: ignore[arg-type]
    for dtype in ("float8", "int8", "float16"):
        with pytest.raises(bora_sweep.InputError, match=f"^dtype={dtype}: need one of base, float32, bfloat16$"):
            bora_sweep.export(run, tmp_path / "out", merge=True, dtype=dtype)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_status_is_that_of_the_command(run, capsys):
    state = bora_sweep.status(run)
    assert (state.has_ended, state.is_driven, state.command) == (True, False, "fit")
    assert state.trials["status"].tolist() == ["finished"]
    assert state.best is not None
    assert state.best["trial_id"] == "fit"
    assert main(["status", str(run)]) == 0
    assert {"fit", "ended", "finished"} <= set(capsys.readouterr().out.split()) & set(str(state).split())
    assert "<pre" in state._repr_html_()
    with pytest.raises(bora_sweep.InputError, match="not a run's folder"):
        bora_sweep.status(run / "nowhere")


class Custom:
    def __repr__(self) -> str:
        return PRIVATE


FRAME = pd.DataFrame({"text": [PRIVATE], "task": ["a"]})


@pytest.mark.parametrize(
    ("settings", "sections", "says"),
    [
        ((FRAME,), {}, "^setting 1: a DataFrame; a setting is"),
        ((["x", FRAME],), {}, "^setting 1: a list; a setting is"),
        (({PRIVATE: "yes"},), {}, "^settings: a key is no name of a setting; the keys are data, "),
        ((f"{PRIVATE}\n{PRIVATE}",), {}, "^a text of 57 characters; a setting is"),
        ((), {"data": [FRAME, FRAME]}, "^data=list: give a DataFrame"),
        (
            (),
            {"data": {"text": [PRIVATE], "task": ["a"]}},
            "'data.text': no such key; a dict is settings: give documents as",
        ),
        ((), {"data": {"train": FRAME}}, "'data.train': no such key; a dict is settings: give documents as a DataFr"),
        ((), {"data": {"pth": "x"}}, "'data.pth': no such key; did you mean 'path'"),
        ((), {"data": {PRIVATE: "a"}}, "^data: a key is no name of a setting"),
        ((), {"data": {"path": FRAME}}, "^data.path=DataFrame: need text"),
        ((), {"data": {"path": [PRIVATE]}}, "^data.path=list: need text"),
        ((), {"data": {"path": {"a": PRIVATE}}}, "^data.path=dict: need text"),
        ((), {"data": torch.nn.Linear(2, 2)}, "^data=Linear: give a DataFrame"),
        ((), {"data": Custom()}, "^data=Custom: give a DataFrame"),
        ((), {"data": "x.parquet", "model": FRAME}, "^model=DataFrame, tokenizer=NoneType: give a model"),
        ((), {"train": Custom()}, "^train=Custom: is a section of keys"),
        ((), {"train": [PRIVATE]}, "^train=list: is a section of keys"),
        ((), {"train": {"max_epoch": 1}}, "'train.max_epoch': no such key; did you mean 'max_epochs'"),
        ((), {"trian": {}}, "'trian': no such key; did you mean 'train'"),
    ],
)
def test_an_object_of_the_wrong_kind_is_refused_in_one_line_without_what_is_in_it(settings, sections, says, tmp_path):
    with pytest.raises(bora_sweep.InputError, match=says) as caught:
        bora_sweep.fit(*settings, output=tmp_path / "run", **sections)
    assert PRIVATE not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_setting_is_a_setting():
    assert bora_sweep.load_config("prior.tau=1").prior.tau == 1
    assert bora_sweep.load_config({"prior": {"tau": 2}}).prior.tau == 2
    assert bora_sweep.load_config(bora_sweep.load_config(["prior.tau=3"])).prior.tau == 3
    with pytest.raises(bora_sweep.InputError, match=r"^settings: a int; a setting is"):
        bora_sweep.load_config(7)  # type: ignore[arg-type]


def test_a_configuration_takes_dictionaries_as_its_sections():
    made = bora_sweep.Config(train={"max_epochs": 3}, data={"synthetic": {"seed": 5}}, output="x")  # type: ignore[arg-type]
    assert made == bora_sweep.load_config(["train.max_epochs=3", "data.synthetic.seed=5", "output=x"])
    assert bora_sweep.Config(train=bora_sweep.TrainConfig(max_epochs=3)).train == made.train
    for given, says in (
        ({"train": {"max_epoch": 3}}, "'train.max_epoch': no such key; did you mean 'max_epochs'"),
        ({"train": {"max_epochs": "many"}}, "train.max_epochs=many: need a whole number"),
        ({"prior": 7}, "prior=int: is a section of keys|prior=7: is a section of keys"),
    ):
        with pytest.raises(bora_sweep.InputError, match=says):
            bora_sweep.Config(**given)


def test_the_functions_name_every_section_and_key():
    keys = {name.partition(".")[0] for name in flatten(bora_sweep.Config().__dict__)}
    for function in (bora_sweep.fit, bora_sweep.sweep):
        assert keys <= set(inspect.signature(function).parameters)


def test_what_is_told_is_logged_once_without_secrets_also_where_it_is_quiet(caplog, capsys, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abcdefghij")
    caplog.set_level(logging.INFO, "bora_sweep")
    for quiet in (False, True):
        console = LoggedConsole(stderr=True, quiet=quiet, width=200)
        console.print("run folder: x")
        console.print("[yellow]note:[/] 1 document abcdefghij")
        console.print("[bold red]error:[/] no")
    assert [(record.levelname, record.message) for record in caplog.records] == 2 * [
        ("INFO", "run folder: x"), ("WARNING", "note: 1 document ***"), ("ERROR", "error: no")
    ]  # fmt: skip
    assert capsys.readouterr().err.count("run folder") == 1


def test_a_fit_is_logged_and_the_package_prints_nothing_itself(corpus_file, model_folder, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO, "bora_sweep")
    bora_sweep.fit(data=corpus_file, model=model_folder, train=TRAIN, output=tmp_path / "run")
    told = [record.message for record in caplog.records if record.name.startswith("bora_sweep")]
    assert [line.partition(":")[0] for line in told if line.startswith("epoch")] == ["epoch 1", "epoch 2"]
    assert any("4 tasks" in line for line in told)
    assert capsys.readouterr() == ("", "")
    handlers = logging.getLogger("bora_sweep").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


@pytest.fixture
def notebook(monkeypatch) -> list[dict]:
    """What a notebook's cell shows, an entry for each output; updates replace what an entry has."""
    outputs: list[dict] = []

    def display(shown: dict, *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw
        assert display_id
        outputs.append(shown)
        place = len(outputs) - 1
        return SimpleNamespace(update=lambda new, raw: outputs.__setitem__(place, new))  # noqa: ARG005

    module = ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return outputs


def test_a_fit_in_a_notebook_is_one_output(notebook):
    console = Console(force_jupyter=True, file=None)
    with FitProgress(5, console) as bar:
        state = State(best_epochs=[2])
        for epoch in (1, 2):
            for batch in (1, 2, 3):
                bar.on_step(StepReport(epoch, batch, 3, 4.0, 2))
            state.epoch = epoch
            state.curve[:] = [
                {"nll_nats": 2.0, "num_tokens": 2, "seconds": 0.5}, {"nll_nats": 1.0, "num_tokens": 2, "seconds": 0.1}
            ]  # fmt: skip
            bar.on_epoch(state)
    (shown,) = notebook
    assert '<progress value="6" max="15">' in shown["text/html"]
    assert f"epoch 2: perplexity {math.e:.2f} in training" in shown["text/html"]
    with FitProgress(5, Console(force_jupyter=True, quiet=True)) as bar:
        bar.on_step(StepReport(1, 1, 3, 4.0, 2))
    assert len(notebook) == 1


def test_a_fit_under_a_kernel_is_one_bar(tmp_path, corpus_file, model_folder):
    """In a real kernel, where one is installed."""
    nbclient = pytest.importorskip("nbclient", reason="needs a Jupyter kernel: nbclient and ipykernel")
    nbformat = pytest.importorskip("nbformat")
    given = {"data": str(corpus_file), "model": {"name": str(model_folder), "max_tokens": 16}, "train": TRAIN}
    code = (
        f"import bora_sweep\nr = bora_sweep.fit(quiet=False, output={str(tmp_path / 'run')!r}, **{json.dumps(given)})"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    bars = [output for output in outputs if "<progress" in str(output)]
    assert len(bars) == 1
    assert "epoch 2: perplexity" in bars[0]["data"]["text/html"]
    assert str(outputs).count("in training") == 2  # in HTML and in text, of the one bar
