"""Rows of CSV and of JSON lines are those that are written there, or the line is named that is wrong."""

import csv
import gzip
import io
import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bora_sweep.data.read import read_file
from bora_sweep.data.table import check_columns
from bora_sweep.errors import InputError

COLUMNS = {"data.text_column": "text", "data.task_column": "task"}
NASTY = st.text(st.sampled_from('",\r\n ab\t;\u2028\x0b漢\0'), max_size=8)
anywhere = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def check(source, existing, columns):
    check_columns(source, existing, columns)
    return columns


def read(path: Path, content: bytes, **more: str) -> tuple[list[tuple], list[str]]:
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    columns = {**COLUMNS, **{f"data.{key}_column": name for key, name in more.items()}}
    table, notes = read_file(path, lambda source, existing: check(source, existing, columns))
    return list(zip(table["task"].to_pylist(), table["text"].to_pylist(), strict=True)), notes


def refusal(path: Path, content: bytes, **more: str) -> str:
    with pytest.raises(InputError) as caught:
        read(path, content, **more)
    assert path.name in str(caught.value)
    return str(caught.value)


# CSV


@anywhere
@given(
    st.lists(st.tuples(NASTY, NASTY, NASTY), min_size=1, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["x.csv", "x.csv.gz"]),
    st.booleans(),
)
def test_what_a_csv_writer_wrote_is_read_back(tmp_path: Path, rows: list, end: str, name: str, bom: bool) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "more", "task"), *rows])
    content = buffer.getvalue().encode("utf-8-sig" if bom else "utf-8")
    assert read(tmp_path / name, content)[0] == [(task, text) for text, _, task in rows]


@anywhere
@given(
    st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["", '"', '""', ",", "\n", 'x"y', '"\r\n'])), max_size=3),
)
@example([("a", "b")], [(12, '"x')])
def test_a_broken_file_is_read_as_pythons_strict_reader_has_it_or_refused(
    tmp_path: Path, rows: list, changes: list[tuple[int, str]]
) -> None:
    """Among the changes: a quote too many or too few, text after a closing quote, rows joined and rows cut in two.

    Lines of white space are no rows.
    """
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    text = buffer.getvalue()
    for place, change in changes:
        place %= len(text) + 1
        text = text[:place] + change + text[place + 1 :]
    content = ("task,text\r\n" + text).encode()
    try:
        lines = list(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""))
        reader = csv.reader(lines, strict=True)
        expected = [row for row in reader if len(row) > 1 or lines[reader.line_num - 1].strip()][1:]
        is_wrong = any(len(row) != 2 for row in expected) or not expected
    except csv.Error:
        expected, is_wrong = [], True
    if is_wrong:
        message = refusal(tmp_path / "x.csv", content)
        assert "line " in message or "no rows" in message
    else:
        found, _ = read(tmp_path / "x.csv", content)
        assert [(task or "", text or "") for task, text in found] == [tuple(row) for row in expected]


@pytest.mark.parametrize(
    ("rows", "line", "essence"),
    [
        ('a,"one" and more\nb,two\nc,"three" too\n', 2, "expected after"),
        ('a,"one\nb,two\nc,"three\n', 2, "expected after"),
        ('a,one\nb,two\nc,"three\nd,four\n', 4, "never closed"),
    ],
)
def test_quotes_that_another_reader_takes_are_refused_with_their_line(tmp_path, rows, line, essence):
    message = refusal(tmp_path / "x.csv", f"task,text\n{rows}".encode())
    assert f"line {line}: " in message
    assert essence in message


def test_two_quotes_within_unquoted_fields_are_characters(tmp_path):
    rows, notes = read(tmp_path / "x.csv", b'task,text\na,say "hi\nb,two\nc,a 5" nail\n')
    assert rows == [("a", 'say "hi'), ("b", "two"), ("c", 'a 5" nail')]
    assert not notes


@pytest.mark.parametrize(
    ("content", "begun", "line", "task", "number"),
    [
        ('task,text\na,x\nb,x\nc,"hi\nb,two\nc,three\na,bye"\nb,x\n', 4, 5, "b", 3),
        ('text,task\nx,a\nx,b\n"hi,c\ntwo,b\nbye",c\n', 4, 4, "c", 2),
        ('text,task,more\nx,a,1\nx,b,2\n"\nhi","c","one\ntwo,b,3\nbye"\n', 4, 6, "b", 1),
        ('task,text\r\na,x\r\nb,"hi\r\na,bye"\r\n', 3, 4, "a", 1),
    ],
)
def test_rows_that_a_legal_pair_of_quotes_swallows_are_a_note(tmp_path, content, begun, line, task, number):
    _, notes = read(tmp_path / "x.csv", content.encode())
    assert len(notes) == 1
    assert f"{number} line" in notes[0]
    assert f"the first is line {line}, of task {task!r}, in the row that begins on line {begun}:" in notes[0]


@pytest.mark.parametrize(
    "content",
    [
        'task,text\na,"one\ntwo, three\n\nfour"\nb,"x,y"\n',
        'text,task\n"one\ntwo, three",a\n"a\nb",b\n',
        'task,text,more\na,"one\na,two",3\n',
    ],
)
def test_texts_of_several_lines_with_commas_have_no_note(tmp_path, content):
    assert read(tmp_path / "x.csv", content.encode())[1] == []


def test_a_line_feed_after_a_carriage_return_is_kept_wherever_a_block_ends(tmp_path):
    texts = ["x" * n + "\r\n" + "y\r" for n in range(8_180, 8_200)]
    content = "task,text\r\n" + "".join(f'a,"{text}"\r\n' for text in texts)
    for name in ("x.csv", "x.csv.gz"):
        assert [text for _, text in read(tmp_path / name, content.encode())[0]] == texts


def test_an_empty_field_is_no_value_and_quotes_with_nothing_between_are_an_empty_text(tmp_path):
    content = 'more,text,task\n"x, ""y""\nz",,a\n"",,b\n,"",c\n1,"","d"\n'
    assert [text for _, text in read(tmp_path / "x.csv", content.encode())[0]] == [None, None, "", ""]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("task;text\na;x, y\n", "separated by ';'; save it comma-separated"),
        ('\ufeff\n"task";"text"\r\n"a";"x"\r\n', "separated by ';'"),
        ('"task";"last, first";"text"\n', "separated by ';'"),
        ("task\ttext\na\tx\n", "separated by tabs"),
        ("sep=,\ntask,text\na,x\n", "its first line, 'sep=,', is for spreadsheets; remove it"),
        ("SEP=;\r\ntask;text\r\n", "'SEP=;'"),
        ("b" * 200_000 + ";", "separated by ';'"),
    ],
)
def test_a_file_that_is_separated_otherwise_is_said_to_be(tmp_path, content, says):
    for name in ("x.csv", "x.csv.gz"):
        assert says in refusal(tmp_path / name, content.encode())


def test_a_comma_separated_header_may_hold_other_signs(tmp_path):
    assert read(tmp_path / "x.csv", b"task,text,a;b|c\na,x,\n")[0] == [("a", "x")]
    assert read(tmp_path / "x.csv", b'"a;b\nc",task,text\n,a,x\n')[0] == [("a", "x")]


def test_lines_of_white_space_are_passed_over_like_empty_ones(tmp_path):
    content = "  \ntask,text\r\n \t \r\na,x\n\u3000\n,\n   "
    assert read(tmp_path / "x.csv", content.encode())[0] == [("a", "x"), (None, None)]
    assert "line 3: 1 field" in refusal(tmp_path / "x.csv", b'task,text\na,x\n" "\n')


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_said_to_be_that(tmp_path, encoding):
    for name in ("x.csv", "x.jsonl.gz"):
        message = refusal(tmp_path / name, "\ufefftask,text\na,b\n".encode(encoding))
        assert "save the file as UTF-8, it is UTF-16 now" in message
    assert "UTF-16" not in refusal(tmp_path / "x.csv", b"task,text\n\xff\xfe,b\n")


# JSON lines


def jsonl(*rows: object) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


@anywhere
@given(st.lists(st.tuples(st.integers(-(10**40), 10**40), NASTY), min_size=1, max_size=5))
def test_whole_numbers_of_any_length_are_names_to_the_digit(tmp_path: Path, rows: list[tuple[int, str]]) -> None:
    content = jsonl(*({"task": number, "text": text} for number, text in rows))
    assert read(tmp_path / "x.jsonl", content)[0] == [(str(number), text) for number, text in rows]


GOOD = '{"task": "a", "text": "x", "when": 1}'


@pytest.mark.parametrize(
    ("row", "essence"),
    [
        ('{"task": "a", "text": "x", "when": 9223372036854775808}', "'when' is 9223372036854775808, beyond 64 bits"),
        ('{"task": "a", "text": "x", "text": "y", "when": 1}', "'text' occurs 2 times"),
        ('{"task": "a", "text": "x", "task": "a", "when": 1}', "'task' occurs 2 times"),
        ('{"task": "a", "text": ["x"], "when": 1}', "'text' is a list"),
        ('{"task": {"name": "a"}, "text": "x", "when": 1}', "'task' is an object"),
        ('{"task": true, "text": "x", "when": 1}', "'task' is true"),
        ('{"task": 1, "text": "x", "when": 1}', "'task' is 1, but \"a\" in line 1"),
        ('{"task": "a", "text": "x", "when": true}', "'when' is true, but 1 in line 1"),
        ("[" * 100_000, "cannot be read"),
        (f'{{"task": "a", "text": "x", "when": {"1" * 5_000}}}', "cannot be read"),
    ],
)
def test_what_no_column_can_hold_is_refused_with_its_line(tmp_path, row, essence):
    message = refusal(tmp_path / "x.jsonl", jsonl(GOOD, "", row), time="when")
    assert "line 3: " in message
    assert essence in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"task": "a", "text": "x"}]\n', 'per line, got [{"task": "a", "text": "x"}]; if the file is a list of'),
        ('[\n  {"task": "a", "text": "x"}\n]\n', "; if the file is a list of objects, write each of them on a line"),
        ('{\n  "task": "a"\n}\n', "; write the whole object on this line"),
    ],
)
def test_json_of_another_layout_is_said_to_be_that(tmp_path, content, says):
    message = refusal(tmp_path / "x.jsonl", content.encode())
    assert "line 1: " in message
    assert says in message


@pytest.mark.parametrize(
    ("name", "mend"),
    [("x.tsv", "save it comma-separated"), ("x.NDJSON.gz", "rename it to .jsonl"), ("x.json", "one object per line")],
)
def test_files_near_to_those_that_are_read_are_told_what_to_do(tmp_path, name, mend):
    assert f"unknown file type '.{name.lower().split('.')[1]}'" in refusal(tmp_path / name, b"")
    assert mend in refusal(tmp_path / name, b"")


def test_ids_are_whole_numbers_throughout_and_times_any_numbers(tmp_path):
    rows = [{"task": "a", "text": "x", "n": n} for n in (1, 1.5, 2)]
    assert len(read(tmp_path / "x.jsonl", jsonl(*rows), time="n")[0]) == 3
    message = refusal(tmp_path / "x.jsonl", jsonl(*rows), id="n")
    assert "line 2: 'n' is 1.5; it needs text, or a whole number" in message


def test_what_is_not_asked_for_may_be_anything(tmp_path):
    strange = '{"task": "a", "more": NaN, "text": "x", "more": {"k": 1, "k": [1e400, 1' + "0" * 30 + "]}}"
    assert read(tmp_path / "x.jsonl", jsonl(GOOD, strange))[0] == [("a", "x")] * 2


def test_many_rows_are_read_in_their_order(tmp_path):
    random = Random(0)
    rows = [(f"t{random.randrange(9)}", f"{n} æ") for n in range(12_345)]
    lines = jsonl(*({"text": text, "task": task} for task, text in rows))
    assert read(tmp_path / "x.jsonl", lines)[0] == rows
    table = "task,text\n" + "".join(f"{task},{text}\n" for task, text in rows)
    assert read(tmp_path / "x.csv.gz", table.encode())[0] == rows


# Labels of `datasets`


def with_labels(labels: list, names: list[str] | None) -> pa.Table:
    told = {"info": {"features": {"task": {"names": names, "_type": "ClassLabel"}, "text": {"_type": "Value"}}}}
    table = pa.table({"task": pa.array(labels, pa.int64()), "text": ["x"] * len(labels)})
    return table.replace_schema_metadata({b"huggingface": json.dumps(told)})


def read_parquet(path: Path, table: pa.Table) -> list[str | None]:
    pq.write_table(table, path)
    return read_file(path, lambda source, existing: check(source, existing, COLUMNS))[0]["task"].to_pylist()


def test_labels_in_parquet_that_datasets_wrote_are_their_names(tmp_path):
    assert read_parquet(tmp_path / "x.parquet", with_labels([1, 0, -1, None], ["no", "yes"])) == [
        "yes",
        "no",
        None,
        None,
    ]
    assert read_parquet(tmp_path / "x.parquet", with_labels([1, 0], None)) == [1, 0]
    for told in (b"", b"{", b"[]", b'{"info": null}', b'{"info": {"features": [1]}}'):
        table = with_labels([1, 0], []).replace_schema_metadata({b"huggingface": told})
        assert read_parquet(tmp_path / "x.parquet", table) == [1, 0]


def test_a_label_without_a_name_is_refused_with_its_row(tmp_path):
    with pytest.raises(InputError, match=r"row 1 \(counted from 0\): label 2 in column 'task', which has 2 names"):
        read_parquet(tmp_path / "x.parquet", with_labels([1, 2], ["no", "yes"]))
