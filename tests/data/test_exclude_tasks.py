"""Tasks that `data.exclude_tasks` names are left out as if the source had no row of them."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import HOSTILE
from tiny import make_frame

from bora_sweep.config import DataConfig, load_config, read_config
from bora_sweep.config.yaml import dump_list
from bora_sweep.data.corpus import COLUMNS, load_corpus
from bora_sweep.data.known_documents import write_documents
from bora_sweep.errors import InputError

SIZES = {"ann": 14, "bob": 5, "cid": 12, "dot": 9, "eve": 16}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    made = make_frame(SIZES, seed=3)
    shared = [(task, text) for text in ("w1 w2 w3", "w7 w7") for task in SIZES]  # splits of texts that tasks share
    made = pd.concat([made, pd.DataFrame(shared, columns=["task", "text"])], ignore_index=True)
    made["when"] = [100 - "ebdca".index(task[0]) for task in made["task"]]
    return made.assign(id=[f"d{n}" for n in made.index]).sample(frac=1, random_state=0)


@pytest.mark.parametrize(
    "more",
    [{}, {"max_tasks": 2}, {"max_tasks": 2, "time_column": "when"}, {"min_documents": 10}, {"split": "sample"},
     {"max_documents": 7, "min_documents": 7}, {"seed": 5}],
)  # fmt: skip
@pytest.mark.parametrize("names", [["ann"], ["cid", "bob"], ["eve", "eve"]])
def test_it_is_as_if_the_file_had_no_row_of_them(names, more, frame, tmp_path):
    frame.to_parquet(tmp_path / "all.parquet")
    frame[~frame["task"].isin(names)].to_parquet(tmp_path / "fewer.parquet")
    ours = load_corpus(DataConfig(path=str(tmp_path / "all.parquet"), id_column="id", exclude_tasks=names, **more))
    theirs = load_corpus(DataConfig(path=str(tmp_path / "fewer.parquet"), id_column="id", **more))
    assert ours.tasks == theirs.tasks
    pd.testing.assert_frame_equal(ours.documents, theirs.documents)
    pd.testing.assert_frame_equal(ours.record, theirs.record)
    assert ours.notes[1:] == theirs.notes


def test_each_source_leaves_them_out(frame, tmp_path):
    for task, text, name in zip(frame["task"], frame["text"], frame["id"], strict=True):
        (tmp_path / "folder" / task).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / task / f"{name}.txt").write_text(text)
    (tmp_path / "hub").mkdir()
    frame.drop(columns="id").to_json(tmp_path / "hub" / "train.jsonl", orient="records", lines=True)
    for settings_ in ([f"data.path={tmp_path / 'folder'}"], [f"data.path={tmp_path / 'hub'}", "data.source=hub"]):
        assert load_corpus(load_config([*settings_, "data.exclude_tasks=[ann,dot]"]).data).tasks == (
            "bob",
            "cid",
            "eve",
        )
    whole, less = (load_corpus(load_config([f"data.exclude_tasks={names}"]).data) for names in ("[]", "[Ada,Liam]"))
    assert less.tasks == whole.tasks[1:-1]
    kept = whole.documents[~whole.documents["task"].isin(["Ada", "Liam"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(less.documents.drop(columns="split"), kept.drop(columns="split"))


def test_row_numbers_are_those_of_the_source(frame, tmp_path):
    frame.to_csv(tmp_path / "all.csv", index=False)
    documents = load_corpus(DataConfig(path=str(tmp_path / "all.csv"), exclude_tasks=["ann"])).documents
    texts = frame["text"].tolist()
    assert all(texts[int(row)] == text for row, text in zip(documents["document_id"], documents["text"], strict=True))


def test_a_note_names_five_and_a_name_without_rows_is_refused_with_the_nearest(tmp_path):
    sizes = {f"t{n}": 8 for n in range(9)}
    make_frame(sizes).to_parquet(tmp_path / "f.parquet")

    def load(*names: str, resumed: bool = False):
        return load_corpus(DataConfig(path=str(tmp_path / "f.parquet"), exclude_tasks=[*names]), resumed=resumed)

    assert load("t1").notes == ("1 task of data.exclude_tasks left out (8 documents): 't1'",)
    assert load(*[*sizes][:7]).notes == (
        "7 tasks of data.exclude_tasks left out (56 documents): 't0', 't1', 't2', 't3', 't4', 2 more",
    )
    with pytest.raises(InputError, match=r"f\.parquet has no task 'x5'; the nearest names are 't5', "):
        load("t1", "x5")
    with pytest.raises(InputError, match=r"need at least 2 tasks, got 1: 8 tasks of data\.exclude_tasks left out"):
        load(*[*sizes][:8])
    with pytest.raises(InputError, match="need at least 2 tasks, got 0"):
        load(*sizes)
    assert load("t1", "gone", resumed=True).tasks == load("t1").tasks  # its rows may have left the source too


@given(st.lists(st.one_of(st.text(), st.sampled_from(HOSTILE)), max_size=5))
@settings(max_examples=60, deadline=None)
def test_names_of_any_kind_are_given_on_the_command_line_and_read_back(names):
    names = [name for name in names if name.isprintable() or name.encode(errors="ignore").decode() == name]
    config = load_config([f"data.exclude_tasks={dump_list(names)}"])
    assert config.data.exclude_tasks == names
    assert "\n" not in dump_list(names)
    assert read_config(config.to_json()) == config
    assert hash(config.data) == hash(load_config([]).data)  # tokenizers are cached by it


@pytest.mark.parametrize("seed", range(4))
def test_splits_of_another_run_are_kept_when_a_task_is_left_out(seed, frame, tmp_path):
    frame.to_parquet(tmp_path / "all.parquet")
    settings_ = {"path": str(tmp_path / "all.parquet"), "id_column": "id", "seed": seed}
    first = load_corpus(DataConfig(**settings_))
    (tmp_path / "run").mkdir()
    write_documents(tmp_path / "run", first.record)
    again = {**settings_, "exclude_tasks": ["cid"], "split_from": str(tmp_path / "run")}
    second = load_corpus(DataConfig(**again | {"seed": seed + 1}))
    kept = first.documents[first.documents["task"] != "cid"].reset_index(drop=True)
    pd.testing.assert_frame_equal(second.documents, kept[COLUMNS])
    without = load_corpus(DataConfig(**settings_ | {"exclude_tasks": ["cid"], "seed": seed + 1}))
    assert without.documents["split"].tolist() != kept["split"].tolist()  # so that the record decided
