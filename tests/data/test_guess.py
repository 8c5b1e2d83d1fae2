"""Columns that neither settings nor usual names tell: one that alone can be meant is taken, several are asked."""

import json

import pandas as pd
import pytest
from tiny import make_frame

from bora_sweep.config import load_config
from bora_sweep.data.guess import guess_columns
from bora_sweep.errors import InputError

SPEECHES = make_frame({"ann": 12, "bob": 9, "cid": 9}, longest=40).rename(columns={"task": "speaker", "text": "speech"})
SPEECHES["speech"] += " and so on until the end of it"


def guessed(frame: pd.DataFrame, tmp_path, *settings: str, suffix: str = "csv") -> dict[str, str]:
    path = tmp_path / f"speeches.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    else:
        frame.to_parquet(path)
    guesses = guess_columns(load_config([f"data.path={path}", *settings]).data)
    return {key: guess.column for key, guess in guesses.items()}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_only_columns_that_can_be_meant_are_taken(suffix, tmp_path):
    frame = SPEECHES.assign(number=range(len(SPEECHES)), weight=0.5)
    assert guessed(frame, tmp_path, suffix=suffix) == {"text_column": "speech", "task_column": "speaker"}


def test_columns_of_usual_names_and_those_that_are_named_need_no_guess(tmp_path):
    usual = SPEECHES.rename(columns={"speaker": "task", "speech": "text"}).assign(party="left")
    assert guessed(usual, tmp_path) == {}
    assert guessed(SPEECHES, tmp_path, "data.task_column=speaker", "data.text_column=speech") == {}


def test_several_candidates_are_listed_in_one_line_with_the_mend(tmp_path):
    frame = SPEECHES.assign(party=["left", "right"] * 15)
    with pytest.raises(InputError) as caught:
        guessed(frame, tmp_path)
    said = str(caught.value)
    assert "'speaker' (3 names), 'party' (2 names)" in said
    assert said.endswith("data.task_column=speaker")
    assert "\n" not in said
    assert guessed(frame, tmp_path, "data.task_column=party") == {"text_column": "speech"}


@pytest.mark.parametrize(
    "speaker",
    [
        ["ann"] * 30,  # one name
        [f"speaker {row}" for row in range(30)],  # as many names as rows
        [["ann", "bob", "cid"][row % 3] * 50 for row in range(30)],  # too long for names
        [["ann", None, "cid"][row % 3] for row in range(30)],  # a row without one
        [["ann", "bob", " "][row % 3] for row in range(30)],  # a blank one
    ],
)
def test_what_cannot_name_tasks_is_not_taken(speaker, tmp_path):
    frame = SPEECHES.assign(speaker=speaker)
    with pytest.raises(InputError, match=r"no column 'task'.*set data\.task_column=NAME"):
        guessed(frame, tmp_path, "data.text_column=speech")


def test_two_columns_of_long_text_are_left_to_the_user(tmp_path):
    with pytest.raises(InputError, match=r"which column holds the text\? It could be 'speech', 'notes'"):
        guessed(SPEECHES.assign(notes=SPEECHES["speech"]), tmp_path)


def test_a_column_of_splits_is_taken_if_it_has_no_other_values(tmp_path):
    splits = ["train", "validation", "test"] * 10
    assert guessed(SPEECHES.assign(split=splits), tmp_path)["split_column"] == "split"
    frame = SPEECHES.assign(split=[split.replace("test", "held") for split in splits])
    with pytest.raises(InputError, match="'split'"):  # now it could as well name the tasks
        guessed(frame, tmp_path)


def test_columns_of_lists_are_no_candidates(tmp_path):
    rows = [
        {"who": "ab"[row % 2], "messages": [{"role": "user", "content": "w1"}], "meta": {"id": row}} for row in range(8)
    ]
    assert guessed(pd.DataFrame(rows), tmp_path, suffix="jsonl") == {"task_column": "who"}


def test_a_file_that_cannot_be_read_is_refused_as_a_run_refuses_it(tmp_path):
    (tmp_path / "x.tsv").write_text("a\tb")
    with pytest.raises(InputError, match=r"save it comma-separated"):
        guess_columns(load_config([f"data.path={tmp_path / 'x.tsv'}"]).data)
