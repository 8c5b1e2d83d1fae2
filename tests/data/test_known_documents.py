"""Documents that a run knows stay in their splits, whatever else changes; nothing that was trained on is scored."""

import hashlib
import io
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny import make_frame

from bora_sweep.cli import main
from bora_sweep.config import DataConfig
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.known_documents import (
    DOCUMENTS,
    known_splits,
    make_record,
    read_documents,
    with_fingerprints,
    write_documents,
)
from bora_sweep.data.split import SPLITS, sample_documents, split_documents, split_sizes
from bora_sweep.errors import InputError
from bora_sweep.prepare import prepare_fit

FRACTIONS = (0.5, 0.17, 0.33)
some_documents = st.lists(
    st.tuples(st.sampled_from("abc"), st.text("xyz \n", min_size=1, max_size=3)), min_size=12, max_size=60
)
some_fractions = st.tuples(*[st.floats(0.05, 1)] * 3).map(lambda parts: tuple(part / sum(parts) for part in parts))


def frame_of(documents: list[tuple[str, str]]) -> pd.DataFrame:
    """Ids are rows, as where no column has them: they move when rows do."""
    frame = pd.DataFrame(documents, columns=["task", "text"])
    return with_fingerprints(frame.assign(content=None, document_id=frame.index.astype(str)), DataConfig())


# Laws


def test_without_a_run_to_go_on_from_nothing_has_moved() -> None:
    tasks, texts = "aaaaaaaabbbbbbbbcccccccc", [f"text {n % 19}" for n in range(24)]
    for seed, expected in enumerate(GOLDEN):
        splits = split_documents(tasks, texts, FRACTIONS, seed)
        assert "".join(split[1] for split in splits) == expected
        assert split_documents(tasks, texts, FRACTIONS, seed, [None] * 24) == splits


GOLDEN = ["rreraereeearrrreeerrrera", "rerarereerarrereeerrerar"]


@settings(max_examples=80, deadline=None)
@given(some_documents, some_documents, some_fractions, st.integers(0, 3), st.randoms(use_true_random=False))
def test_every_known_document_stays_whatever_the_seed_the_fractions_the_order_and_what_has_come_and_gone(
    before: list, more: list, fractions: tuple, seed: int, random
) -> None:
    old = frame_of(before)
    try:
        old["split"] = split_documents(old["task"], old["text"], FRACTIONS, 0)
    except InputError:
        return
    split_of = dict(zip(old["text"], old["split"], strict=True))
    near_of = {}
    for text, split in sorted(split_of.items(), key=lambda pair: -SPLITS.index(pair[1])):
        near_of[" ".join(text.split())] = split
    kept = random.sample(before, len(before) // 2) + more
    random.shuffle(kept)
    new = frame_of(kept)
    known = known_splits(new, make_record(old, None))
    assert known == [split_of.get(text, near_of.get(" ".join(text.split()))) for text in new["text"]]
    try:
        found = split_documents(new["task"], new["text"], fractions, seed, known, whole=True)
    except InputError:
        return
    assert all(split in (None, now) for split, now in zip(known, found, strict=True))
    for _, splits in new.assign(split=found).groupby("text")["split"]:
        assert splits.nunique() == 1  # across tasks too
    for _, splits in new.assign(split=found).groupby("task")["split"]:
        assert set(splits) == set(SPLITS)


@settings(deadline=None)
@given(st.lists(st.sampled_from(SPLITS), max_size=40), st.integers(0, 60), some_fractions, st.integers(0, 3))
def test_new_documents_fill_each_split_up_and_none_beyond_its_size(
    known: list[str], num_new: int, fractions: tuple, seed: int
) -> None:
    number = len(known) + num_new
    before, sizes = Counter(known), split_sizes(max(number, 3), fractions)
    try:
        found = split_documents(
            "a" * number, [f"text {n}" for n in range(number)], fractions, seed, [*known, *[None] * num_new]
        )
    except InputError:
        assert number < 3 or num_new < sum(not before[split] for split in SPLITS)
        return
    after = Counter(found)
    assert all(after[split] <= max(size, before[split]) for split, size in zip(SPLITS, sizes, strict=True))


def test_a_text_that_was_written_anew_is_known() -> None:
    old = frame_of([("a", "one\ntwo  three"), ("a", "cafe\u0301"), ("a", "x y")])
    known = make_record(old.assign(split=["test", "train", "test"]), None)
    new = frame_of([("a", "one\r\ntwo three\r\n"), ("a", "café"), ("a", "xy")])
    assert known_splits(new, known) == ["test", "train", None]


def test_a_known_text_in_a_new_task_is_where_it_was() -> None:
    old = frame_of([("a", f"text {n}") for n in range(12)])
    old["split"] = split_documents(old["task"], old["text"], FRACTIONS, 0)
    new = frame_of([("b", f"text {n}") for n in range(6, 24)])
    found = split_documents(new["task"], new["text"], FRACTIONS, 5, known_splits(new, make_record(old, None)))
    assert found[:6] == old["split"].tolist()[6:]


def test_a_text_of_several_splits_is_trained_on_first_and_its_own_documents_stay() -> None:
    old = frame_of([("a", "same")] * 3 + [("a", "other")]).assign(split=["test", "validation", "train", "test"])
    known = make_record(old, None)
    assert known_splits(old, known) == ["test", "validation", "train", "test"]
    assert known_splits(frame_of([("b", "same"), ("b", "other"), ("b", "new")]), known) == ["train", "test", None]
    assert known_splits(frame_of([("b", "same")]), known[known["split"] != "train"]) == ["validation"]
    found = split_documents("b" * 5, ["same", "same", *"xyz"], FRACTIONS, 0, ["test", None, None, None, None])
    assert found[:2] == ["test", "test"]


def test_a_sample_that_is_drawn_again_is_the_same() -> None:
    rows = [("a", "Aye.")] * 6 + [("a", f"text {n}") for n in range(20)] + [("b", f"more {n}") for n in range(12)]
    old = frame_of(rows)
    old["split"] = sample_documents(old["task"], FRACTIONS, 3)
    grown = frame_of([*rows, ("a", "new"), ("b", "newer")])
    known = known_splits(grown, make_record(old, None))
    assert known[: len(rows)] == old["split"].tolist()
    assert known[len(rows) :] == [None, None]


def test_what_a_run_went_on_from_and_has_not_itself_is_known_to_the_next_too() -> None:
    first = frame_of([("a", f"text {n}") for n in range(20)])
    first["split"] = split_documents(first["task"], first["text"], FRACTIONS, 0)
    record = make_record(first, None)
    second = frame_of([("a", f"text {n}") for n in range(15, 40)])
    second["split"] = split_documents(second["task"], second["text"], FRACTIONS, 1, known_splits(second, record))
    record = make_record(second, record)
    assert record["carried"].sum() == 15
    assert record["fingerprint"].is_unique
    assert known_splits(first, record) == first["split"].tolist()
    assert known_splits(second, record) == second["split"].tolist()


def test_a_task_whose_known_documents_leave_a_split_empty_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"task 'b': 4 documents with 4 distinct texts .* known documents stay in theirs"
    ):
        split_documents("aaabbbb", "uvwxyzt", FRACTIONS, 0, [None, None, None, *["train"] * 4], whole=True)


def test_texts_that_differ_in_white_space_alone_share_a_split() -> None:
    texts = [f"word {n}" for n in range(20)]
    twins = [*texts, *(f" word  {n}\r\n" for n in range(20))]
    splits = split_documents("a" * 40, twins, FRACTIONS, 0)
    assert splits[:20] == splits[20:]
    assert set(splits) == set(SPLITS)


def test_a_document_in_two_records_was_trained_on_where_one_says_so(tmp_path: Path) -> None:
    frame = frame_of([("a", f"text {n}") for n in range(9)])
    for name, split in (("one", "test"), ("two", "train")):
        write_documents(tmp_path / name, make_record(frame.assign(split=split), None))
    for order in (("one", "two"), ("two", "one")):
        known = pd.concat([read_documents(tmp_path / name) for name in order], ignore_index=True)
        assert known_splits(frame, known) == ["train"] * 9


# From files


def load(path: Path, **changes: object) -> Corpus:
    return load_corpus(DataConfig(path=str(path), **changes))  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the record of its documents, and beside it the corpus."""
    make_frame({"ann": 40, "bob": 30, "cid": 20}, longest=40).to_csv(tmp_path / "old.csv", index=False)
    write_documents(tmp_path / "run", load(tmp_path / "old.csv").record)
    return tmp_path / "run"


CHANGES = [
    {"seed": 9},
    {"train_fraction": 0.2, "test_fraction": 0.63},
    {"max_characters": 25, "min_characters": 10},
    {"max_documents": 17},
    {"max_tasks": 2, "min_documents": 25},
    {"split": "sample"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_no_setting_moves_a_known_document(run: Path, changes: dict) -> None:
    old = pd.read_csv(run.parent / "old.csv")
    new = make_frame({"ann": 9, "bob": 50, "dot": 20}, seed=5, longest=40)
    pd.concat([new, old.sample(frac=1, random_state=1)]).to_csv(run.parent / "new.csv", index=False)
    texts = pd.read_csv(run.parent / "new.csv")["text"]
    corpus = load(run.parent / "new.csv", split_from=str(run), **changes)
    before = read_documents(run).set_index("fingerprint")["split"].to_dict()
    whole = with_fingerprints(
        pd.DataFrame({"text": texts[corpus.documents["document_id"].astype(int)], "content": None}), DataConfig()
    )
    now = dict(zip(whole["fingerprint"], corpus.documents["split"], strict=True))
    num_known = sum(mark in before for mark in now)
    assert num_known > 20
    assert all(before.get(mark, split) == split for mark, split in now.items())
    assert f"splits kept from {run}: " in corpus.notes[-1]
    assert f"{num_known} documents known there" in corpus.notes[-1]


def test_the_record_names_documents_by_fingerprint_and_holds_no_text(run: Path) -> None:
    corpus, record = load(run.parent / "old.csv"), pd.read_parquet(run / DOCUMENTS)
    assert record.columns.tolist() == [
        "task", "document_id", "fingerprint", "loose_fingerprint", "split", "carried"
    ]  # fmt: skip
    assert record["fingerprint"].tolist() == [
        hashlib.sha256(text.encode()).hexdigest()[:32] for text in corpus.documents["text"]
    ]
    for column in ("task", "document_id", "split"):
        assert record[column].tolist() == corpus.documents[column].tolist()
    assert not record["carried"].any()


@pytest.mark.parametrize("how", ["absent", "torn", "foreign", "null"])
def test_a_folder_without_a_sound_record_is_refused(run: Path, how: str) -> None:
    file = run / DOCUMENTS
    if how == "absent":
        file.unlink()
    elif how == "torn":
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "foreign":
        pq.write_table(pa.table({"text": ["x"]}), file)
    else:
        pd.read_parquet(file).assign(fingerprint=None).to_parquet(file)
    with pytest.raises(InputError, match=r"documents\.parquet"):
        load(run.parent / "old.csv", split_from=str(run))


# From a fit to the next

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=1", "train.device=cpu", "train.learning_rate=0.02"]


def splits_of(run: Path) -> dict[str, str]:
    return pd.read_parquet(run / DOCUMENTS).set_index("fingerprint")["split"].to_dict()


def test_a_fit_that_begins_with_an_export_knows_its_documents(tmp_path, model_folder, capsys):
    make_frame({"ann": 30, "bob": 20}).to_csv(tmp_path / "old.csv", index=False)
    grown = [make_frame({"ann": 40}, seed=7), pd.read_csv(tmp_path / "old.csv")]
    pd.concat(grown).to_csv(tmp_path / "new.csv", index=False)
    given = [f"model.name={model_folder}", *SMALL]
    run, out, merged = (str(tmp_path / name) for name in ("old", "out", "merged"))
    assert main(["fit", f"data.path={tmp_path / 'old.csv'}", *given, f"output={run}"]) == 0
    assert main(["export", run, out, "--task", "ann"]) == 0
    assert main(["export", run, merged, "--merge"]) == 0
    old = splits_of(tmp_path / "old")
    assert splits_of(tmp_path / "out") == old  # of all tasks: their texts may come in any
    shutil.copytree(tmp_path / "out" / "_global", tmp_path / "alone")

    grown = [f"data.path={tmp_path / 'new.csv'}", *given, "data.seed=1"]

    def begun(*settings: str) -> tuple[dict[str, str], str]:
        console = Console(file=io.StringIO(), soft_wrap=True)
        record = prepare_fit([*grown, *settings, f"output={tmp_path / 'next'}"], False, console).record
        assert record is not None
        return record.set_index("fingerprint")["split"].to_dict(), console.file.getvalue()  # type: ignore[attr-defined]

    assert not old.items() <= begun()[0].items()
    for setting in (f"init_from={out}", f"init_from={out}/_global", f"data.split_from={run}",
                    f"model.name={merged}/_global"):  # fmt: skip
        found, said = begun(setting)
        assert old.items() <= found.items()
        assert len(found) > len(old)
        assert "50 documents known there" in said
    assert "does not say which documents it was trained on" in begun(f"init_from={tmp_path / 'alone'}")[1]
    shutil.copytree(tmp_path / "merged" / "_global", tmp_path / "elsewhere")
    (tmp_path / "linked").symlink_to(tmp_path / "out" / "ann")
    make_frame({"dot": 20, "eva": 20}, seed=3).to_csv(tmp_path / "others.csv", index=False)
    write_documents(tmp_path / "unrelated", load(tmp_path / "others.csv").record)
    for names in ([f"model.name={tmp_path / 'elsewhere'}"], [f"init_from={tmp_path / 'linked'}"],
                     [f"init_from={out}", f"data.split_from={tmp_path / 'unrelated'}"]):  # fmt: skip
        assert old.items() <= begun(*names)[0].items()
    capsys.readouterr()
    assert main(["data", "describe", str(tmp_path / "new.csv"), f"model.name={merged}/_global", "data.seed=1"]) == 0
    assert "50 documents known there" in " ".join(capsys.readouterr().out.split())

    assert main(["fit", *grown, f"init_from={out}", f"output={tmp_path / 'next'}"]) == 0
    record = (tmp_path / "next" / DOCUMENTS).read_bytes()
    shutil.rmtree(out)
    assert main(["fit", "--resume", f"output={tmp_path / 'next'}"]) == 0  # a run that goes on knows itself
    assert (tmp_path / "next" / DOCUMENTS).read_bytes() == record
