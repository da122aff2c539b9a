"""Properties of every file, valid or not: reading never fails, nothing is lost, and redacting a record moves no other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cs_pipeline.company import Company
from cs_pipeline.ingest.exports import BadRecord, Record, format_of, read, redact
from cs_pipeline_tests.ingest.exports import read_all, written

often = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

NAMES = ["a.csv", "a.jsonl", "a.json", "a.txt", "a.parquet", "a.xyz"]

fragments = st.sampled_from(
    [
        *(
            b'"',
            b"'",
            b",",
            b"\n",
            b"\r",
            b"\r\n",
            b"\t",
            b"|",
            b" ",
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b"\\",
            b"null",
            b"1e999",
        ),
        *(
            b"\0",
            b"\xff",
            b"\xe9",
            "é".encode(),
            "🙂".encode(),
            b"\xed\xa0\xbd",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\xfe\xff",
        ),
        *(
            b"question,answer\n",
            b"question",
            b"answer",
            b'"tickets":[',
            b'"users": [',
            b'"comments"',
            b'"id":1',
            b"PAR1",
        ),
        *(b'{"question":"q","answer":"a"}', b'{"tickets":[', b'{"id":3,"comments":[]}', b"[c] A: x\n", b'x,"y\nz"\n'),
        *(b'{"id":3,"requester_id":4,"comments":[{"author_id":4,"body":"x"}]}', b'"\n', b'","', b'""'),
    ]
)
any_bytes = st.one_of(st.binary(max_size=60), st.lists(fragments, max_size=25).map(b"".join))
headed = st.builds(
    lambda head, rest: head + rest,
    st.sampled_from([b"question,answer\n", b'"question";answer\r\n', b"[", b'{"tickets": [', b"\xef\xbb\xbf[", b""]),
    any_bytes,
)


def by_index(items: list[Record | BadRecord]) -> dict[int, Record | BadRecord]:
    found = {item.index: item for item in items}
    assert len(found) == len(items)
    assert list(found) == sorted(found)
    return found


@pytest.mark.parametrize("name", NAMES)
@given(data=headed, wide=st.booleans())
@example(data=b'question,answer\nx,"open\n"y",z"\nx,"\n', wide=False)
@example(data=b'[,"\n,"\x00', wide=False)
@example(data=b"x\n[", wide=False)
@example(data=b'{"a": 1}\n{"b": {"tickets": [2', wide=False)
@example(data=b'{]\n{"tickets": [2', wide=False)
@often
def test_redacting_one_record_leaves_all_others(tmp_path: Path, name: str, data: bytes, wide: bool) -> None:
    if wide:
        data = b"\xff\xfe" + data.decode(errors="replace").encode("utf-16-le") + data[:1]
    path = written(tmp_path, name, data)
    before = by_index(read_all(path))
    for index in before:
        path.write_bytes(data)
        redact(format_of(name, path), path, {index})
        after = by_index(read_all(path))
        # An empty file, and a list that ends where an element should follow, have nothing to redact.
        item = before[index]
        if isinstance(item, Record) or item.excerpt.strip("\ufffd"):
            assert index not in after
        assert {key: value for key, value in before.items() if key != index} == {
            key: value for key, value in after.items() if key != index
        }
        assert path.stat().st_size == len(data)
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", NAMES)
@given(data=headed)
@example(data=b"\xfe\xff\x01")
@example(data=b"\xff\xfea\0,\0b\0\x01\xd8\x01")
@often
def test_everything_but_blanks_is_in_some_record(tmp_path: Path, name: str, data: bytes) -> None:
    path = written(tmp_path, name, data)
    indices = {item.index for item in read_all(path)}
    redact(format_of(name, path), path, indices)
    assert all(isinstance(item, BadRecord) and item.excerpt == "" for item in read_all(path))
    if name in ("a.jsonl", "a.txt", "a.xyz"):
        rest = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"null", b"").replace(b"\0", b"")
        assert not rest.removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff").strip()


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip)


def as_lines(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def as_list(rows: list[dict[str, str]]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def as_wide_list(rows: list[dict[str, str]]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode("utf-16")


def as_csv(rows: list[dict[str, str]]) -> bytes:
    lines = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
    return "\r\n".join(["question,answer", *lines]).encode()


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", as_lines), ("a.json", as_list), ("a.json", as_wide_list), ("a.csv", as_csv)]
)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), gone=st.integers(0, 5))
@often
def test_written_rows_are_read_back_and_redacted_rows_are_gone(
    tmp_path: Path, name: str, write: Callable[[list[dict[str, str]]], bytes], pairs: list[tuple[str, str]], gone: int
) -> None:
    pairs = [(f"{question} the secret of {number}", answer) for number, (question, answer) in enumerate(pairs)]
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    path = written(tmp_path, name, write(rows))
    items = read_all(path)
    assert [tuple(turn.text for turn in item.turns) for item in items if isinstance(item, Record)] == pairs
    gone %= len(pairs)
    redact(format_of(name, path), path, {items[gone].index})
    assert read_all(path) == items[:gone] + items[gone + 1 :]
    text = path.read_bytes().decode("utf-16" if write is as_wide_list else "utf-8")
    assert f"the secret of {gone}" not in text
    assert text.count("the secret of ") == len(pairs) - 1


@given(data=st.binary(max_size=200), at=st.floats(0, 1), rows=st.integers(1, 30))
@example(data=b"\x01", at=0.05, rows=1)  # a page whose header holds no rows
@often
def test_parquet_may_be_damaged_anywhere(tmp_path: Path, data: bytes, at: float, rows: int) -> None:
    table = pa.table({"question": [f"q{n}" for n in range(rows)], "answer": ["a"] * rows})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=7, write_page_checksum=True)
    content = path.read_bytes()
    start = int(at * len(content))
    path.write_bytes(content[:start] + data + content[start + len(data) :])
    found = by_index(read_all(path))
    assert found
    for item in found.values():
        if isinstance(item, Record):
            assert item.turns[0].text.startswith("q")


def test_parquet_rows_are_redacted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema(
        [
            pa.field("question", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("answer", pa.string(), nullable=False),
            pa.field("more", pa.list_(pa.struct([("x", pa.int64())]))),
        ]
    )
    questions = [f"the secret of {n}" for n in range(2_500)]
    columns: list[Any] = [pa.array(questions).dictionary_encode(), ["a"] * 2_500, [[{"x": 1}], None] * 1_250]
    arrays = [pa.array(column) if isinstance(column, list) else column for column in columns]
    arrays[2] = pa.array(columns[2], schema.field("more").type)
    pq.write_table(pa.table(arrays, schema=schema), path, row_group_size=1_100)
    before = read_all(path)
    redact(format_of("a.parquet", path), path, {7, 1_099, 2_400})
    assert read_all(path) == [item for item in before if item.index not in (7, 1_099, 2_400)]
    pq.write_table(pq.read_table(path), tmp_path / "plain.parquet", compression="none", use_dictionary=False)
    for file in (path, tmp_path / "plain.parquet"):
        content = file.read_bytes()
        assert b"the secret of 7\0" not in content
        assert b"the secret of 2400" not in content
    assert b"the secret of 2401" in (tmp_path / "plain.parquet").read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_broken_row_group_is_gone_after_redaction(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"question": [f"question {n}" for n in range(30)], "answer": ["a"] * 30})
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"question 15") + 3] ^= 1
    path.write_bytes(data)
    before = read_all(path)
    redact(format_of("a.parquet", path), path, {0, 10})
    assert read_all(path) == [item for item in before if item.index not in (0, 10)]


def test_the_rest_of_a_truncated_list_is_gone_after_redaction(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", b'[{"question": "q", "answer": "a"}, {"question": "the sec')
    first, rest = read_all(path)
    assert isinstance(rest, BadRecord)
    redact(format_of("a.json", path), path, {rest.index})
    assert read_all(path) == [first]


def test_users_of_redacted_tickets_are_redacted_too(tmp_path: Path) -> None:
    def ticket(number: int, requester: int) -> dict[str, Any]:
        comment = {"author_id": requester, "public": True, "body": f"text {number}"}
        return {"id": number, "requester_id": requester, "comments": [comment]}

    people = [{"id": 1, "name": "Jane", "role": "end-user"}, {"id": 2, "name": "Tom"}, {"id": 9, "name": "Ann"}]
    body = {"users": people, "tickets": [ticket(1, 1), ticket(2, 2), ticket(3, 1)], "count": 3}
    path = written(tmp_path, "a.json", json.dumps(body).encode())
    before = read_all(path)
    format = format_of("a.json", path)
    redact(format, path, {0})
    assert read_all(path) == before[1:]
    assert b"Jane" in path.read_bytes()
    redact(format, path, {2})
    assert json.loads(path.read_bytes())["users"] == [None, *people[1:]]
    assert read_all(path) == before[1:2]


def test_a_line_of_ten_megabytes_is_one_bad_record(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.jsonl", b'{"question": "q", "answer": "' + b"x" * 10_000_000 + b'"}\n{"question": "q"}\n'
    )
    assert [item.reason for item in read_all(path) if isinstance(item, BadRecord)] == [
        "is longer than 4 MB",
        "its columns are not known",
    ]
    assert all(len(item.excerpt) <= 500 for item in read_all(path) if isinstance(item, BadRecord))


def test_records_are_streamed(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"question,answer\n" + b"q,a\n" * 300_000)
    items = read(format_of("a.csv", path), path, Company())
    assert isinstance(next(items), Record)
