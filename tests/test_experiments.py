"""The ready files under conf/: the paper's experiment, and public data sets against local files in their schema."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from bora_sweep.config import Config, load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.errors import InputError
from bora_sweep.model.base import empty_base, load_base, load_tokenizer
from bora_sweep.model.layout import make_layout
from bora_sweep.tune.points import preset_points

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENT = str(CONF / "experiment" / "talk_of_norway.yaml")
SEARCH = str(CONF / "experiment" / "talk_of_norway_search.yaml")


def experiment(*settings: str, file: str = EXPERIMENT) -> Config:
    return load_config([file, "data.path=somewhere", *settings])


def test_the_papers_geometry_has_1572864_parameters_for_each_task():
    """24 layers, 1,024 wide, two targets of rank 16 each: 24 * 2 * 16 * (1,024 + 1,024)."""
    opt_350m = OPTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, ffn_dim=4096, word_embed_proj_dim=512,
        do_layer_norm_before=False, vocab_size=50272, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device("meta"):
        base = OPTForCausalLM(opt_350m)
    assert make_layout(base, experiment().lora).num_parameters == 1_572_864


def test_the_experiment_fits_what_table_1_lists_and_both_ends_at_its_learning_rates():
    config = experiment()
    points = [point for point in preset_points(config) if point.method == "map"]
    rates = {
        point.tau: load_config([EXPERIMENT, "data.path=x", f"prior.tau={point.tau}"]).learning_rate for point in points
    }
    assert rates == pytest.approx({0.0: 1e-4, 1: 1e-5, 10: 1e-4, 100: 1e-3, 1_000: 1e-2, 10_000: 1e-1, math.inf: 1e-4})
    assert config.search.num_trials == 0
    assert (config.lora.rank, config.lora.alpha, config.train.batch_size) == (16, 16, 64)


@pytest.mark.parametrize("protocol", ["ours", "paper", "published_code"])
@pytest.mark.parametrize("file", [EXPERIMENT, SEARCH])
def test_it_stands_over_every_protocol(file: str, protocol: str):
    config = experiment(f"protocol={protocol}", file=file)
    assert config.protocol == protocol
    assert config.prior.parametrization == "centered"
    assert config.data.selection == "published_code"


def test_the_search_is_the_same_but_for_what_is_searched():
    listed, searched = experiment().to_dict(), experiment(file=SEARCH).to_dict()
    assert {name for name in listed if listed[name] != searched[name]} == {"search"}
    assert searched["search"]["num_trials"] > 0


@pytest.mark.parametrize("load", [load_tokenizer, load_base, empty_base])
def test_a_model_out_of_reach_is_answered_by_the_command_that_fetches_it(load):
    config = experiment()
    with pytest.raises(InputError) as caught:
        load(config.model, config.data)
    message = str(caught.value)
    assert "`hf download facebook/opt-350m --revision refs/pr/33 --local-dir ./opt-350m" in message
    assert "set model.name=./opt-350m" in message
    assert ("tokenizer" if load is load_tokenizer else "model") in message


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["config.json", "pytorch_model.bin"], "weights in *.bin are pickles, which are never loaded"),
        (["config.json", "model.safetensors"], "the folder lacks tokenizer.json"),
        (["tokenizer.json"], "the folder lacks config.json and *.safetensors"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path, names: list[str], says: str):
    for name in names:
        (tmp_path / name).write_text("{}")
    config = experiment(f"model.name={tmp_path}")
    for load in (load_tokenizer, load_base):
        with pytest.raises(InputError) as caught:
            load(config.model, config.data)
        assert says in str(caught.value)
    with pytest.raises(InputError, match=r"hf download OWNER/NAME --local-dir \./nowhere"):
        load_tokenizer(experiment("model.name=./nowhere").model, config.data)


def row(name: str, task: str, number: int) -> dict[str, object]:
    """A row in the data set's own columns, as its documentation has them."""
    text = f"Something that was written, the {number}th of {task}."
    return {
        "newsgroups": {"text": text, "label": number % 20, "label_text": task},
        "dolly": {"instruction": f"Say {number}.", "context": "", "response": text, "category": task},
        "no_robots": {
            "prompt": f"Say {number}.",
            "prompt_id": str(number),
            "messages": [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": text}],
            "category": task,
        },
        "reddit": {
            "id": f"t3_{task}{number}",
            "subreddit": task,
            "title": "A title",
            "post": text,
            "summary": "Short.",
        },
    }[name]


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize("name", ["newsgroups", "dolly", "no_robots", "reddit"])
def test_a_ready_data_set_is_read_in_its_own_columns(tmp_path: Path, name: str):
    """By the hub's machinery, from a folder in the place of the hub."""
    folder = tmp_path / name
    folder.mkdir()
    tasks = {"rec.autos": 120, "sci.space": 110, "talk.politics.misc": 100, "few": 4}
    rows = [row(name, task, number) for task, count in tasks.items() for number in range(count)]
    rows.append({**row(name, "sci.space", 999), **dict.fromkeys(("text", "response", "post"), " ")})
    columns = list(row(name, "x", 0))
    lines = (json.dumps({column: values[column] for column in columns}) for values in rows)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    config = load_config([str(CONF / "data" / f"{name}.yaml"), f"data.path={folder}"])
    corpus = load_corpus(config.data)
    kept = {task: count for task, count in tasks.items() if name != "reddit" or task != "few"}
    assert corpus.tasks == tuple(sorted(kept))
    assert corpus.form == {"dolly": "prompt", "no_robots": "conversation"}.get(name, "text")
    if name == "no_robots":
        kept["sci.space"] += 1  # its blank row has no text of its own
    assert corpus.documents["task"].value_counts().to_dict() == kept
    assert corpus.documents["text"].str.startswith("Something that was written").all()
    assert any("blank, left out" in note for note in corpus.notes) == (name != "no_robots")
