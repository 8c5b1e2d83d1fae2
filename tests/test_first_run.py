"""`bora-sweep init`: what it writes loads, says why, and is what a run uses."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chats import make_byte_tokenizer, make_chat_base
from tiny import SHARED, make_frame

from bora_sweep import first_run
from bora_sweep.cli import main
from bora_sweep.config import Config, flatten, load_config
from bora_sweep.config.yaml import parse_yaml
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.errors import InputError
from bora_sweep.first_run import look
from bora_sweep.machine import Machine
from bora_sweep.model.base import load_tokenizer
from bora_sweep.plan import make_plan
from bora_sweep.runs.folder import config_of

GB = 10**9
QUICK = ["train.max_epochs=1", "train.device=cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def speeches(here) -> Path:
    """Running text whose columns have names of their own."""
    frame = make_frame({"ann": 40, "bob": 24, "cid": 16}, longest=30)
    frame.assign(text=frame["text"] + " w1" * 12).rename(columns={"task": "who", "text": "said"}).to_csv(
        here / "speeches.csv", index=False
    )
    return here / "speeches.csv"


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("chat"), make_byte_tokenizer()
    make_chat_base("llama", tokenizer).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_step_is_timed(monkeypatch):
    monkeypatch.setattr(first_run, "CPU_WORK", 0.0)


def say(machine: Machine, monkeypatch) -> None:
    monkeypatch.setattr(first_run, "this_machine", lambda _: machine)


@pytest.mark.usefixtures("speeches")
def test_running_text_is_fitted_by_what_is_written(model_folder, capsys):
    assert main(["init", "speeches.csv", f"model.name={model_folder}", "train.device=cpu"]) == 0
    printed = capsys.readouterr().out
    assert "3 tasks, 80 documents" in printed
    assert "run bora-sweep sweep bora_sweep.yaml" in printed
    text = Path("bora_sweep.yaml").read_text()
    config = load_config(["bora_sweep.yaml"])
    assert (config.data.task_column, config.data.text_column) == ("who", "said")
    assert main(["fit", "bora_sweep.yaml", "train.max_epochs=1", "output=run"]) == 0
    assert flatten(config_of(Path("run")).to_dict())["lora.rank"] == config.lora.rank
    above = {}
    for line, following in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if re.match(r"  \w+:", following):
            above[following.split(":")[0].strip()] = line
    assert all(line.startswith("  # ") and len(line) > 10 for line in above.values())  # a reason for each
    assert set(above) == {
        "path", "text_column", "task_column", "name", "max_tokens", "rank", "learning_rate", "batch_size", "num_trials",
        "device", "dtype",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("speeches", "ray_here")
def test_a_sweep_runs_by_what_is_written(model_folder):
    assert (
        main(["init", "speeches.csv", f"model.name={model_folder}", "train.max_epochs=1", "search.num_trials=1"]) == 0
    )
    assert main(["sweep", "bora_sweep.yaml"]) == 0


@pytest.mark.usefixtures("here")
def test_prompts_and_completions(model_folder, capsys):
    rows = [
        {"customer": "ab"[row % 2], "prompt": "w1 " * (5 + row), "completion": "w2 w3", "note": row}
        for row in range(40)
    ]
    Path("tickets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["init", "tickets.jsonl", f"model.name={model_folder}", "--output", "mine.yaml"]) == 0
    config = load_config(["mine.yaml"])
    assert config.data.task_column == "customer"
    assert "rows are a prompt and its completion" in capsys.readouterr().out
    assert main(["fit", "mine.yaml", *QUICK, "output=run"]) == 0


@pytest.mark.usefixtures("here")
def test_conversations_with_a_chat_model(chat_model, capsys):
    rows = [
        {
            "persona": ["kind", "curt"][row % 2],
            "messages": [
                {"role": "user", "content": f"hi {row} " * 6},
                {"role": "assistant", "content": "yes" * (row % 5 + 1)},
            ],
        }
        for row in range(40)
    ]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["init", "chats.jsonl", f"model.name={chat_model}"]) == 0
    assert "rows are a conversation" in capsys.readouterr().out
    config = load_config(["bora_sweep.yaml"])
    assert config.model.max_tokens == 64  # its positions: some have more tokens
    assert config.data.truncate == "prompt"
    assert main(["fit", "bora_sweep.yaml", *QUICK, "output=run"]) == 0


@pytest.mark.usefixtures("speeches")
def test_without_a_model_the_key_is_left_to_be_filled_in(capsys):
    assert main(["init", "speeches.csv"]) == 0
    assert "model.name is not set" in capsys.readouterr().out
    text = Path("bora_sweep.yaml").read_text()
    assert "\n# model:\n#   name: " in text
    assert set(parse_yaml(text)) == {"data"}
    capsys.readouterr()
    assert main(["fit", "bora_sweep.yaml"]) == 2
    assert "model.name is not set" in capsys.readouterr().err
    uncommented = re.sub(r"^# (model:|  (?:name|max_tokens):)", r"\1", text, flags=re.MULTILINE)
    assert set(parse_yaml(uncommented)) == {"data", "model"}


@pytest.mark.usefixtures("speeches")
def test_nothing_is_overwritten_and_no_refusal_writes(model_folder, capsys):
    for arguments, says in [
        (["speeches.csv", "--output", "speeches.csv"], "ends in .yaml"),
        (["speeches.csv", "--output", "no/where.yaml"], "no such folder"),
        (["nowhere.csv"], "no such file or folder"),
        ([], "name the file or folder of your documents"),
        (["speeches.csv", "other.csv"], "names the documents already"),
        (["speeches.csv", "data.text_column=nope"], "'nope'"),
        (["speeches.csv", "model.name=./nowhere"], "no such folder"),
        (["speeches.csv", f"model.name={model_folder}", "lora.target_modules=[nope]"], "nope"),
    ]:
        assert main(["init", *arguments]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["speeches.csv"]
    Path("bora_sweep.yaml").write_text("mine")
    assert main(["init", "speeches.csv"]) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert Path("bora_sweep.yaml").read_text() == "mine"


def test_what_is_said_of_cuts_is_what_a_run_cuts(speeches, model_folder):
    made = look([f"data.path={speeches}", f"model.name={model_folder}", *QUICK])
    config = made.config
    tokenizer = load_tokenizer(config.model, config.data)
    tokenized = tokenize_for(config, load_corpus(config.data), tokenizer)
    whole = tokenize_for(load_config(["model.max_tokens=100000"], base=config), load_corpus(config.data), tokenizer)
    lengths = np.diff(whole.offsets)
    assert config.model.max_tokens % 16 == 0
    assert (lengths <= config.model.max_tokens).mean() >= 0.99 > (lengths <= config.model.max_tokens - 16).mean()
    assert not tokenized.documents["was_cut"].any()
    shorter = look([f"data.path={speeches}", f"model.name={model_folder}", "model.max_tokens=24", *QUICK])
    cut = tokenize_for(shorter.config, load_corpus(config.data), tokenizer)
    share, number = cut.cut_token_fraction, int(cut.documents["was_cut"].sum())
    assert 0 < number < len(lengths)
    assert (
        f"{number} documents longer than that would be cut, {share:.1%} of all tokens"
        in shorter.why["model.max_tokens"]
    )


@pytest.mark.slow
def test_memory_is_that_of_a_plan_and_a_small_one_gets_a_micro_batch(speeches, model_folder, monkeypatch):
    settings = [f"data.path={speeches}", f"model.name={model_folder}", "model.dtype=float32", "train.batch_size=16"]
    say(Machine(2, 100 * GB, (GB,), 1), monkeypatch)
    roomy = look(settings)
    assert roomy.config.train.micro_batch_size is None
    peak = make_plan([roomy.config], "1GB").memory.peak
    assert any(f"memory: {peak / 1e6:,.1f} MB for each of 1 fit at once" in line for line in roomy.takes)
    say(Machine(2, 100 * GB, (int(peak / 0.9 * 0.8),), 1), monkeypatch)
    tight = look(settings)
    rows = tight.config.train.micro_batch_size
    assert rows is not None
    plan = make_plan([tight.config], f"{peak / 0.9 * 0.8 / GB:f}GB")
    assert plan.is_fitting
    assert plan.most_rows == rows < 16
    say(Machine(2, 1000, (), 2), monkeypatch)
    full = look(settings)
    assert full.config.train.micro_batch_size is None
    assert any("more than the" in line and "train.bank=host" in line for line in full.takes)


def test_given_settings_are_kept_and_said_to_be_given(speeches, model_folder):
    given = {"lora.rank": 3, "train.batch_size": 5, "model.max_tokens": 40, "prior.penalty": "squared"}
    made = look(
        [
            f"data.path={speeches}",
            f"model.name={model_folder}",
            *(f"{key}={value}" for key, value in given.items()),
            *QUICK,
        ]
    )
    values = flatten(made.config.to_dict())
    assert {key: values[key] for key in given} == given
    assert made.why["lora.rank"].startswith("As you said.")
    text = made.to_yaml("bora-sweep init")
    assert load_config([_written(text, speeches.parent)]) == made.config
    assert "penalty" not in text  # as by default


def test_yaml_holds_what_names_and_commands_can_be(here):
    path = here / "a: b #c\n'é'.csv"
    frame = make_frame({"ann": 9, "bob": 9}).rename(columns={"task": "who: #1", "text": "said"})
    frame.assign(said=frame["said"] + " w1" * 20).to_csv(path, index=False)
    made = look([{"data": {"path": str(path)}}])
    text = made.to_yaml(f"bora-sweep init '{path}'")
    assert load_config([_written(text, here)]) == made.config
    assert made.config.data.task_column == "who: #1"
    assert made.config.data.path == str(path)


def _written(text: str, folder: Path) -> Path:
    path = folder / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_time_is_measured_where_a_model_is_small_and_here(speeches, model_folder, monkeypatch):
    settings = [f"data.path={speeches}", f"model.name={model_folder}", *QUICK]
    assert any("not measured, as a step of" in line for line in look(settings).takes)
    monkeypatch.setattr(first_run, "CPU_WORK", 1e12)
    assert any(re.match(r"time: a step took [\d.e-]+ s, so that", line) for line in look(settings).takes)


def test_a_batch_leaves_ten_steps_where_there_are_documents_for_it():
    for number, size in [(1, 8), (40, 8), (79, 8), (160, 16), (500, 32), (640, 64), (10**6, 64)]:
        assert first_run._batch_size(number)[0] == size


def test_the_speakers():
    if not (SHARED / "data" / "speakers.parquet").exists():
        pytest.skip("needs the shared corpus and model")
    name = SHARED / "models" / "opt-en-1m"
    made = look([f"data.path={SHARED / 'data' / 'speakers.parquet'}", f"model.name={name}", "train.batch_size=8"])
    assert made.config.model.max_tokens == 256
    assert "All that the model has" in made.why["model.max_tokens"]
    assert set(parse_yaml(made.to_yaml("x"))) == {"data", "model", "lora", "train", "search"}
    assert Config().search == made.config.search


@pytest.mark.usefixtures("speeches")
def test_the_time_is_of_no_more_epochs_than_a_fit_may_have(model_folder, monkeypatch):
    monkeypatch.setattr(first_run, "CPU_WORK", math.inf)
    monkeypatch.setattr(first_run, "_step_seconds", lambda *_: 1.0)
    settings = ["data.path=speeches.csv", f"model.name={model_folder}", "train.device=cpu"]
    for most, told in ((1, "1 epoch"), (2, "2 epochs"), (100, "20 epochs")):
        takes = look([*settings, f"train.max_epochs={most}"]).takes
        assert f" fits of {told} would take" in takes[-1]


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ([], 10),
        (["search.num_trials=0", "search.baselines=[independent,shared,learnt]"], 3),
        (["search.baselines=[independent,shared,average,ties,dare,vi,fedsa]"], 12),
        (["search.taus=[10,30]", "search.seeds=2", "search.ranks=[2,4]"], 28),
        (["search.learning_rates=[0.01,0.02]"], 14),
        (["search.mode=path", "search.num_trials=3"], 5),
        (["search.unseen_folds=2"], 12),
        (["search.unseen_folds=20"], 13),
        (["data.group_column=party", "search.baselines=[independent,shared,per_group]"], 11),
    ],
)
def test_all_fits_that_a_sweep_trains_are_counted(settings, fits, speeches, model_folder):
    frame = pd.read_csv(speeches)
    frame.assign(party=frame["who"].isin(["ann"]).map(str)).to_csv(speeches, index=False)
    given = ["data.text_column=said", "data.task_column=who", "train.device=cpu"]
    made = look([f"data.path={speeches}", f"model.name={model_folder}", *given, *settings])
    assert made.why["search.num_trials"].endswith(f"With the baselines {fits} fits are trained.")
    assert any(f"adapters for each of {fits} fits" in line for line in made.takes)
    size = 4 * (3 + 1 + 2 * ("data.group_column=party" in settings)) * make_plan([made.config], "l4").num_parameters
    assert any(f"disk: {size / 1e6:,.1f} MB of adapters" in line for line in made.takes)


@pytest.mark.usefixtures("speeches")
def test_the_time_counts_the_questions_about_tau_and_names_the_range_test(model_folder, monkeypatch):
    monkeypatch.setattr(first_run, "CPU_WORK", math.inf)
    say(Machine(2, 100 * GB, (), 1), monkeypatch)
    settings = ["data.path=speeches.csv", f"model.name={model_folder}", "train.device=cpu", "search.num_trials=0"]
    took = {}
    for name in ("fine_tuned", "learnt"):
        with monkeypatch.context() as patch:
            patch.setattr(first_run, "_step_seconds", lambda *_: 3600.0)
            line = look([*settings, f"search.baselines=[independent,shared,{name}]"]).takes[-1]
        assert "3 fits of" in line
        took[name] = float(re.findall(r"would take ([\d.]+) h", line)[0])
    assert took["learnt"] / took["fine_tuned"] == pytest.approx(4 / 3, rel=0.01)  # 3.8 rounded up, over 3
    made = look([*settings, "search.num_trials=8", "train.learning_rate=auto"])
    assert "the range test of the learning rate comes on top" in made.takes[-1]
    assert "range test" in made.why["train.learning_rate"]
    assert load_config([_written(made.to_yaml("x"), Path.cwd())]).train.learning_rate == "auto"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty.parquet", r"empty\.parquet: the file is empty; data\.path needs"),
        ("qa.csv", r"It could be 'question', 'answer'; say which, .*=answer; .*data\.prompt=\"\{question\}\""),
        ("folder", "got 1: each subfolder is a task, and only one holds .txt files"),
    ],
)
def test_what_cannot_be_told_or_read_is_said_in_its_own_words(here, name, says):
    (here / "empty.parquet").touch()
    words = "a long text of more than forty characters, number "
    texts = {column: [f"{column}, {words}{n}" for n in range(18)] for column in ("question", "answer")}
    pd.DataFrame({"who": ["ann", "bob"] * 9, **texts}).to_csv("qa.csv", index=False)
    (here / "folder" / "ann").mkdir(parents=True)
    (here / "folder" / "ann" / "1.txt").write_text("a text")
    with pytest.raises(InputError, match=says):
        look([f"data.path={name}"])
    made = look(["data.path=qa.csv", "data.text_column=answer", "data.prompt={question}"])
    assert made.config.data.task_column == "who"
