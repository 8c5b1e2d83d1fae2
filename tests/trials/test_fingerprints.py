"""A run goes on, and is used, on what it was begun with alone; where that has changed it says what."""

import json
import shutil

import pandas as pd
import pytest
import torch
from tiny import make_base, make_frame, make_tokenizer
from transformers import AutoModelForCausalLM

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.model.base import model_folder
from bora_sweep.runs.folder import FINGERPRINTS, config_of
from bora_sweep.runs.storage import folder_at
from bora_sweep.trials.fingerprints import Fingerprints, check_unchanged, model_fingerprint


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished fit, its data and its base, to be copied and changed."""
    folder = tmp_path_factory.mktemp("begun")
    make_frame({"ann": 14, "bob": 14, "cid": 14}).to_csv(folder / "s.csv", index=False)
    make_base("opt", dtype=torch.float32).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    assert main(["fit", *settings(folder), f"output={folder / 'run'}"]) == 0
    assert main(["export", str(folder / "run"), str(folder / "start")]) == 0
    assert main(["fit", *settings(folder), f"init_from={folder / 'start'}", f"output={folder / 'second'}"]) == 0
    return folder


def settings(folder) -> list[str]:
    return [f"data.path={folder / 's.csv'}", f"model.name={folder / 'base'}", "model.max_tokens=16", "lora.rank=2",
            "train.max_epochs=1", "train.device=cpu"]  # fmt: skip


@pytest.fixture
def place(begun):
    """The folder as it was, put back after the test."""
    kept = begun.with_name("kept")
    shutil.copytree(begun, kept)
    yield begun
    shutil.rmtree(begun)
    kept.rename(begun)


def resumed(place, capsys, run: str = "run") -> tuple[int, str]:
    capsys.readouterr()
    code = main(["fit", "--resume", f"output={place / run}"])
    return code, " ".join(capsys.readouterr().err.split())


def change(place, edit) -> None:
    frame = pd.read_csv(place / "s.csv")
    edit(frame).to_csv(place / "s.csv", index=False)


def test_what_has_not_changed_goes_on(begun, capsys):
    assert resumed(begun, capsys) == (0, resumed(begun, capsys)[1])
    assert "note:" not in resumed(begun, capsys)[1]
    told = json.loads((begun / "run" / FINGERPRINTS).read_text())
    assert list(told["tasks"]) == ["ann", "bob", "cid"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= told["model"].keys()
    assert "generation_config.json" not in told["model"]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: f.assign(task=f["task"].replace("bob", "zed")), "task 'bob' is now 'zed'"),
        (lambda f: f.assign(task=f["task"].replace({"ann": "bob", "bob": "ann"})), "task 'ann' has other texts, ids"),
        (lambda f: f[f["task"] != "bob"], "task 'bob' is gone"),
        (lambda f: pd.concat([f, make_frame({"dot": 9}, seed=5)]), "task 'dot' is new"),
        (lambda f: f.drop(index=3), "task 'ann' has 13 documents where it had 14"),
        (lambda f: f.assign(text=f["text"].where(f.index != 20, "w1 w1 w1 w2 w7")), "task 'bob' has other texts"),
        (lambda f: f.iloc[::-1], "other texts, ids, splits or another order"),
    ],
)
def test_other_data_is_refused_by_the_task(edit, says, place, capsys):
    change(place, edit)
    code, said = resumed(place, capsys)
    assert code == 2
    assert says in said
    assert "another output" in said


def test_other_weights_are_refused_wherever_they_are_used(place, capsys):
    make_base("opt", seed=1, dtype=torch.float32).save_pretrained(place / "base")
    code, said = resumed(place, capsys)
    assert code == 2
    assert "model.safetensors has changed" in said
    for command in (["generate", str(place / "run"), "--task", "ann", "w1"],
                    ["export", str(place / "run"), str(place / "full"), "--merge"]):  # fmt: skip
        assert main(command) == 2
        assert "model.safetensors has changed" in " ".join(capsys.readouterr().err.split())
    assert not (place / "full").exists()


def test_adapters_that_were_gone_for_a_while_are_known_when_they_are_back(place, capsys):
    shutil.move(place / "start", place / "away")
    assert resumed(place, capsys, "second")[0] == 0
    shutil.move(place / "away", place / "start")
    (place / "start" / "tasks.json").write_text("{}")
    code, said = resumed(place, capsys, "second")
    assert code == 2
    assert "tasks.json has changed" in said


@pytest.mark.ray
def test_a_worker_whose_machine_has_another_base_at_that_path_fits_nothing(place):
    from bora_sweep.tune.worker import cached_base

    config = config_of(place / "run")
    cached_base.cache_clear()
    assert cached_base(config.model, config.data, str(place / "run")) is not None
    make_base("opt", seed=1, dtype=torch.float32).save_pretrained(place / "base")
    cached_base.cache_clear()
    with pytest.raises(InputError, match=r"another base model .* model\.safetensors has changed"):
        cached_base(config.model, config.data, str(place / "run"))
    cached_base.cache_clear()


def test_another_tokenizer_is_refused(place, capsys):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(place / "base")
    code, said = resumed(place, capsys)
    assert (code, "tokenizer.json has changed" in said) == (2, True)


def test_how_texts_are_drawn_and_a_chat_template_change_nothing(place, capsys):
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    base.generation_config.update(do_sample=True, top_k=3, max_new_tokens=5)
    base.generation_config.save_pretrained(place / "base")
    (place / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert resumed(place, capsys)[0] == 0


def test_other_adapters_to_begin_with_are_refused_and_gone_ones_are_not(place, capsys):
    weights = place / "start" / "bob" / "adapter_model.safetensors"
    shutil.copy(place / "start" / "ann" / weights.name, weights)
    code, said = resumed(place, capsys, "second")
    assert (code, "init_from=" in said, "bob/adapter_model.safetensors has" in said) == (2, True, True)
    shutil.rmtree(place / "start")
    assert resumed(place, capsys, "second")[0] == 0


def test_a_run_of_an_older_release_goes_on_with_a_note_and_a_damaged_file_is_refused(place, capsys):
    (place / "run" / FINGERPRINTS).write_text('{"tasks": [')
    code, said = resumed(place, capsys)
    assert (code, "damaged" in said) == (2, True)
    (place / "run" / FINGERPRINTS).unlink()
    code, said = resumed(place, capsys)
    assert (code, "an older release began it without fingerprints" in said) == (0, True)
    change(place, lambda f: f.assign(task=f["task"].replace("bob", "zed")))
    assert resumed(place, capsys)[0] == 2  # from then on it is known


def test_a_message_names_a_few_changes_and_counts_the_rest():
    config = load_config(["model.name=x"])
    before = Fingerprints({f"t{i}": (3, str(i)) for i in range(9)}, "", {}, {})
    with pytest.raises(InputError, match=r"'t0' is gone.*'t4' is gone; data: and 3 more such\."):
        check_unchanged(folder_at("run"), config, before, Fingerprints({"t8": (3, "8")}, "", {}, {}))
    other = Fingerprints(dict(reversed(before.tasks.items())), "", {}, {})
    with pytest.raises(InputError, match="tasks are in another order"):
        check_unchanged(folder_at("run"), config, before, other)
    with pytest.raises(InputError, match="the same texts now have other tokens"):
        check_unchanged(folder_at("run"), config, before, Fingerprints(before.tasks, "0", {}, {}))


def test_tasks_with_equal_documents_are_renamed_one_by_one():
    config = load_config(["model.name=x"])
    before = Fingerprints({"a": (3, "0"), "b": (3, "0"), "c": (3, "1")}, "", {}, {})
    now = Fingerprints({"x": (3, "0"), "c": (3, "1"), "y": (3, "0"), "z": (3, "0")}, "", {}, {})
    with pytest.raises(InputError, match="'a' is now 'x'; data: task 'b' is now 'y'; data: task 'z' is new"):
        check_unchanged(folder_at("run"), config, before, now)


def test_a_model_of_the_hub_is_known_by_the_files_of_its_cache(begun, tmp_path, monkeypatch):
    cached = tmp_path / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(begun / "base", cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    config = load_config(["model.name=owner/name"])
    assert model_folder(config.model, config.data) == cached / "snapshots" / ("0" * 40)
    local = load_config([f"model.name={begun / 'base'}"])
    assert model_fingerprint(config.model, config.data) == model_fingerprint(local.model, local.data)
    with pytest.raises(InputError, match=r"model\.name=owner/none: cannot be fetched"):
        model_folder(load_config(["model.name=owner/none"]).model, config.data)
