import datetime
import gzip
import json
import os
import sys
import types
import unicodedata
from collections import Counter
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.config import DataConfig
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.split import SPLITS, split_documents, split_sizes
from bora_sweep.data.task_folders import folder_name
from bora_sweep.errors import InputError

SPEAKERS = Path(__file__).parents[3] / "shared" / "data" / "speakers.parquet"
FRACTIONS = (0.5, 0.17, 0.33)


def rows(num_tasks: int = 3, num_documents: int = 6) -> pd.DataFrame:
    pairs = [(f"t{task}", f"task {task}, document {i}") for i in range(num_documents) for task in range(num_tasks)]
    return pd.DataFrame(pairs, columns=["task", "text"])


def write(frame: pd.DataFrame, path: Path) -> Path:
    """In the format and compression that the path's suffixes name."""
    if ".csv" in path.suffixes:
        frame.to_csv(path, index=False)
    elif ".jsonl" in path.suffixes:
        frame.to_json(path, orient="records", lines=True)
    else:
        plain = path.with_suffix("") if path.suffix == ".gz" else path
        frame.to_parquet(plain, index=False)
        if plain != path:
            path.write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def load(path: Path | str, **settings: object) -> Corpus:
    return load_corpus(DataConfig(path=str(path), **settings))  # type: ignore[arg-type]


def refusal(path: Path | str, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert Path(path).name in message
    assert "\n" not in message
    return message


# Formats


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".parquet.gz", ".csv.gz", ".jsonl.gz"])
def test_every_format_gives_the_same_corpus(tmp_path: Path, suffix: str) -> None:
    frame = rows()
    frame.loc[4, "text"] = 'commas, "quotes"\nand 漢字 🙂'
    corpus = load(write(frame, tmp_path / f"talk{suffix}"))
    assert corpus.name == "talk"
    assert corpus.tasks == ("t0", "t1", "t2")
    assert corpus.notes == ()
    assert list(corpus.documents) == ["task", "prompt", "text", "content", "document_id", "split", "floor_nll_nats"]
    expected = frame.assign(document_id=[str(row) for row in range(len(frame))]).sort_values("task", kind="stable")
    for column in expected:
        assert corpus.documents[column].tolist() == expected[column].tolist()
    assert corpus.documents["floor_nll_nats"].dtype == np.float64
    assert np.isnan(corpus.documents["floor_nll_nats"]).all()
    assert corpus.documents.index.tolist() == list(range(len(frame)))


def test_a_folder_has_a_task_per_subfolder_and_a_document_per_file(tmp_path: Path) -> None:
    frame = rows(2, 6)
    for row, (task, text) in enumerate(frame.itertuples(index=False)):
        (tmp_path / task).mkdir(exist_ok=True)
        (tmp_path / task / f"{row:02}.txt").write_text(text, encoding="utf-8-sig" if row == 3 else "utf-8")
    (tmp_path / "t0" / "notes.md").write_text("not read")
    (tmp_path / "t0" / ".hidden.txt").write_text("not read")
    (tmp_path / ".git").mkdir()
    (tmp_path / "pictures").mkdir()
    for foreign in ("._00.txt", "00.txt~", "#00.txt#", ".00.txt.swp", ".~lock.00.txt#", "Thumbs.db", ".DS_Store"):
        (tmp_path / "t0" / foreign).write_bytes(b"\0\xff")
    (tmp_path / "t0" / "folder.txt").mkdir()
    (tmp_path / ".git" / "one.txt").write_text("not read")
    corpus = load(tmp_path)
    assert corpus.name == tmp_path.name
    assert corpus.documents["document_id"].tolist() == [
        *(f"t0/{row:02}.txt" for row in range(0, 12, 2)),
        *(f"t1/{row:02}.txt" for row in range(1, 12, 2)),
    ]
    assert sorted(corpus.documents["text"]) == sorted(frame["text"])
    assert corpus.notes == ("1 subfolder without a .txt file skipped",)


def test_texts_elsewhere_in_a_folder_are_counted_and_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for task, text in rows(2, 6).itertuples(index=False):
        (tmp_path / task / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / task / f"{text[-1]}.txt").write_text(text)
    (tmp_path / "t0" / "deep" / "more.txt").write_text("not read")
    (tmp_path / "readme.txt").write_text("not read")
    assert load(tmp_path).notes == ("2 .txt files not directly in a subfolder skipped",)
    (tmp_path / "t0" / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone\.txt: cannot be read"):
        load(tmp_path)
    (tmp_path / "t0" / "gone.txt").unlink()
    Path(os.fsdecode(bytes(tmp_path / "t0") + b"/\xe6.txt")).write_text("text")
    with pytest.raises(InputError, match="a name that is not UTF-8"):
        load(tmp_path)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("offline_hub")
def test_a_local_data_set_equals_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    path = write(rows(), tmp_path / "set" / "train.parquet")
    corpus = load(tmp_path / "set", source="hub")
    assert corpus.name == "set"
    pd.testing.assert_frame_equal(corpus.documents, load(path).documents)
    assert "no column 'speaker' (data.task_column)" in refusal(tmp_path / "set", source="hub", task_column="speaker")
    message = refusal(tmp_path / "set", source="hub", hub_split="rest")
    assert "data.hub_split=rest" in message
    assert "train" in message


@pytest.mark.usefixtures("offline_hub")
def test_labels_of_a_data_set_are_their_names(tmp_path: Path) -> None:
    import datasets

    frame = rows(2).assign(label=lambda f: f["task"].map({"t0": 1, "t1": 0}))
    features = datasets.Features(
        {"text": datasets.Value("large_string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    made = datasets.Dataset.from_dict({name: frame[name].tolist() for name in features}, features)
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "train.parquet")
    for path, source in ((tmp_path / "set", "hub"), (tmp_path / "set" / "train.parquet", "file")):
        corpus = load(path, source=source, task_column="label")
        assert corpus.tasks == ("no", "yes")
        assert set(corpus.documents.query("task == 'yes'")["text"]) == set(frame.query("task == 't0'")["text"])


@pytest.mark.usefixtures("offline_hub")
def test_a_data_set_that_was_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    frame = rows(2).assign(label=lambda f: f["task"].map({"t0": 1, "t1": 0}))
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({name: frame[name].tolist() for name in features}, features)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made.select(range(3)), "rest": made}).save_to_disk(tmp_path / "several")
    for folder, split in (("one", "train"), ("several", "rest"), ("several/rest", "train")):
        corpus = load(tmp_path / folder, source="hub", task_column="label", hub_split=split)
        assert corpus.tasks == ("no", "yes")
        assert set(corpus.documents.query("task == 'yes'")["text"]) == set(frame.query("task == 't0'")["text"])
    for folder in ("one", "several"):
        assert "saved to disk; add data.source=hub" in refusal(tmp_path / folder)
        assert "data.hub_config=en" in refusal(tmp_path / folder, source="hub", hub_config="en")
    message = refusal(tmp_path / "several", source="hub", hub_split="test")
    assert "no split data.hub_split=test; the splits are train, rest" in message
    assert "data.hub_split=test" in refusal(tmp_path / "one", source="hub", hub_split="test")
    assert "no column 'task'" in refusal(tmp_path / "one", source="hub")
    (tmp_path / "one" / "state.json").write_text("{")
    assert "cannot be loaded" in refusal(tmp_path / "one", source="hub")


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, "bool"), (1.0, "double"), (["a"], "list"), ({"en": "a"}, "struct"), (b"a", "binary"), (Decimal(1), "dec")],
)
def test_other_kinds_of_columns_are_no_names(tmp_path: Path, value: object, kind: str) -> None:
    frame = rows(2).assign(kind=[value] * 12)
    (tmp_path / "set").mkdir()
    frame.to_parquet(tmp_path / "set" / "train.parquet")
    for path, source in ((tmp_path / "set", "hub"), (tmp_path / "set" / "train.parquet", "file")):
        for key in ("task_column", "id_column"):
            assert f"values of type {kind}" in refusal(path, source=source, **{key: "kind"})


@pytest.mark.usefixtures("offline_hub")
def test_a_data_set_out_of_reach_is_one_message(tmp_path: Path) -> None:
    message = refusal("nobody/nothing-of-this-name", source="hub")
    assert "cannot be loaded" in message
    assert "network" in message
    assert "cannot be loaded" in refusal(tmp_path / "absent", source="hub")


def test_without_datasets_only_the_hub_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    load(write(rows(), tmp_path / "x.csv"))
    assert "datasets" in refusal(tmp_path, source="hub")


def test_the_embedded_corpus_goes_through_the_same_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = rows().assign(document_id=lambda f: "d" + f.index.astype(str), floor_nll_nats=1.5)
    frame.loc[3, "text"] += " and a long tail"
    module = types.ModuleType("bora_sweep.data.synthetic")
    module.documents = lambda config: frame  # type: ignore[attr-defined]  # noqa: ARG005
    monkeypatch.setitem(sys.modules, "bora_sweep.data.synthetic", module)
    monkeypatch.setattr("bora_sweep.data.synthetic", module, raising=False)
    corpus = load_corpus(DataConfig(max_characters=20))
    assert corpus.name == "synthetic"
    assert corpus.notes == ("1 document cut at data.max_characters=20",)
    floors = corpus.documents.set_index("document_id")["floor_nll_nats"]
    assert np.isnan(floors["d3"])  # the floor is the whole document's
    assert floors.drop("d3").tolist() == [1.5] * 17


def test_csv_values_stay_strings(tmp_path: Path) -> None:
    frame = rows(2)
    frame = frame.replace({"task": {"t0": "007", "t1": "NA"}})
    frame.loc[0, "text"] = "null"
    frame["n"] = range(len(frame))
    corpus = load(write(frame, tmp_path / "x.csv"), id_column="n")
    assert corpus.tasks == ("007", "NA")
    assert corpus.documents["text"].tolist()[0] == "null"
    assert corpus.documents["document_id"].tolist() == [str(n) for n in [*range(0, 12, 2), *range(1, 12, 2)]]


def test_a_quoted_empty_field_is_an_empty_text_and_no_gap(tmp_path: Path) -> None:
    content = rows(2, 7).to_csv(index=False) + 't0,""\n'
    corpus = load(write_bytes(tmp_path / "x.csv", content.encode()))
    assert corpus.notes == ("1 document shorter than data.min_characters=1, or blank, left out",)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_documents_of_megabytes(tmp_path: Path, suffix: str) -> None:
    frame = rows(2)
    frame.loc[3, "text"] = "long, " * 500_000
    corpus = load(write(frame, tmp_path / f"x{suffix}"), max_characters=10_000_000)
    assert corpus.documents["text"].str.len().max() == 3_000_000


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_whole_numbers_become_strings(tmp_path: Path, suffix: str) -> None:
    frame = rows(2)
    frame["task"] = [{"t0": 9, "t1": 10}[task] for task in frame["task"]]
    frame["key"] = range(100, 100 + len(frame))
    corpus = load(write(frame, tmp_path / f"x{suffix}"), id_column="key")
    assert corpus.tasks == ("10", "9")  # by name
    assert corpus.documents["document_id"].tolist()[0] == "101"


def test_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    frame = rows(2)
    frame["text"] = [f"2020-01-{day:02}" for day in range(1, 13)]
    assert sorted(load(write(frame, tmp_path / "x.jsonl")).documents["text"]) == frame["text"].tolist()


def test_categories_are_text(tmp_path: Path) -> None:
    assert load(write(rows().astype("category"), tmp_path / "x.parquet")).tasks == ("t0", "t1", "t2")


def test_odd_but_valid_files_are_read(tmp_path: Path) -> None:
    body = "".join(f'{task},"{text}"\r\n\r\n' for task, text in rows(2).itertuples(index=False))
    csv_file = write_bytes(tmp_path / "x.csv", f'\ufefftask,text\r\n{body}t1,a 5" nail\r\n'.encode())
    assert 'a 5" nail' in load(csv_file).documents["text"].tolist()
    lines = [json.dumps({"text": text, "more": [1], "task": task}) for task, text in rows(2).itertuples(index=False)]
    jsonl_file = write_bytes(tmp_path / "x.jsonl", ("\ufeff" + "\n\n".join(lines)).encode())
    assert len(load(jsonl_file).documents) == 12


# Wrong input


def test_a_misspelt_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv", ".jsonl"):
        message = refusal(write(rows(), tmp_path / f"x{suffix}"), task_column="Tsak")
        assert "no column 'Tsak' (data.task_column); did you mean 'task'?" in message
        assert "'task', 'text'" in message
    assert "did you mean" not in refusal(tmp_path / "x.csv", id_column="zzz")
    assert "data.time_column" in refusal(tmp_path / "x.csv", time_column="day")


def test_a_column_twice(tmp_path: Path) -> None:
    assert "2 columns are called 'text'" in refusal(write_bytes(tmp_path / "x.csv", b"task,text,text\na,b,c\n"))


def test_no_such_file_and_unknown_type(tmp_path: Path) -> None:
    message = refusal(tmp_path / "absent.csv")
    assert "no such file" in message
    assert "data.source=hub" in message
    message = refusal(write_bytes(tmp_path / "x.tsv", b"task\ttext\n"))
    assert "unknown file type '.tsv'" in message
    assert ".parquet, .csv, .jsonl" in message


def test_a_folder_without_texts(tmp_path: Path) -> None:
    write(rows(), tmp_path / "train.parquet")
    message = refusal(tmp_path)
    assert "no subfolder holds a .txt file" in message
    assert "data.source=hub" in message


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("x.csv", b""), ("x.jsonl", b""), ("x.csv", b"\n\n"), ("x.jsonl", b"\n"), ("x.csv", b"task,text\n")],
)
def test_empty_files(tmp_path: Path, name: str, content: bytes, gz: str) -> None:
    message = refusal(write_bytes(tmp_path / (name + gz), content))
    assert "empty" in message or "no rows" in message


def test_parquet_without_rows_or_not_parquet(tmp_path: Path) -> None:
    assert "no rows" in refusal(write(rows().head(0), tmp_path / "x.parquet"))
    assert "cannot be read as .parquet" in refusal(write_bytes(tmp_path / "y.parquet", b"task,text\n"))
    assert "the file is empty" in refusal(write_bytes(tmp_path / "z.parquet", b""))


def test_broken_gzip(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(b"task,text\na,b\n")
    assert "gzip" in refusal(tmp_path / "x.csv.gz").lower()
    noise = np.random.default_rng(0).integers(33, 34 + 90, 100_000, dtype=np.uint8).tobytes().replace(b'"', b"")
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(b'{"task": "a", "text": "x"}\n' + noise)[:-30])
    refusal(tmp_path / "y.jsonl.gz")


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "line", "essence"),
    [
        ("x.csv", "task,text\na,b\nc\n", 3, "1 field, but the header has 2"),
        ("x.csv", "task,text\na,b\nc,d,e\n", 3, "3 fields"),
        ("x.csv", 'task,text\n"a","one\ntwo\n\nthree"\n\nc,"d\ne",f\n', 7, "3 fields"),
        ("x.csv", 'task,text\r\n"a","one\r\ntwo"\r\nc\r\n', 4, "1 field,"),
        ("x.csv", 'task,text\na,b\nc,"d\ne,f\ng,h\n', 3, "never closed"),
        ("x.csv", 'task,text\na,b\nc,"d" and "e\nf,g\n', 3, "quote"),
        ("x.csv", "task,text\n" + 'a,"' + "z\n" * 100_000 + '"\nc\n', 100_003, "1 field,"),
        ("x.jsonl", '{"task": "a", "text": "b"}\n\n{"task": "a", "text": \n', 3, "not JSON"),
        ("x.jsonl", '{"task": "a", "text": "b"}\n["a", "b"]\n', 2, "need one JSON object"),
        ("x.jsonl", '{"task": "a", "text": "b"}\nnull\n', 2, "need one JSON object"),
        ("x.jsonl", '["a", "b"]\n', 1, "need one JSON object"),
        ("x.jsonl", '{"task": "a", "text": "b"}\n{"task": "a", "text": 5}\n', 2, "'text' is 5"),
        ("x.jsonl", '{"task": 1, "text": "b"}\n{"task": "a", "text": "c"}\n', 2, "'task' is \"a\", but 1 in line 1"),
        ("x.jsonl", '{"task": "a", "text": "b"}\n{"task": "a", "text": "\\ud800"}\n', 2, "surrogate"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(
    tmp_path: Path, name: str, content: str, line: int, essence: str, gz: str
) -> None:
    message = refusal(write_bytes(tmp_path / (name + gz), content.encode()))
    assert f"line {line}:" in message
    assert essence in message


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("x.csv", b"task,text\na,b\nc,\xe6\xf8\n", 3),
        ("x.csv.gz", b"task,text\n" + b"a,b\n" * 50_000 + b"c,d\xff\n", 50_002),
        ("x.jsonl", b'{"task": "a", "text": "b"}\n{"task": "a", "text": "\xe5"}\n', 2),
        ("x.jsonl.gz", b'{"task": "a", "text": "b"}\n' * 50_000 + b'{"task": "\xe5", "text": "b"}\n', 50_001),
        ("x.csv", "task,text\na,b\n".encode("utf-16"), 1),
    ],
)
def test_not_utf8_is_named_by_its_line(tmp_path: Path, name: str, content: bytes, line: int) -> None:
    message = refusal(write_bytes(tmp_path / name, content))
    assert f"line {line}: byte 0x" in message
    assert "UTF-8" in message


def test_not_utf8_in_a_folder_or_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_bytes(b"one\ntwo \xe6\n")
    with pytest.raises(InputError, match=r"1\.txt, line 2: byte 0xe6, byte 5 of the line, is not UTF-8"):
        load(tmp_path)
    text = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"task": ["a", "b"], "text": text}), tmp_path / "x.parquet")
    assert "UTF8" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("column", ["task", "text", "key"])
def test_missing_values_are_counted(tmp_path: Path, suffix: str, column: str) -> None:
    frame = rows().assign(key=lambda f: "k" + f.index.astype(str))
    frame.loc[[4, 7], column] = None
    message = refusal(write(frame, tmp_path / f"x{suffix}"), id_column="key")
    assert f"column '{column}'" in message
    assert "2 rows" in message
    assert "row 4 " in message


def test_a_blank_name_is_missing(tmp_path: Path) -> None:
    frame = rows()
    frame.loc[5, "task"] = " "
    assert "1 row, the first is row 5 " in refusal(write(frame, tmp_path / "x.csv"))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_text_that_is_no_text(tmp_path: Path, suffix: str) -> None:
    message = refusal(write(rows().assign(text=3), tmp_path / f"x{suffix}"))
    assert "column 'text' (data.text_column) holds values of type int64; it needs text" in message


def test_tasks_that_are_neither_text_nor_whole_numbers(tmp_path: Path) -> None:
    assert "type double" in refusal(write(rows().assign(task=0.5), tmp_path / "x.parquet"))


def test_ids_that_repeat(tmp_path: Path) -> None:
    path = write(rows().assign(key=["a", "b", "c", "d", "b", *"efghijklmnopq"]), tmp_path / "x.csv")
    message = refusal(path, id_column="key")
    assert "rows 1 and 4 " in message
    assert "'b' in column 'key'" in message


def test_one_task_is_too_few(tmp_path: Path) -> None:
    assert "need at least 2 tasks, got 1" in refusal(write(rows(1), tmp_path / "x.csv"))
    path = write(rows(3, 5), tmp_path / "y.csv")
    message = refusal(path, min_documents=6)
    assert "got 0: 3 tasks with fewer than data.min_documents=6 documents left out (15 documents)" in message
    message = refusal(path, small_tasks="leave_out")
    assert "3 tasks with fewer than 6 documents (data.small_tasks=leave_out) left out (15 documents)" in message


@pytest.mark.parametrize(
    ("first", "second"), [("Anna", "anna"), ("a/b", "a_b"), ("é", "e\u0301"), ("x" * 120 + "1", "x" * 120 + "2")]
)
def test_tasks_that_would_share_a_folder(tmp_path: Path, first: str, second: str) -> None:
    frame = rows().replace({"task": {"t0": first, "t1": second}})
    message = refusal(write(frame, tmp_path / "x.parquet"))
    assert "would share the folder" in message
    assert (repr(first) in message and repr(second) in message) or ascii(first) in message


# Filters


def test_filters_in_their_order_with_a_note_each(tmp_path: Path) -> None:
    frame = pd.concat(
        [
            rows(4, 8),
            pd.DataFrame({"task": "t0", "text": ["", "   ", "x"]}),
            pd.DataFrame({"task": "small", "text": ["long enough"] * 5 + ["y"]}),
            pd.DataFrame({"task": "blank", "text": [" \n"]}),
        ]
    )
    frame.iloc[0, 1] = "abcdefghijklmnopqrstuvwxyz"
    path = write(frame, tmp_path / "x.parquet")
    corpus = load(path, min_characters=2, max_characters=25, max_documents=7, max_tasks=3, min_documents=6)
    assert corpus.notes == (
        "5 documents shorter than data.min_characters=2, or blank, left out",
        "1 document cut at data.max_characters=25",
        "4 documents of 4 tasks beyond data.max_documents=7 left out",
        "2 tasks with fewer than data.min_documents=6 documents left out (5 documents)",
        "1 task beyond the first data.max_tasks=3 by name left out (7 documents)",
    )
    assert corpus.tasks == ("t0", "t1", "t2")
    assert corpus.documents["text"].tolist()[0] == "abcdefghijklmnopqrstuvwxy"
    assert Counter(corpus.documents["task"]) == {"t0": 7, "t1": 7, "t2": 7}
    kept = corpus.documents.loc[corpus.documents["task"] == "t1", "document_id"]
    assert kept.tolist() == [str(4 * document + 1) for document in range(7)]  # the first, by their rows in the source


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    "times",
    [
        {"t0": 10, "t1": 9, "t2": 100},
        {"t0": "1998-10-07", "t1": "1998-10-06", "t2": "2001-01-01"},
        {"t0": 1.5, "t1": 0.5, "t2": 2.5},
        {"t0": datetime.date(1998, 10, 7), "t1": datetime.date(1998, 10, 6), "t2": datetime.date(2001, 1, 1)},
        {"t0": pd.Timestamp("1998-10-07"), "t1": pd.Timestamp("1998-10-06"), "t2": pd.Timestamp("2001-01-01")},
    ],
)
def test_tasks_in_the_order_of_their_earliest_document(tmp_path: Path, suffix: str, times: dict) -> None:
    if suffix == ".jsonl" and not isinstance(times["t0"], str | int | float):
        times = {task: str(when) for task, when in times.items()}
    frame = rows()
    frame["when"] = frame["task"].map(lambda _: times["t2"])
    for task in ("t0", "t1"):
        frame.loc[np.flatnonzero(frame["task"] == task)[3], "when"] = times[task]
    frame["when"] = frame["when"].tolist()
    corpus = load(write(frame, tmp_path / f"x{suffix}"), time_column="when", max_tasks=2)
    assert corpus.tasks == ("t1", "t0")
    assert corpus.documents["task"].tolist() == ["t1"] * 6 + ["t0"] * 6
    assert corpus.notes == (
        "1 task beyond the first data.max_tasks=2 by when (data.time_column) left out (6 documents)",
    )


def test_times_of_many_digits_keep_their_order(tmp_path: Path) -> None:
    times = {"t0": "20240102030405123458", "t1": "20240102030405123457", "t2": "20240102030405123459"}
    frame = rows().assign(when=lambda f: f["task"].map(times))
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert load(write(frame, tmp_path / f"x{suffix}"), time_column="when").tasks == ("t1", "t0", "t2")


@pytest.mark.parametrize("when", ["1e400", "inf", "nan"])
def test_a_number_that_is_not_finite_is_no_time(tmp_path: Path, when: str) -> None:
    frame = rows().assign(when=["1.5", "1.5", "1.5", "1.5", when, *["1.5"] * 13])
    assert "row 4 (counted from 0): " in refusal(write(frame, tmp_path / "x.csv"), time_column="when")
    frame["when"] = frame["when"].astype(float)
    assert "row 4 (counted from 0): " in refusal(write(frame, tmp_path / "x.parquet"), time_column="when")


def test_what_is_no_time_is_named_by_its_row(tmp_path: Path) -> None:
    frame = rows().assign(when="1998-10-07")
    frame.loc[4, "when"] = "yesterday"
    message = refusal(write(frame, tmp_path / "x.csv"), time_column="when")
    assert "row 4 (counted from 0): 'yesterday' in column 'when'" in message
    frame["when"] = pd.Timestamp("1998-10-07")
    frame.loc[5, "when"] = None
    message = refusal(write(frame, tmp_path / "x.parquet"), time_column="when")
    assert "row 5 (counted from 0): nothing in column 'when'" in message


@pytest.mark.parametrize(
    ("suffix", "when", "shown"),
    [
        (".csv", "now", "'now'"),
        (".csv", "today", "'today'"),
        (".jsonl", "now", "'now'"),
        (".jsonl", True, "true"),
        (".parquet", False, "false"),
        (".parquet", float("inf"), "inf"),
        (".parquet", datetime.time(1, 2), "01:02:00"),
        (".parquet", datetime.timedelta(hours=3), "3:00:00"),
        (".parquet", b"1", "b'1'"),
    ],
)
def test_what_moves_with_the_clock_or_is_no_time_is_refused(
    tmp_path: Path, suffix: str, when: object, shown: str
) -> None:
    for others, row in ((when, 0), ("1998-10-07", 3)):
        if others is when or isinstance(when, str):
            frame = rows().assign(when=[others] * 3 + [when] * 15)
            message = refusal(write(frame, tmp_path / f"x{suffix}"), time_column="when")
            assert f"row {row} (counted from 0): {shown} in column 'when' (data.time_column) is not a time" in message
            assert "write numbers throughout, or dates such as 1998-10-07" in message


# Splits

documents_of_tasks = st.lists(
    st.tuples(st.sampled_from("abcd"), st.text("xyz", min_size=1, max_size=3)), min_size=1, max_size=60
)
fractions = st.tuples(*[st.floats(0.05, 1)] * 3).map(lambda parts: tuple(part / sum(parts) for part in parts))


@given(st.integers(3, 2_000), fractions)
def test_sizes_are_the_fractions_rounded(num_documents: int, parts: tuple[float, ...]) -> None:
    sizes = split_sizes(num_documents, parts)
    assert sum(sizes) == num_documents
    assert min(sizes) >= 1
    if num_documents * min(parts) >= 1:
        assert all(abs(size - num_documents * part) < 1 for size, part in zip(sizes, parts, strict=True))


@given(st.lists(st.integers(3, 80), min_size=1, max_size=5), fractions, st.integers(0, 9))
def test_a_task_without_repeated_texts_gets_its_sizes(
    num_documents: list[int], parts: tuple[float, ...], seed: int
) -> None:
    tasks = [f"t{task}" for task, number in enumerate(num_documents) for _ in range(number)]
    splits = split_documents(tasks, [f"text {row}" for row in range(len(tasks))], parts, seed)
    counts = Counter(zip(tasks, splits, strict=True))
    for task, number in enumerate(num_documents):
        assert [counts[f"t{task}", split] for split in SPLITS] == split_sizes(number, parts)


@settings(max_examples=300)
@given(documents_of_tasks, st.integers(0, 3), st.randoms(use_true_random=False), st.booleans())
def test_laws_of_the_split(documents: list[tuple[str, str]], seed: int, random, whole: bool) -> None:
    def split(order: list[int]) -> dict[int, str] | str:
        tasks, texts = zip(*(documents[row] for row in order), strict=True)
        try:
            return dict(zip(order, split_documents(tasks, texts, FRACTIONS, seed, whole=whole), strict=True))
        except InputError as error:
            return str(error)

    in_order = list(range(len(documents)))
    result = split(in_order)
    shuffled = random.sample(in_order, len(in_order))
    assert split(shuffled) == result  # the order of rows decides nothing, not even a refusal
    if isinstance(result, str):
        return
    by_text: dict[str, set[str]] = {}
    by_task: dict[str, set[str]] = {}
    for row, (task, text) in enumerate(documents):
        by_text.setdefault(text, set()).add(result[row])
        by_task.setdefault(task, set()).add(result[row])
    assert all(len(splits) == 1 for splits in by_text.values())
    if whole:
        assert all(splits == set(SPLITS) for splits in by_task.values())
    for task, splits in by_task.items():
        num_texts = len({text for name, text in documents if name == task})
        assert "train" in splits
        assert len(splits) <= num_texts
        if not any(name != task and text in {t for n, t in documents if n == task} for name, text in documents):
            assert len(splits) == min(num_texts, len(SPLITS))  # a task that shares no text has every split that it can


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_decides_no_tie_between_splits(seed: int) -> None:
    random = Random(seed)
    documents = [(f"t{task}", str(text)) for task in range(20) for text in random.sample(range(200), 30)]

    def split() -> dict[tuple[str, str], str]:
        tasks, texts = zip(*documents, strict=True)
        return dict(zip(documents, split_documents(tasks, texts, FRACTIONS, 0), strict=True))

    in_order = split()
    random.shuffle(documents)
    assert split() == in_order


def test_a_shared_text_goes_where_a_task_lacks_one() -> None:
    for order in permutations("uvwx"):
        names = str.maketrans("uvwx", "".join(order))
        splits = split_documents("aaaaabbb", "uvwwxuvx".translate(names), FRACTIONS, 0)
        assert set(splits[:5]) == set(splits[5:]) == set(SPLITS)


@pytest.mark.parametrize("seed", range(3))
def test_one_frequent_text_leaves_a_task_its_sizes(seed: int) -> None:
    texts = ["Aye."] * 45 + [f"text {row}" for row in range(55)]
    splits = Counter(split_documents(["a"] * 100, texts, FRACTIONS, seed))
    assert [splits[split] for split in SPLITS] == split_sizes(100, FRACTIONS)


@given(st.lists(st.integers(1, 30), min_size=3, max_size=12), st.integers(0, 9))
def test_three_distinct_texts_are_enough_for_a_task_of_its_own(repeats: list[int], seed: int) -> None:
    texts = [f"text {text}" for text, times in enumerate(repeats) for _ in range(times)]
    assert set(split_documents(["a"] * len(texts), texts, FRACTIONS, seed)) == set(SPLITS)


def test_the_seed_decides_who_is_where_and_not_how_many() -> None:
    texts = [f"text {row}" for row in range(200)]
    first, again, other = (split_documents(["a"] * 200, texts, FRACTIONS, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert Counter(first) == Counter(other) == {"train": 100, "validation": 34, "test": 66}
    agree = np.mean([one == two for one, two in zip(first, other, strict=True)])
    assert abs(agree - sum(part**2 for part in FRACTIONS)) < 0.15  # as two independent draws


def test_texts_shared_by_tasks_leave_each_near_its_sizes() -> None:
    tasks = ["a"] * 100 + ["b"] * 100
    texts = [f"text {row}" for row in range(150)] + [f"text {row}" for row in range(100, 150)]
    counts = Counter(zip(tasks, split_documents(tasks, texts, FRACTIONS, 0), strict=True))
    for task in "ab":
        assert all(abs(counts[task, split] - 100 * part) <= 2 for split, part in zip(SPLITS, FRACTIONS, strict=True))


def test_a_task_of_one_text_cannot_be_split(tmp_path: Path) -> None:
    frame = rows(4, 8)
    frame.loc[frame["task"] == "t1", "text"] = "Aye."
    frame.loc[frame["task"] == "t2", "text"] = ["Aye.", "Nay."] * 4
    path = write(frame, tmp_path / "x.csv")
    with pytest.raises(InputError, match=r"task 't1' \(and 1 task more\): 8 documents with 1 distinct text "):
        load(path, small_tasks="leave_out")
    with pytest.raises(InputError, match=r"data\.min_documents=9"):
        load(path, small_tasks="leave_out")
    with pytest.raises(InputError, match=r"'b': 3 documents with 3 distinct texts are too few .*across tasks too"):
        split_documents("aaabbbfff", "uwzvwzuvx", FRACTIONS, 0, whole=True)  # every text but one is shared
    with pytest.raises(InputError, match="'a': 2 documents with 2 distinct texts"):
        split_documents(["a", "a", *"bbb"], ["1", "2", *"345"], FRACTIONS, 0, whole=True)


def test_a_task_with_few_texts_trains_on_the_first_and_has_the_splits_that_it_can(tmp_path: Path) -> None:
    frame = pd.concat([rows(2, 8), pd.DataFrame({"task": ["one", "two", "two"], "text": ["a", "b", "c"]})])
    corpus = load(write(frame, tmp_path / "x.csv"))
    splits = corpus.documents.groupby("task")["split"].agg(lambda names: sorted(set(names))).to_dict()
    everything = sorted(SPLITS)
    assert splits == {"one": ["train"], "two": ["train", "validation"], "t0": everything, "t1": everything}
    assert corpus.notes == (
        "2 tasks without a test document of their own: trained on, with an adapter and no test score",
    )
    alone = pd.DataFrame({"task": ["a", "a", "b", "b"], "text": list("wxyz")})
    assert "no document for test: no task has 3 documents" in refusal(write(alone, tmp_path / "y.csv"))


# Folder names


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("Anna", "Anna"),
        ("Lysander (dream)", "Lysander_dream"),
        ("Jens Stoltenberg", "Jens_Stoltenberg"),
        ("Støre, J. G.", "Støre_J._G"),
        ("e\u0301", "é"),
        ("कि", "कि"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "task"),
        ("???", "task"),
        ("_global", "global"),
        (".hidden", "hidden"),
        ("CON", "task_CON"),
        ("nul.txt", "task_nul.txt"),
        ("console", "console"),
        ("a\0b\nc", "a_b_c"),
        ("x" * 300, "x" * 100),
        ("漢" * 300, "漢" * 80),
    ],
)
def test_folder_names(task: str, folder: str) -> None:
    assert folder_name(task) == folder


@given(st.text(st.characters(codec=None), max_size=150))
def test_a_folder_name_is_safe_everywhere(task: str) -> None:
    name = folder_name(task)
    assert 1 <= len(name) <= 100
    assert len(name.encode()) <= 255
    assert not set(name) & set('<>:"/\\|?* ')
    assert all(c.isprintable() for c in name)
    assert name[0] not in "._-"
    assert name[-1] not in "._-"
    assert unicodedata.is_normalized("NFC", name)
    assert folder_name(name) == name
    assert folder_name(unicodedata.normalize("NFD", task)) == name


# Real text


@pytest.mark.skipif(not SPEAKERS.exists(), reason=f"needs {SPEAKERS}, which is not part of the repository")
def test_the_speakers() -> None:
    corpus = load(SPEAKERS)
    assert (len(corpus.tasks), len(corpus.documents), corpus.notes) == (28, 2_434, ())
    counts = pd.crosstab(corpus.documents["task"], corpus.documents["split"])[list(SPLITS)]
    assert (counts.sub(np.outer(counts.sum(axis=1), FRACTIONS)).abs() <= 1).to_numpy().all()
    source = pd.read_parquet(SPEAKERS)
    shuffled = source.sample(frac=1, random_state=0)
    again = split_documents(shuffled["task"], shuffled["text"], FRACTIONS, 0)
    splits = dict(zip(corpus.documents["document_id"], corpus.documents["split"], strict=True))
    assert again == [splits[str(row)] for row in shuffled.index]
