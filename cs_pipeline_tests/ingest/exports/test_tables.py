import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cs_pipeline.company import Columns, Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.ingest.exports import BadRecord, Record, Turn, read, recognise
from cs_pipeline.ingest.exports.layouts import csv_rows
from cs_pipeline.ingest.exports.source import MAX_RECORD_BYTES, ExportBytes
from cs_pipeline_tests.ingest.exports import bad_records, read_all, records, written

PAIRS = [
    ["where is it?", "On its way.", "Größe, Øre"],
    ['He said: "hi",\nthen left', "Two\r\nlines", ""],
    ["naïve 🙂 question", "  answer  ", "x"],
]


def csv_bytes(rows: list[list[str]], delimiter: str = ",", end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_unchanged(tmp_path: Path, delimiter: str, end: str) -> None:
    data = csv_bytes([["Question", "Answer", "note"], *PAIRS], delimiter, end)
    found = records(written(tmp_path, "rows.csv", data))
    assert [[turn.text for turn in record.turns] for record in found] == [row[:2] for row in PAIRS]
    assert [[turn.role for turn in record.turns] for record in found] == [["customer", "agent"]] * 3
    assert [record.index for record in found] == [1, 2, 3]
    for record, row in zip(found, PAIRS, strict=True):
        assert record.offset is not None
        assert record.length is not None
        part = data[record.offset : record.offset + record.length]
        assert next(csv.reader(io.StringIO(part.decode(), newline=""), delimiter=delimiter)) == row


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_byte_order_marks_are_recognised(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = csv_bytes([["question", "answer"], ["größer 🙂", "a"], ["second", "b"]]).decode()
    data = (mark + text).encode(encoding)
    first, second = records(written(tmp_path, "rows.csv", data))
    assert first.turns == [Turn("customer", "größer 🙂"), Turn("agent", "a")]
    codec = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}.get(encoding, encoding)
    assert data[second.offset : second.offset + second.length].decode(codec) == "second,b"  # type: ignore[operator]


@pytest.mark.parametrize("extra", [{"question": "q"}, {"answer": "a"}, {"question": "q", "answer": "a"}])
def test_columns_of_both_layouts_are_refused(extra: dict[str, str]) -> None:
    turn = {"text": "t", "speaker": "s", "conversation": "c"}
    assert Columns(**turn).text == "t"
    with pytest.raises(ValueError, match="either question and answer, or text, speaker and conversation"):
        Columns(**turn, **extra)
    with pytest.raises(ValueError, match="either question and answer"):
        Columns(question="q", answer="a", speaker="s")


def test_columns_are_mapped_to_a_pair_and_its_customer(tmp_path: Path) -> None:
    columns = Columns(
        question="Q", answer="A", customer_id="cust", customer_name="who", customer_email="mail", conversation="case"
    )
    data = b"A,Q,mail,who,cust,case\nyes,is it?,Jane@X.org ,Jane Roe,84512,T-99812\nno,why?,,,7,\n"
    one, two = records(written(tmp_path, "rows.csv", data), Company(columns=columns))
    assert one.subject == "Jane@X.org"
    assert one.conversation_id == "T-99812"
    assert one.known == [
        ("Client Name", "Jane Roe"),
        ("Customer Email", "Jane@X.org"),
        ("Account Number", "84512"),
        ("Ticket Number", "T-99812"),
    ]
    assert two.subject == "7"
    assert two.known == []


def test_pairs_without_a_conversation_are_identified_by_their_content(tmp_path: Path) -> None:
    one, two, three = records(written(tmp_path, "a.csv", b"question,answer\nq,a\nq,b\nq,a\n"))
    assert one.conversation_id == three.conversation_id != two.conversation_id
    (again,) = records(written(tmp_path, "b.jsonl", b'\n{"response":"a","instruction":"q"}\n'))
    assert again.conversation_id == one.conversation_id


def test_equal_pairs_of_two_customers_are_two_conversations(tmp_path: Path) -> None:
    data = b"question,answer,customer_id\nq,a,7\nq,a,8\nq,a,7\nq,a,\n"
    ids = [record.conversation_id for record in records(written(tmp_path, "a.csv", data))]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3


def test_a_row_can_be_one_turn(tmp_path: Path) -> None:
    data = b"ticket_id,author,body\n11,Tom (Support),hello\n11,Jane Roe,hi\n12,Support Bot,beep\n12,customer,x\n"
    found = records(written(tmp_path, "turns.csv", data))
    assert [(record.conversation_id, *record.turns) for record in found] == [
        ("11", Turn("agent", "hello")),
        ("11", Turn("customer", "hi")),
        ("12", Turn("automatic", "beep")),
        ("12", Turn("customer", "x")),
    ]
    assert [record.known for record in found] == [[("Person Name", "Tom")], [("Client Name", "Jane Roe")], [], []]


def test_a_question_without_answer_is_a_record(tmp_path: Path) -> None:
    (record,) = records(written(tmp_path, "rows.csv", b"question,answer\nanyone?,\n"))
    assert record.turns == [Turn("customer", "anyone?")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b",answer", "has no question"),
        (b" , ", "has no text"),
        (b"q", "has fewer fields than the header"),
        (b"q,a,x", "has more fields than the header"),
        (b'"q"x,a', "its quotes do not match"),
        (b"q\0,a", "holds a NUL character"),
        (b"caf\xe9,a", "is not UTF-8"),
        (b"q," + b"x" * 10_000_000, "is longer than 4 MB"),
    ],
)
def test_a_bad_csv_row_affects_no_other_row(tmp_path: Path, row: bytes, reason: str) -> None:
    head = "question,answer\ngrößer,gut\n".encode()
    path = written(tmp_path, "rows.csv", head + row + b"\nlast,one\n")
    good, bad, last = read_all(path)
    assert isinstance(good, Record)
    assert isinstance(last, Record)
    assert last.turns[0].text == "last"
    assert bad == BadRecord(2, len(head), reason, row.decode(errors="replace")[:500])


def test_an_unclosed_quote_affects_only_its_line(tmp_path: Path) -> None:
    data = b'question,answer\na,b\nc,"open\n"d,e",f\ng,h\n"i",j\nk,"l\n'
    path = written(tmp_path, "rows.csv", data)
    assert [(bad.index, bad.reason) for bad in bad_records(path)] == [
        (2, "its quotes do not match"),
        (6, "its quotes do not match"),
    ]
    assert [record.turns[0].text for record in records(path)] == ["a", "d,e", "g", "i"]


def test_an_unclosed_quote_does_not_swallow_a_long_file(tmp_path: Path) -> None:
    rows = (b"q," + b"a" * 1_000 + b"\n") * (2 * MAX_RECORD_BYTES // 1_000)
    path = written(tmp_path, "rows.csv", b"question,answer\n" + b'x,"open\n' * 2 + rows)
    found = list(csv_rows(ExportBytes.of(path), ","))
    assert [piece.problem for piece in found[1:4]] == ["its quotes do not match"] * 2 + [None]
    assert len(found) == 3 + 2 * MAX_RECORD_BYTES // 1_000
    assert all(piece.fields == ["q", "a" * 1_000] for piece in found[3:])


def test_blank_lines_and_the_header_are_not_records(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b"question,answer\n\n  \nq,a\n\n")
    assert [record.index for record in records(path)] == [3]
    assert read_all(written(tmp_path, "head.csv", b"question,answer\n")) == []
    assert read_all(written(tmp_path, "empty.csv", b"")) == [BadRecord(0, 0, "is empty", "")]


def test_unknown_columns_are_named_with_a_fix(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b"Frage,order no.,answer\na,b,c\n")
    with pytest.raises(PipelineError) as caught:
        recognise("rows.csv", path, Company())
    assert "rows.csv: it is unknown" in caught.value.what
    assert "it has Frage, order no., answer." in caught.value.what
    assert "columns:\n      question: NAME" in caught.value.fix
    assert [(bad.index, bad.reason) for bad in bad_records(path)] == [
        (0, "its columns are not known"),
        (1, "its columns are not known"),
    ]


def test_a_mapping_that_does_not_fit_names_what_is_missing(tmp_path: Path) -> None:
    company = Company(columns=Columns(question="Q", answer="A", customer_email="mail"))
    with pytest.raises(PipelineError, match=r"it has Q, A, but not mail of company\.yaml"):
        recognise("rows.csv", written(tmp_path, "rows.csv", b"Q,A\n"), company)


@pytest.mark.parametrize(
    "row", [b"where is it,Hi Jane!", b"where is my order number,yes", b"jane@example.org,x", b"", b'"']
)
def test_a_first_row_that_may_hold_customer_data_is_not_shown(tmp_path: Path, row: bytes) -> None:
    with pytest.raises(PipelineError) as caught:
        recognise("rows.csv", written(tmp_path, "rows.csv", row + b"\nx,y\n"), Company())
    assert caught.value.what == "rows.csv: its first row does not look like column names."


@pytest.mark.parametrize(
    "header", [b"question,prompt,answer", b"question,answer,text,speaker,conversation", b"question", b"text,speaker"]
)
def test_columns_are_not_guessed(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(PipelineError, match="it is unknown which columns"):
        recognise("rows.csv", written(tmp_path, "rows.csv", header + b"\n"), Company())


def test_the_mapping_wins_and_common_names_are_the_fallback(tmp_path: Path) -> None:
    company = Company(columns=Columns(question="answer", answer="question"))
    (turned,) = records(written(tmp_path, "a.csv", b"question,answer\nx,y\n"), company)
    assert turned.turns == [Turn("customer", "y"), Turn("agent", "x")]
    (other,) = records(written(tmp_path, "b.csv", b"prompt,reply\nx,y\n"), company)
    assert other.turns == [Turn("customer", "x"), Turn("agent", "y")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "q", "answer": "a", "answer": "b"}', "a key is repeated in one of its objects"),
        ('{"question": "q", "answer": "a", "x": {"y": 1, "y": 1}}', "a key is repeated in one of its objects"),
        ('{"question": ["q"], "answer": "a"}', "its question is not text"),
        ('{"question": "q", "answer": 7}', "its answer is not text"),
        ('{"question": "q", "answer": "a", "customer_id": true}', "its customer id is not an id"),
        ('{"question": "q", "answer": NaN}', "its answer is not text"),
        ('{"question": "q"}', "its columns are not known"),
        ('{"question": "q", "answer": ', "is not JSON"),
        ('{"question": "q", "answer": "\\ud83d"}', "holds half of a surrogate pair"),
        ('{"question": "q", "answer": "\\u0000"}', "holds a NUL character"),
        ('{"question": "q\0", "answer": "a"}', "holds a NUL character"),
        ("[1]", "is not a JSON object"),
        ("9" * 5000, "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"question": "", "answer": null}', "has no text"),
    ],
)
def test_a_bad_json_line_affects_no_other_line(tmp_path: Path, line: str, reason: str) -> None:
    good = '{"question": "größer 🙂", "answer": "a"}\r\n'
    path = written(tmp_path, "rows.jsonl", (good + line + "\r\n" + good + "null\n\n").encode())
    one, bad, two = read_all(path)
    assert isinstance(one, Record)
    assert isinstance(two, Record)
    assert bad == BadRecord(1, len(good.encode()), reason, line[:500])
    assert (two.index, two.offset) == (2, len((good + line + "\r\n").encode()))


def test_json_rows_may_lack_mapped_keys(tmp_path: Path) -> None:
    company = Company(columns=Columns(question="q", answer="a", customer_email="mail"))
    path = written(tmp_path, "rows.jsonl", b'{"q": "x"}\n{"q": "y", "a": "z", "mail": "j@x.org"}\n{"a": "z"}\n')
    assert [record.subject for record in records(path, company)] == [None, "j@x.org"]
    assert [bad.reason for bad in bad_records(path, company)] == ["its columns are not known"]
    assert str(recognise("rows.jsonl", path, company)) == "JSON Lines"
    with pytest.raises(PipelineError, match="it has q"):
        recognise("rows.jsonl", path, Company())


def test_a_json_list_of_rows_is_read(tmp_path: Path) -> None:
    rows = [{"question": f"q{number}", "answer": 'a, [b] {c} "d\\'} for number in range(3)]
    for indent in (None, 2):
        path = written(tmp_path, "rows.json", json.dumps(rows, indent=indent).encode())
        assert [record.turns[0].text for record in records(path)] == ["q0", "q1", "q2"]
        assert str(recognise("rows.json", path, Company())) == "JSON"


def test_a_wrong_bracket_affects_only_its_element_if_brackets_balance(tmp_path: Path) -> None:
    good = b'{"question": "q", "answer": "a"}'
    path = written(tmp_path, "rows.json", b"[" + good + b', {"question": "x"], ' + good + b", {}}, " + good + b"]")
    assert [record.index for record in records(path)] == [0, 2]
    assert [(bad.index, bad.reason) for bad in bad_records(path)] == [
        (1, "is not JSON"),
        (3, "the JSON breaks off here"),
    ]


def parquet(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def test_parquet_is_read(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        instruction=pa.array(["a", None, "", "größer", "x\0y"]).dictionary_encode(),
        response=pa.array(["b", None, "c", "gut", "z"], pa.large_string()),
        customer_id=[12345.0, None, 1.0, None, None],
    )
    found = read_all(path)
    assert [item.index for item in found] == [0, 2, 3, 4]
    assert isinstance(found[0], Record)
    assert (found[0].offset, found[0].length, found[0].subject) == (None, None, "12345")
    assert isinstance(found[2], Record)
    assert found[2].turns == [Turn("customer", "größer"), Turn("agent", "gut")]
    assert [(bad.index, bad.reason) for bad in bad_records(path)] == [
        (2, "has no question"),
        (4, "holds a NUL character"),
    ]


def test_parquet_columns_of_other_types_are_bad(tmp_path: Path) -> None:
    path = parquet(tmp_path, question=["a", "b"], answer=[1, 2])
    assert {bad.reason for bad in bad_records(path)} == {"its answer is not text"}


def test_a_file_that_is_not_parquet_is_bad(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.parquet", b"PAR1 but no more")
    assert [(bad.index, bad.reason) for bad in bad_records(path)] == [(0, "is not valid Parquet from here on")]
    with pytest.raises(PipelineError, match="is not a valid Parquet"):
        recognise("rows.parquet", path, Company())


def test_a_broken_row_group_affects_no_other_row_group(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    frame = pd.DataFrame({"question": [f"question {n}" * 50 for n in range(30)], "answer": ["a"] * 30})
    pq.write_table(
        pa.Table.from_pandas(frame),
        path,
        row_group_size=10,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = bytearray(path.read_bytes())
    data[data.index(b"question 15") + 3] ^= 1
    path.write_bytes(data)
    assert [record.index for record in records(path)] == [*range(10), *range(20, 30)]
    assert [(bad.index, bad.reason) for bad in bad_records(path)] == [(10, "is not valid Parquet from here on")]


def test_parquet_larger_than_allowed_when_unpacked_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["a" * 1_000_000] * 10, "answer": ["b"] * 10}), path, compression="zstd")
    assert path.stat().st_size < 20_000
    assert [bad.reason for bad in bad_records(path, Company(file_bytes=1_000_000))] == [
        "is larger, when unpacked, than file_bytes in company.yaml"
    ]


def test_an_unknown_suffix_is_one_bad_record(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.xlsx", b"PK...")
    assert recognise("rows.xlsx", path, Company()) is None
    assert list(read(None, path, Company())) == [
        BadRecord(0, 0, "its suffix does not belong to a known format", "PK...")
    ]


def test_a_column_names_the_subject(tmp_path: Path) -> None:
    def labels(name: str, data: bytes, columns: Columns | None = None) -> list[str | None]:
        return [record.label for record in records(written(tmp_path, name, data), Company(columns=columns))]

    rows = b"question,answer,topic,subject\nq1,a1, Battery  range ,Re: help\nq2,a2,,\n"
    assert labels("a.csv", rows) == ["Battery range", None]
    assert labels("a.csv", rows.replace(b"subject", b"intent")) == [None, None], "it is unknown which of the two"
    assert labels("a.csv", rows, Columns(question="question", answer="answer", subject="subject")) == ["Re: help", None]
    lines = b'{"question": "q", "answer": "a", "intent": "x"}\n{"question": "q", "answer": "b", "intent": {"x": 1}}\n'
    assert labels("a.jsonl", lines) == ["x", None]
    path = parquet(tmp_path, question=["q", "r"], answer=["a", "b"], topic=["battery", None])
    assert [record.label for record in records(path)] == ["battery", None]
    assert labels("a.txt", b"[c-1] Jane: where is it?\n") == [None]
