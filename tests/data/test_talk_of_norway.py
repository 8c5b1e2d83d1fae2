"""Talk of Norway, from small files in its schema: what is read, who is taken, and what is fetched."""

import csv
import hashlib
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from tiny import SHARED

from bora_sweep.config import DataConfig, load_config
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.split import split_sizes
from bora_sweep.data.talk_of_norway import corpus as talk_of_norway
from bora_sweep.data.talk_of_norway import speeches as speeches_module
from bora_sweep.data.talk_of_norway.corpus import RULES, select
from bora_sweep.errors import InputError
from bora_sweep.report.paper.compare import published_table

HEADER = [
    "id", "url_rep_id", "rep_id", "rep_first_name", "rep_last_name", "rep_name", "county", "party_id", "party_name",
    "rep_gender", "language", "date", "time", "session", "order", "title", "keyword", "text",
]  # fmt: skip


def speech(number: int, **values: str) -> dict[str, str]:
    made = {"id": f"tale{number:06}", "date": "1998-10-07", "order": str(number), "title": "representant"}
    return {**made, "time": "1998-10-07T00:00:00+02:00", "text": f"Ærede president, tale nummer {number}.", **values}


def of(name: str, rep_id: str, numbers: range, **values: str) -> list[dict[str, str]]:
    return [speech(number, rep_name=name, rep_id=rep_id, **values) for number in numbers]


def written(rows: list[dict[str, str]]) -> bytes:
    """As R's write.csv has it: strings quoted, quotes doubled, NA for no value."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, HEADER, restval="NA", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().replace('"NA"', "NA").encode()


def archive(content: bytes) -> bytes:
    """What the authors pack: a folder of annotations, and the file among them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in (("data/annotations/tale000001.tsv", b"1\tx"), ("data/ton.csv", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: Path, selection: str = "all", **settings: object) -> Corpus:
    return load_corpus(DataConfig(source="talk_of_norway", path=str(path), selection=selection, **settings))  # type: ignore[arg-type]


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROWS = [
    *of("Åse Bø", "ÅB", range(1, 9)),
    speech(9, rep_name="Åse Bø", rep_id="ÅB", text='Hun sa: "Nei, takk",\nog gikk.\n\nÆ, ø og å blir, 😀 også.'),
    *of("Per O. Hansen", "PH1", range(10, 18)),
    *of("Per O. Hansen", "PH2", range(20, 27)),
    speech(30, title="president", text="Neste taler."),
    speech(31, title="NA", text="Hvem sa dette?"),
    speech(32, rep_name="Åse Bø", rep_id="ÅB", text=""),
    speech(33, rep_id="KN", rep_first_name="Kari", rep_last_name="Nordmann", text="Navn i to deler."),
    *of("NA", "KN", range(34, 39), rep_first_name="Kari", rep_last_name="Nordmann"),
]


def test_every_character_comes_through_and_what_is_left_out_is_counted(tmp_path: Path):
    (tmp_path / "ton.csv").write_bytes(written(ROWS))
    corpus = load(tmp_path / "ton.csv")
    texts = corpus.documents.set_index("document_id")["text"]
    assert texts["tale000009"] == ROWS[8]["text"]
    assert corpus.documents["task"].value_counts().to_dict() == {
        "Åse Bø": 9, "Per O. Hansen (PH1)": 8, "Per O. Hansen (PH2)": 7, "Kari Nordmann": 6,
    }  # fmt: skip
    assert corpus.notes == (
        "1 row of the president of the house left out",
        "1 row without a name left out",
        "1 row without a text left out",
    )


def test_folder_file_and_archive_hold_the_same(tmp_path: Path):
    content = written(ROWS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ton.csv").write_bytes(content)
    (tmp_path / "ton101.tar.gz").write_bytes(archive(content))
    found = [load(tmp_path / name).documents for name in ("", "data/ton.csv", "ton101.tar.gz")]
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other)


def test_it_is_read_once_and_anew_where_the_reader_has_changed(tmp_path: Path, cache: Path, monkeypatch):
    (tmp_path / "ton.csv").write_bytes(written(ROWS))
    load(tmp_path)
    (kept,) = cache.glob("*.parquet")
    monkeypatch.setattr(speeches_module, "_convert", lambda *_: pytest.fail("read again"))
    load(tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("BORA_SWEEP_CACHE", str(cache))
    monkeypatch.setattr(speeches_module, "VERSION", speeches_module.VERSION + 1)
    load(tmp_path)
    assert len(list(cache.iterdir())) == 2
    assert kept.exists()


def test_blocks_join_to_what_one_block_holds(tmp_path: Path, cache: Path, monkeypatch):
    (tmp_path / "ton.csv").write_bytes(written(ROWS))
    whole = load(tmp_path)
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.setattr(speeches_module, "ROWS", 3)
    parts = load(tmp_path)
    pd.testing.assert_frame_equal(whole.documents, parts.documents)
    assert whole.notes == parts.notes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    """A file of 129 MB in blocks of 500 rows: measured, the process grew by 74 MB, and by 425 MB with one block."""
    line = written([speech(1, rep_name="Åse Bø", rep_id="ÅB", text='Hun sa "nei".\n' * 800)]).split(b"\r\n", 1)
    with open(tmp_path / "ton.csv", "wb") as file:
        file.write(line[0] + b"\r\n")
        for _ in range(10_000):
            file.write(line[1])
    size = (tmp_path / "ton.csv").stat().st_size
    assert size > 120e6
    code = (
        "import re, sys\nfrom pathlib import Path\nimport bora_sweep.data.talk_of_norway.speeches as s\ns.ROWS = 500\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\ns._convert(Path(sys.argv[1]), Path(sys.argv[2]))\nprint(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ton.csv"), str(tmp_path / "out.parquet")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(grown.stdout) * 1024 < size


def people(speeches: dict[str, int], firsts: list[str] | None = None) -> pd.DataFrame:
    order = firsts or list(speeches)
    frame = pd.DataFrame({"name": list(speeches), "speeches": list(speeches.values())}, index=list(speeches))
    return frame.assign(first=[order.index(name) for name in speeches])


def test_the_papers_text_takes_the_first_in_time_with_more_than_100():
    counts = {f"p{i:02}": 101 + i for i in range(30)} | {"a": 100, "b": 5_000}
    order = ["b", "a", *sorted((name for name in counts if name.startswith("p")), reverse=True)]
    taken = list(select(people(counts, order), RULES["paper"]))
    assert taken == ["b", *(f"p{i:02}" for i in range(29, 5, -1))]


def test_the_published_code_takes_the_first_by_name_with_more_than_200_and_fewer_than_1000():
    counts = {"Å. Aa": 500, "B. C. D": 201, "Zz": 999, "A": 200, "Ab": 1_000, **{f"M{i:02}": 300 for i in range(30)}}
    taken = select(people(counts), RULES["published_code"])
    assert list(taken.values())[:2] == ["b c d", "m00"]
    assert len(taken) == 25
    assert not {"A", "Ab", "Zz", "Å. Aa"} & set(taken)


def test_time_orders_by_day_then_by_place_within_it(tmp_path: Path):
    rows = [
        *of("Late Day", "A", range(1, 4), date="1999-01-01"),
        *of("Late Hour", "B", range(20, 23)),
        *of("Early Hour", "C", range(10, 13)),
        *of("No Day", "D", range(30, 33), date="NA", time="NA"),
    ]
    (tmp_path / "ton.csv").write_bytes(written(rows))
    found = talk_of_norway.people_of(
        pd.read_parquet(speeches_module.speeches(tmp_path / "ton.csv"))[["person", "name", "day", "place"]]
    )
    assert found.sort_values("first").index.tolist() == ["C", "B", "A", "D"]


def test_max_tasks_keeps_the_order_of_the_selection(tmp_path: Path):
    rows = [
        *of("Z First", "Z", range(1, 111)),
        *of("A Second", "A", range(200, 311)),
        *of("B Third", "B", range(400, 511)),
    ]
    (tmp_path / "ton.csv").write_bytes(written(rows))
    assert load(tmp_path, "paper").tasks == ("Z First", "A Second", "B Third")
    corpus = load(tmp_path, "paper", max_tasks=2)
    assert corpus.tasks == ("Z First", "A Second")
    assert "1 task beyond the first data.max_tasks=2 by data.selection=paper left out (111 documents)" in corpus.notes


def test_the_papers_sizes_are_what_the_published_selection_and_its_split_imply():
    """As far as it can be told without the corpus: names in order, 201 to 999 speeches, halves and quarters."""
    sizes = published_table("task_sizes")
    rule = RULES["published_code"]
    assert sizes["task"].tolist() == sorted(sizes["task"])
    assert len(sizes) == rule.most
    assert set(published_table("table_a1")["task"]) == set(sizes["task"])
    assert sizes["task"].str.fullmatch(r"[^\W\d_A-Z]+( [^\W\d_A-Z]+)+").all()  # lower case, no full stops
    total = sizes[["train_docs", "validation_docs", "test_docs"]].sum(axis=1)
    assert ((rule.more_than < total) & (total < rule.fewer_than)).all()
    assert (sizes["train_docs"] == [round(n * 0.5) for n in total]).all()
    rest = total - sizes["train_docs"]
    assert (sizes["validation_docs"] == [round(n * 0.5) for n in rest]).all()
    assert (sizes["train_docs"].min(), sizes["train_docs"].max()) == (110, 477)  # the paper's section 4
    assert round(sizes["train_docs"].mean()) == 203  # "an average of 202": 202.6
    # Not the paper's text: a third for test would be more than these, and 25 speakers in time would not all be A to B.
    assert all(
        test < split_sizes(int(n), (0.5, 0.17, 0.33))[2] for test, n in zip(sizes["test_docs"], total, strict=True)
    )
    assert sizes["task"].str[0].isin(["a", "b"]).all()


@pytest.mark.skipif(not (SHARED / "paper").exists(), reason=f"needs {SHARED / 'paper'}")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("table_1", "table_1_overall"), ("table_a1", "table_a1_task_perplexity"), ("task_sizes", "task_sizes")],
)
def test_the_tables_in_the_package_are_the_papers(ours: str, theirs: str):
    pd.testing.assert_frame_equal(published_table(ours), pd.read_csv(SHARED / "paper" / f"{theirs}.csv"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"task,text\na,b\n", "no column 'id', 'rep_id'"),
        (b"", "no column"),
        (written(ROWS)[:-40] + b'"', "line 37: a double quote is never closed"),
        (written(ROWS).replace(b'"Neste taler."', b'"Neste" taler.'), "line 29: "),
        (written(ROWS).replace(b'nummer 3."', b'nummer 3.",x'), "line 4: 19 fields, but the header has 18"),
        (written(ROWS[:8]).replace(b'."\r\n', b'.",\r\n'), "line 2: 19 fields"),  # no column of row names
        (written(ROWS).replace("Å".encode(), b"\xc5"), "cannot be read as the ton.csv"),
        (
            written([*ROWS, speech(40, rep_name="X", rep_id="X", date="7. oktober")]),
            "row 33 (counted from 0): '7. oktober'",
        ),
        (written([*ROWS, *ROWS]), "two speeches have the id"),
    ],
)
def test_what_is_not_the_corpus_is_refused(tmp_path: Path, content: bytes, says: str):
    (tmp_path / "ton.csv").write_bytes(content)
    message = refusal(tmp_path)
    assert says in message
    assert "ton.csv" in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("ton101.tar.gz", b"not an archive", "damaged"),
        ("ton101.tar.gz", archive(written(ROWS))[:-30], "damaged"),
        ("ton.parquet", b"", "reads ton.csv or ton101.tar.gz"),
    ],
)
def test_a_wrong_or_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert says in message
    assert name in message


def test_an_archive_without_it_and_an_empty_folder_say_what_to_fetch(tmp_path: Path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
    (tmp_path / "other.tar.gz").write_bytes(packed.getvalue())
    assert "no ton.csv in this archive" in refusal(tmp_path / "other.tar.gz")
    message = refusal(tmp_path)
    assert talk_of_norway.ADDRESS in message
    assert "data.download=true" in message


def test_a_file_that_changed_is_refused_until_its_record_goes(tmp_path: Path):
    file = tmp_path / "ton.csv"
    file.write_bytes(written(ROWS))
    load(tmp_path)
    record = json.loads((tmp_path / "ton.csv.json").read_text())
    assert record == {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    file.write_bytes(written(ROWS[:-1]))
    message = refusal(tmp_path)
    assert record["sha256"] in message
    assert "ton.csv.json" in message
    (tmp_path / "ton.csv.json").unlink()
    load(tmp_path)
    (tmp_path / "ton.csv.json").write_text("{")
    assert "remove it" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["data.source=talk_of_norway"], "data.path"),
        (["data.source=talk_of_norway", "data.path=x", "data.task_column=party_id"], "has its own columns"),
        (["data.path=x.csv", "data.download=true"], "only data.source=talk_of_norway"),
        (["data.path=x.csv", "data.selection=published_code"], "only data.source=talk_of_norway"),
    ],
)
def test_settings_of_another_source_are_refused(settings: list[str], says: str):
    with pytest.raises(InputError, match=says):
        load_config(settings)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, in part where asked to; breaks off after `breaks[0]` bytes as long as `breaks` lasts."""

    content = b""
    breaks: tuple[int, ...] = ()
    asked: tuple[str, ...] = ()
    tag = '"1"'
    status = 200

    def do_GET(self) -> None:
        cls = type(self)
        wanted = self.headers.get("Range")
        cls.asked += (wanted or "all",)
        begin = int(wanted.split("=")[1][:-1]) if wanted and self.headers["If-Range"] == cls.tag else 0
        body = cls.content[begin:]
        if begin and not body:
            self.send_error(416)
            return
        self.send_response(cls.status if not begin else 206)
        self.send_header("ETag", cls.tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cls.breaks:
            body, cls.breaks = body[: cls.breaks[0]], cls.breaks[1:]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    handler = type("Own", (Server,), {"content": archive(written(ROWS))})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr(talk_of_norway, "ADDRESS", f"http://127.0.0.1:{served.server_port}/ton101.tar.gz")
        yield handler
        served.shutdown()


def test_a_download_that_breaks_off_goes_on_where_it_ended(tmp_path: Path, server: type[Server]):
    server.breaks = (100, 50)
    corpus = load(tmp_path / "new", download=True)
    assert server.asked == ("all", "bytes=100-", "bytes=150-")
    assert (tmp_path / "new" / "ton101.tar.gz").read_bytes() == server.content
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["ton101.tar.gz", "ton101.tar.gz.json"]
    assert len(corpus.tasks) == 4
    load(tmp_path / "new", download=True)
    assert len(server.asked) == 3  # it is there


def test_a_part_of_another_version_is_begun_anew(tmp_path: Path, server: type[Server]):
    server.breaks = (100,) + (0,) * 9
    assert "cannot be downloaded" in refusal(tmp_path, download=True)
    assert not (tmp_path / "ton101.tar.gz").exists()
    assert (tmp_path / ".ton101.tar.gz.part").stat().st_size == 100
    server.breaks, server.tag, server.content = (), '"2"', archive(written(ROWS[:20]))
    load(tmp_path, download=True)
    assert (tmp_path / "ton101.tar.gz").read_bytes() == server.content


def test_a_part_that_is_all_there_is_no_dead_end(tmp_path: Path, server: type[Server]):
    (tmp_path / ".ton101.tar.gz.part").write_bytes(server.content)
    (tmp_path / ".ton101.tar.gz.part.json").write_text(json.dumps({"tag": server.tag}))
    load(tmp_path, download=True)
    assert server.asked == (f"bytes={len(server.content)}-", "all")


def test_an_answer_that_is_no_file_says_what_to_do(tmp_path: Path, server: type[Server]):
    server.status = 404
    message = refusal(tmp_path, download=True)
    assert "404" in message
    assert "data.path" in message
    assert server.asked == ("all",)


def test_one_that_replaced_the_first_is_refused(tmp_path: Path, server: type[Server]):
    load(tmp_path, download=True)
    (tmp_path / "ton101.tar.gz").unlink()
    server.content = archive(written(ROWS[:20]))
    assert "not the file that was first used" in refusal(tmp_path, download=True)


def test_the_small_experiment_writes_the_corpus_it_was_made_of(tmp_path: Path):
    from talk_of_norway import write_corpus

    made = pd.DataFrame({"task": ["Åse (play)"] * 7 + ["Bo (play)"] * 8, "play": "play", "order": range(15)})
    made["text"] = [f'Line {i}, "said"\nin two.' for i in range(15)]
    write_corpus(made, tmp_path / "ton.csv")
    corpus = load(tmp_path)
    assert corpus.tasks == ("Bo", "Åse")
    assert corpus.documents.sort_values("document_id")["text"].tolist() == made["text"].tolist()
    assert corpus.notes == ("2 rows of the president of the house left out",)
