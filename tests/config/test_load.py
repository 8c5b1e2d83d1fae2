"""What users write is what is used: texts to the letter, templates, paths, and refusals instead of guesses."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.cli import main
from bora_sweep.config import Config, DataConfig, load_config, read_config, with_values
from bora_sweep.data.encode import fill
from bora_sweep.errors import InputError
from bora_sweep.runs.results import read_results
from bora_sweep.runs.storage import cache_folder, folder_at
from bora_sweep.serve.export import export

NASTY = [
    *(
        " [task] a",
        "a # b",
        "#",
        "a: b",
        ": ",
        "- a",
        "[a",
        "[a]",
        "{x}",
        "${x}",
        "${",
        "\\${x}",
        "${oc.env:HOME}",
        "$HOME",
    ),
    *("???", "yes", "on", "No", "true", "1e3", "2024_01_02", "2024-01-02", "12:30:45", "007", "0x1F", "1_000", ".inf"),
    *(
        "NaN",
        "Null",
        "NULL",
        " a ",
        "\t",
        "'a'",
        '"a"',
        "it's",
        "a\\nb",
        "a\\",
        "a\nb",
        "a\r\nb",
        "\n",
        " \n a",
        "\x85",
    ),
    *(
        "\u2028x",
        "\x07",
        "\ufeff",
        "ø",
        "日本",
        "😀",
        "!!int 3",
        "&a",
        "*a",
        "|",
        ">",
        "%",
        "@a",
        "`a",
        "a=b",
        "=",
        "?",
    ),
    *("a,b", "---", "...", "x" * 300, "word " * 60, "<<", "é", "e\u0301", "\U0010ffff", "%(a)s", "%s"),
]


def through_yaml(config: Config) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(config.to_yaml().encode())
        return load_config([path])


def held(text: str) -> None:
    """A text given in any way is the text, and so is what is read back."""
    given_ways = [f"data.task_column={text}", {"data": {"task_column": text}}]
    config, other = (load_config([way]) for way in given_ways)
    assert config.data.task_column == other.data.task_column == text
    assert through_yaml(config) == read_config(config.to_json()) == load_config([config]) == config


@pytest.mark.parametrize("text", [*NASTY, "", "null", "~", "~/a"])
def test_a_text_is_what_is_written(text):
    held(text)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_what_is_written(text):
    held(text)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_configuration_reads_back_from_its_yaml(text, names):
    words = text.replace("{", "{{").replace("}", "}}")
    prompt = load_config([f"data.prompt={words}"])
    modules = load_config(
        [{"lora": {"target_modules": names}, "prior": {"groups": "layer", "group_scales": {text: 2}}}]
    )
    assert prompt.data.prompt is not None
    assert fill(prompt.data.prompt, {"task": "bo"}) == text
    for config in (prompt, modules):
        assert through_yaml(config) == read_config(config.to_json()) == config


@pytest.mark.parametrize("text", [text for text in NASTY if "\0" not in text])
def test_so_is_every_other_key_that_holds_text(text):
    for key in ("output", "init_from", "model.name", "data.path", "data.id_column", "ray.address"):
        section, _, name = key.rpartition(".")
        config = load_config([f"{key}={text}"])
        assert getattr(getattr(config, section) if section else config, name) == text, key


def test_text_in_a_file_is_text_whatever_yaml_takes_it_for(tmp_path):
    (tmp_path / "a.yaml").write_text("""
output: 2024_01_02
data: {text_column: 007, task_column: yes, id_column: 2024-01-02, time_column: 1e3, prompt: '${{HOME}}'}
model: {name: 0x10}
train: {precision: no}
""")
    config = load_config([tmp_path / "a.yaml"])
    data = config.data
    assert (config.output, config.model.name, config.train.precision) == ("2024_01_02", "0x10", "no")
    assert (data.text_column, data.task_column, data.id_column, data.time_column) == ("007", "yes", "2024-01-02", "1e3")
    assert fill(data.prompt or "", {"task": "bo"}) == "${HOME}"


def test_null_is_none_where_a_key_may_be_that_and_else_the_word(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {prompt: a, id_column: b}\nlora: {alpha: 3, target_modules: q}\n")
    (tmp_path / "b.yaml").write_text("data: {prompt: null, id_column: 'null'}\ntracking: ~\n")
    config = load_config([tmp_path / "a.yaml", "data.prompt=null", "lora.alpha=null", "lora.target_modules=null"])
    assert (config.data.prompt, config.lora.alpha, config.lora.target_modules) == (None, None, None)
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml", "data.task_column=null"])
    assert (config.data.prompt, config.data.id_column, config.data.task_column) == (None, "null", "null")
    (tmp_path / "b.yaml").write_text("data: {task_column: null}\n")
    with pytest.raises(InputError, match=r"data\.task_column=null: need text"):
        load_config([tmp_path / "b.yaml"])


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("[q_proj,v_proj]", ["q_proj", "v_proj"]),
        ("[q_proj, 007, 1e3, yes]", ["q_proj", "007", "1e3", "yes"]),
        ("['a, b', \"c\"]", ["a, b", "c"]),
        ("all-linear", "all-linear"),
        ("q_proj", "q_proj"),
        ("[qv]_proj", "[qv]_proj"),  # a regular expression
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("[]", []),
    ],
)
def test_lists_and_single_names(setting, found):
    assert load_config([f"lora.target_modules={setting}"]).lora.target_modules == found


def test_numbers_are_what_is_written():
    taus = load_config(["search.taus=[0, 1e2, 010, inf, .inf, 1_000]"]).search.taus
    assert taus == [0.0, 100.0, 10.0, math.inf, math.inf, 1000.0]
    assert load_config(["lora.rank=010"]).lora.rank == 10  # to YAML it is 8
    config = load_config(["prior.groups=matrix", "prior.group_scales.A=2", "prior.group_scales={B: 3}"])
    assert config.prior.group_scales == {"A": 2.0, "B": 3.0}
    numpy = {"lora": {"rank": np.int64(3)}, "search": {"taus": np.array([1, 2])}, "prior": {"tau": np.float32(2)}}
    config = load_config([numpy, {"output": Path("a/b"), "data": DataConfig(seed=4)}])
    assert (config.lora.rank, config.search.taus, config.prior.tau) == (3, [1.0, 2.0], 2.0)
    assert (config.output, config.data.seed) == ("a/b", 4)


@pytest.mark.parametrize(
    ("given_setting", "says"),
    [
        ({"output": 7}, "output=7: need text"),
        ({"output": True}, "output=True: need text"),
        ({"data": None}, "data=null: is a section"),
        ({"data": {"path": b"a"}}, "data.path=bytes: need text"),
        ({"prior": {"tau": True}}, "prior.tau=True: need a number"),
        ({"train": {"compile": 2}}, "train.compile=2: need true or false"),
        ({"lora": {"target_modules": {"a"}}}, "lora.target_modules={'a'}: need a list"),
        ({1: 2}, "'1': no such key"),
        ({"data": {"path": "a\ud800"}}, "data.path=.*need text"),
        (7, "a setting is"),
        ("data=foo", "data=foo: is a section"),
        ("data.path.x=3", "data.path=.*need text"),
        ("data.max_tasks=", "data.max_tasks=: need a whole number"),
        ("data.max_tasks=1e1", "data.max_tasks=1e1: need a whole number"),
        ("train.seed=9223372036854775808", "train.seed=9223372036854775808: need a whole number"),
        ("search.taus=3", "search.taus=3: need a list"),
        ("search.taus=[3", "search.taus=.*cannot be read"),
        ("search.taus=[[1]]", r"search.taus\[0\]=.*need a number"),
        ("search.taus=[a]", r"search.taus\[0\]=a: need a number"),
        ("search.baselines=[independant]", "independant: need one of zero_shot, independent"),
        ("lora.rank=${x}", "lora.rank=.*need a whole number"),
        ("tau=3", "tau=3: .*did you mean 'prior.tau'"),
        ("output = x", "output = x: .*did you mean 'output'"),
        ("=x", "=x: .*no such key"),
        ("output", "give a .yaml file or a setting"),
        ("output=", "output=.*is not a path"),
        ("model.name=", "model.name=.*is not a path"),
        ("data.path=a\0b", "data.path=.*is not a path"),
        ("data.path=s3://bucket/a.csv", "data.path=s3.*is an address"),
        ("output=~nobody-of-this-name/x", "~nobody-of-this-name has no home folder here"),
        ("lora.target_modules=[q_proj", "neither a list"),
        ("lora.target_modules=", "is empty"),
    ],
)
def test_what_is_not_a_value_of_its_key_is_refused_on_one_line(given_setting, says):
    with pytest.raises(InputError, match=says) as caught:
        load_config([given_setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "nested"),
    [
        ({"data.seed": 1}, {"data": {"seed": 1}}),
        ({"data": {"synthetic.seed": 1}}, {"data": {"synthetic": {"seed": 1}}}),
        ({"prior.group_scales.A": 2}, {"prior": {"group_scales": {"A": 2}}}),
        ({"data.sed": 1}, {"data": {"sed": 1}}),
    ],
)
def test_a_dotted_key_where_sections_are_is_shown_nested(values, nested, tmp_path):
    with pytest.raises(InputError, match="no such key; a dotted key works in key=value only; write ") as caught:
        load_config([values])
    assert repr(nested) in str(caught.value)
    (tmp_path / "a.yaml").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"a\.yaml: .*no such key; a dotted key works in key=value only; write \{'"):
        load_config([tmp_path / "a.yaml"])


def test_a_file_that_is_taken_for_something_else_is_told_how_to_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=1").mkdir()
    (tmp_path / "x=1" / "s.yaml").write_text("data: {seed: 3}")
    (tmp_path / "x=1" / "talk.txt").touch()
    for name in ("c.csv", "c.jsonl.gz", "./x=1", "./x=1/talk.txt"):
        with pytest.raises(InputError) as caught:
            load_config([name])
        assert f"{name}: give a .yaml file or a setting; for the corpus write data.path={name}" in str(caught.value)
    with pytest.raises(InputError, match=r"'x': no such key; .*; the file of that name is \./x=1/s\.yaml"):
        load_config(["x=1/s.yaml"])
    assert load_config(["./x=1/s.yaml"]).data.seed == 3
    with pytest.raises(InputError) as caught:
        load_config(["x=2/s.yaml"])
    assert "./" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"prior: [", "cannot be read as YAML"),
        (b"prior: {tau: 1}\ntrain: {seed: 1}\nprior: {tau: 2}\n", "line 3.*prior is given twice"),
        (b"prior:\n  tau: 1\n  tau: 2\n", "line 3.*tau is given twice"),
        (b"prior:\n\ttau: 1\n", "line 2"),
        (b"- a\n", "need sections"),
        (b"text", "need sections"),
        (b"prior: 3\n", "prior=3: is a section"),
        (b"\xff\xfe\xff", "cannot be read as YAML"),
        (b"output: \xe6\n", "cannot be read as YAML"),
        (b"output: a\n---\noutput: b\n", "line 2"),
        (b"output: !!python/object/apply:os.getcwd []\n", "line 1.*python/object"),
        (b"output: &a [*a]\n", "output=.*need text"),
        (b"{[a]: 1}\n", "line 1"),
        (b"? {a: 1}\n: 2\n", "line 1"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\noutput: [*b,*b]\n", "no such key"),
        (b"output: [[[[[" + b"[" * 5000, "cannot be read as YAML"),
        (b"# " + b"a" * 2**20, "give a configuration"),
    ],
)
def test_a_file_that_says_it_ill_is_refused_by_name_and_line(content, says, tmp_path):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.yaml: .*{says}") as caught:
        load_config([tmp_path / "a.yaml"])
    assert "\n" not in str(caught.value)


def test_anchors_and_merge_keys_stay(tmp_path):
    (tmp_path / "a.yaml").write_text("prior: &p {tau: 3}\ndata: {prompt: &t a b, text_column: *t}\n# \n")
    config = load_config([tmp_path / "a.yaml"])
    assert (config.prior.tau, config.data.prompt, config.data.text_column) == (3.0, "a b", "a b")
    (tmp_path / "b.yaml").write_text("search: {tau_low: 2, <<: {tau_low: 1, tau_high: 9}}\n")
    search = load_config([tmp_path / "b.yaml"]).search
    assert (search.tau_low, search.tau_high) == (2.0, 9.0)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config([tmp_path / "empty.yaml"]) == Config()


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BORA_SWEEP_CACHE", "~/cache")
    (tmp_path / "a.yaml").write_text("output: ~/o\nmodel: {name: ~/m}\n")
    given_ways = ["~/a.yaml", "data.path=~/s.csv", {"init_from": Path("~/i")}]
    config = load_config(given_ways)
    paths = (config.output, config.model.name, config.data.path, config.init_from)
    assert paths == tuple(str(tmp_path / name) for name in ("o", "m", "s.csv", "i"))
    assert load_config([Config(output="~")]).output == str(tmp_path)
    assert with_values(config, output="~/p").output == str(tmp_path / "p")
    assert through_yaml(config) == config
    assert folder_at("~/o") == folder_at(Path("~/o")) == tmp_path / "o"
    assert cache_folder() == tmp_path / "cache"
    with pytest.raises(InputError, match=f"{tmp_path}/o: not a run's folder"):
        read_results("~/o")
    with pytest.raises(InputError, match="is an address"):
        export("~/o", "s3://bucket/out")
    for address in ("s3://bucket/run[1]", "s3://bucket/run*", "file:///run"):
        with pytest.raises(InputError, match=r"are wildcards|the path itself"):
            folder_at(address)
    for name in ("a~", "./~", "./~x", "a/~"):  # a tilde elsewhere is a letter
        assert load_config([f"output={name}"]).output == name
    monkeypatch.chdir(tmp_path)
    assert folder_at("./~x") == folder_at(folder_at("./~x")) == tmp_path / "~x"


def test_a_fit_in_paths_that_begin_at_home_and_hold_signs(corpus_file, model_folder, tmp_path, monkeypatch, capsys):
    """Also where a name could be read as a setting, as a comment, as colour, or as an escape."""
    folder = tmp_path / "tau=10 #1 [red]100%[red] 'a'"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (folder / "s=1.parquet").symlink_to(corpus_file)
    (folder / "m").symlink_to(model_folder)
    small = "{lora: {rank: 1}, model: {max_tokens: 16, name: ~/m}, train: {max_epochs: 1, device: cpu}}"
    (folder / "a=b.yaml").write_text(small)
    assert main(["fit", "~/a=b.yaml", "data.path=~/s=1.parquet", "output=~/o"]) == 0
    printed = capsys.readouterr()
    assert f"results in {folder / 'o'}" in printed.out
    assert f"run folder: {folder / 'o'}" in printed.err
    assert main(["fit", "--resume", "output=~/o"]) == 0
    assert main(["status", "~/o"]) == 0
    assert main(["export", "~/o", "~/out", "--task", "ann"]) == 0
    assert (folder / "out" / "ann" / "adapter_model.safetensors").exists()
    capsys.readouterr()
    assert main(["data", "describe", str(folder / "s=1.parquet"), "~/s=1.parquet"]) == 0
    assert capsys.readouterr().out.count("s=1: 4 tasks") == 2
    assert read_results(folder / "o").trials["tau"].tolist() == [100.0]
    assert not list(Path(".").glob("~*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "describe", "a.csv", "data.path=b.csv"], "a.csv names the documents too"),
        (["data", "describe", "a=b.csv"], "a=b.csv: 'a': no such key"),
        (["data", "describe", "data.text_column=speech"], "data.text_column=speech: data.source=synthetic"),
        (["data", "describe", "data.hub_split=test", "a.csv"], "data.hub_split=test: data.source=file"),
        (["data", "describe", "data.synthetic.seed=3", "a.csv"], "data.synthetic=SyntheticConfig("),
        (["fit", "search.taus=[1]", "data.path=no.csv"], "a fit ignores these settings of a sweep: search.taus"),
        (
            ["fit", "ray.max_concurrent=1", "data.path=no.csv"],
            "a fit ignores these settings of a sweep: ray.max_concurrent",
        ),
        (["sweep", "prior.tau=3"], "a sweep chooses its own values"),
        (["sweep", "method=vi"], "search.baselines"),
        (["status", "RUN", "OTHER"], "unrecognized arguments: OTHER"),
        (["export", "RUN", "OUT", "--trial", "1", "--trial", "2"], "--trial 2: is given twice"),
        (["generate", "RUN", "P", "--task", "a", "--seed", "1", "--seed=2"], "--seed 2: is given twice"),
        (["status", "RUN", "--watch", "1", "--watch", "2"], "--watch 2.0: is given twice"),
    ],
)
def test_no_argument_is_dropped_in_silence(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").touch()
    try:
        code = main(arguments)
    except SystemExit as ended:  # argparse's own
        code = ended.code
    assert code == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_settings_of_every_kind_are_merged_and_the_later_wins(tmp_path):
    (tmp_path / "a.yaml").write_text("prior: {tau: 1}\ntrain: {max_epochs: 9, patience: 3}\n")
    base = with_values(load_config(), prior={"tau": 5.0}, lora={"rank": 3})
    config = load_config([base, tmp_path / "a.yaml", {"train": {"max_epochs": 4}}, "prior.tau=inf"])
    assert (config.prior.tau, config.train.max_epochs, config.train.patience) == (math.inf, 4, 3)
    assert config.lora.rank == 3
    assert load_config([{"prior": {"tau": 1}}, str(tmp_path / "a.yaml")]) == load_config(
        [str(tmp_path / "a.yaml"), "prior.tau=1"]
    )
