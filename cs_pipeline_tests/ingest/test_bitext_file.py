import csv
import gzip
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.ingest.bitext_file import BITEXT_COLUMNS, BITEXT_SCHEMA, csv_bytes, read_bitext_file

HEADER = b"flags,instruction,category,intent,response\n"
GOOD = b"B,where is it,ORDER,track_order,On its way.\n"


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(path: Path) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        read_bitext_file(path)
    assert str(path) in caught.value.what
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("name", ["rows.csv", "rows.CSV", "rows.csv.gz"])
def test_text_is_kept_exactly(tmp_path: Path, name: str) -> None:
    rows = [
        ["B", "  two  spaces ", "NA", "null", 'He said: "hi", then\nleft.\r\n\tBye\r'],
        ["", "", "", "", ""],
        ["NaN", "1.0", "true", "2024-01-01", "naïve 🙂 {{Order Number}} \u2028 \ufeff"],
    ]
    data = csv_bytes(pa.table(list(zip(*rows, strict=True)), schema=BITEXT_SCHEMA))
    table = read_bitext_file(written(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data))
    assert table.schema == BITEXT_SCHEMA
    assert [list(row.values()) for row in table.to_pylist()] == rows


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(rows=st.lists(st.tuples(texts, texts, texts, texts, texts), min_size=1, max_size=5))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_written_rows_are_read_back(tmp_path: Path, rows: list[tuple[str, ...]]) -> None:
    table = pa.table(list(zip(*rows, strict=True)), schema=BITEXT_SCHEMA)
    assert read_bitext_file(written(tmp_path, "rows.csv", csv_bytes(table))).equals(table)


def test_columns_may_be_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    data = b"response,note,intent,category,instruction,flags\r\nr,n,i,c,q,f\r\n\r\n"
    assert read_bitext_file(written(tmp_path, "rows.csv", data)).to_pylist() == [
        {"flags": "f", "instruction": "q", "category": "c", "intent": "i", "response": "r"}
    ]


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert read_bitext_file(written(tmp_path, "rows.csv", b"\xef\xbb\xbf" + HEADER + GOOD)).num_rows == 1


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"extra": [1, 2], **{name: [f"{name} 1", "a\nb "] for name in reversed(BITEXT_COLUMNS)}})
    frame["flags"] = frame["flags"].astype("category")
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    table = read_bitext_file(tmp_path / "rows.parquet")
    assert table.schema == BITEXT_SCHEMA
    assert table.equals(read_bitext_file(tmp_path / "rows.csv"))


def test_a_null_in_parquet_becomes_the_empty_string(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({name: pa.array(["x", None], pa.large_string()) for name in BITEXT_COLUMNS}), tmp_path / "r.parquet"
    )
    assert read_bitext_file(tmp_path / "r.parquet").column("flags").to_pylist() == ["x", ""]


def test_the_real_file_is_read_as_by_the_csv_module(bitext_csv: Path) -> None:
    with bitext_csv.open(encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file))
    table = read_bitext_file(bitext_csv)
    assert table.num_rows == 24_094
    assert table.to_pylist() == expected


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "rows.csv").what


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").mkdir()
    assert "is a folder" in refusal(tmp_path / "rows.csv").what


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").symlink_to(tmp_path / "rows.csv")
    assert "cannot be read: Too many levels of symbolic links" in refusal(tmp_path / "rows.csv").what


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.gz", "rows.json"])
def test_a_wrong_suffix_is_refused(tmp_path: Path, name: str) -> None:
    assert "does not end in .csv, .csv.gz or .parquet" in refusal(written(tmp_path, name, HEADER + GOOD)).what


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "is empty" in refusal(written(tmp_path, "a.csv", b"")).what
    assert "only blank lines" in refusal(written(tmp_path, "b.csv", b"\n\r\n\n")).what
    assert "is empty" in refusal(written(tmp_path, "c.csv.gz", gzip.compress(b""))).what
    assert "is empty" in refusal(written(tmp_path, "d.parquet", b"")).what


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    assert "has a header but no rows" in refusal(written(tmp_path, "rows.csv", HEADER)).what
    pq.write_table(BITEXT_SCHEMA.empty_table(), tmp_path / "rows.parquet")
    assert "has a header but no rows" in refusal(tmp_path / "rows.parquet").what


def test_missing_columns_are_named(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, "rows.csv", b"flags,Instruction,category,intent\na,b,c,d\n"))
    assert "lacks the columns instruction, response; it has 'flags', 'Instruction', 'category', 'intent'" in error.what
    assert "flags, instruction, category, intent, response" in error.fix
    pq.write_table(pa.table({"flags": ["a"]}), tmp_path / "rows.parquet")
    assert (
        "lacks the columns instruction, category, intent, response; it has" in refusal(tmp_path / "rows.parquet").what
    )


def test_repeated_columns_are_named(tmp_path: Path) -> None:
    data = b"flags,flags,instruction,category,intent,response\n1,2,3,4,5,6\n"
    assert "has the columns flags more than once" in refusal(written(tmp_path, "rows.csv", data)).what


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(HEADER + GOOD * 500)
    assert "is truncated: its gzip stream does not end" in refusal(written(tmp_path, "rows.csv.gz", packed[:-20])).what


def test_invalid_gzip_is_refused(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, "a.csv.gz", HEADER + GOOD))
    assert "is not valid gzip" in error.what
    assert "name it .csv" in error.fix
    packed = bytearray(gzip.compress(HEADER + GOOD * 500))
    packed[20:30] = b"\xff" * 10
    assert "is not valid gzip" in refusal(written(tmp_path, "b.csv.gz", bytes(packed))).what


def test_text_that_is_not_utf8_is_located(tmp_path: Path) -> None:
    data = HEADER + GOOD + "B,café,ORDER,track_order,ok\n".encode("latin-1")
    error = refusal(written(tmp_path, "rows.csv", data))
    assert f"is not UTF-8: byte {data.index(0xE9)}, on line 3, is 0xE9" in error.what
    bom = b"\xef\xbb\xbf"
    assert f"byte {data.index(0xE9) + 3}, on line 3" in refusal(written(tmp_path, "bom.csv", bom + data)).what


def test_utf16_is_refused(tmp_path: Path) -> None:
    assert "is not UTF-8: byte 0, on line 1" in refusal(written(tmp_path, "a.csv", GOOD.decode().encode("utf-16"))).what
    error = refusal(written(tmp_path, "b.csv", (HEADER + GOOD).decode().encode("utf-16-le")))
    assert "contains a NUL byte, at byte 1, on line 1" in error.what
    assert "UTF-16" in error.fix


def test_nul_characters_are_located(tmp_path: Path) -> None:
    data = HEADER + GOOD + b"B,wh\0at,ORDER,track_order,ok\n"
    assert (
        f"contains a NUL byte, at byte {data.index(0)}, on line 3" in refusal(written(tmp_path, "rows.csv", data)).what
    )
    pq.write_table(
        pa.table({name: ["x", "a\0b" if name == "intent" else "y"] for name in BITEXT_COLUMNS}), tmp_path / "p.parquet"
    )
    assert "row 2, column 'intent', contains a NUL character" in refusal(tmp_path / "p.parquet").what


def test_a_file_truncated_in_a_quoted_field_is_refused(tmp_path: Path) -> None:
    data = HEADER + GOOD + b'B,why,ORDER,track_order,"First\nsecond\nthird'
    error = refusal(written(tmp_path, "rows.csv", data))
    assert "ends inside a quoted field of row 2, on line 3" in error.what
    assert "Copy or download the file again" in error.fix


def test_an_unclosed_quote_is_located(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, "a.csv", HEADER + b'B,why,ORDER,track_order,"open\n' + GOOD * 4000))
    assert "row 1, on line 2" in error.what  # whichever comes first, the end of the file or the longest field
    error = refusal(written(tmp_path, "b.csv", HEADER + GOOD + b'B,"a"b,ORDER,track_order,c\n' + GOOD))
    assert "row 2, on line 3, is not valid CSV: ',' expected after '\"'" in error.what
    assert "the header, on line 1" in refusal(written(tmp_path, "c.csv", b'"flags')).what


def test_a_row_with_a_wrong_number_of_fields_is_located(tmp_path: Path) -> None:
    two_lines = b'B,q,ORDER,track_order,"one\ntwo"\n'
    error = refusal(written(tmp_path, "a.csv", HEADER + two_lines + b"B,where, when,ORDER,track_order,c\n"))
    assert "row 2, on line 4, has 6 fields, but the header has 5" in error.what
    error = refusal(written(tmp_path, "b.csv", HEADER + GOOD + b"B,where\n" + GOOD))
    assert "row 2, on line 3, has 2 fields, but the header has 5" in error.what


def test_broken_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({name: [f"{n} {name}" for n in range(2000)] for name in BITEXT_COLUMNS}), path)
    content = path.read_bytes()
    for data in (content[: len(content) // 2], b"PAR1" + content[-8:], b"flags,instruction\n"):
        path.write_bytes(data)
        assert "is not a valid Parquet file" in refusal(path).what
    path.write_bytes(b"\xff" * 4000 + content[4000:])
    assert "is not a valid Parquet file" in refusal(path).what


def test_a_parquet_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({name: [1] if name == "flags" else ["x"] for name in BITEXT_COLUMNS}), tmp_path / "rows.parquet"
    )
    assert "column 'flags' has type int64, not text" in refusal(tmp_path / "rows.parquet").what


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    wrong = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table(dict.fromkeys(BITEXT_COLUMNS, wrong)), tmp_path / "rows.parquet")
    assert "Invalid UTF8" in refusal(tmp_path / "rows.parquet").what


def test_a_changed_byte_in_a_parquet_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({name: [f"{name} alpha"] for name in BITEXT_COLUMNS})
    pq.write_table(
        table, path, compression="none", use_dictionary=False, write_page_checksum=True, write_statistics=False
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(b"intent alpha", b"intent alphA", 1))
    assert "is not a valid Parquet file" in refusal(path).what
