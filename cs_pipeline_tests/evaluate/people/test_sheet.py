import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.people.sheet import read_sheet, write_sheet

HARMLESS = ["Hello", "", "a = b", "it's", "1,5; 2", 'say "hi"', "two\nlines", "naïve 😀"]
FORMULAS = [
    *("=1+1", "+49 30 123", "-1", "@SUM(A1)", '=HYPERLINK("https://example.com")', " =1+1", "\t=1", "\r=1", "\n=1"),
    *("＝1+1", "'=1+1", "''=1", "'\t", "=cmd|' /C calc'!A0"),
]


def raw_cells(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row[0] for row in csv.reader(file)][1:]


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    write_sheet(path, ["text"], [[text] for text in FORMULAS])
    assert raw_cells(path) == [f"'{text}" for text in FORMULAS]
    write_sheet(path, ["text", "number"], [[text, -1.5] for text in HARMLESS])
    assert raw_cells(path) == HARMLESS
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert b",-1.5\r\n" in path.read_bytes()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.text(st.sampled_from("'=+-@＝ \t\r\n,;\"aé"), max_size=6), min_size=1, max_size=4))
def test_cells_survive_the_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    write_sheet(path, ["id", "text"], [["x", text] for text in texts])
    assert [row for _, row in read_sheet(path, ["text"])] == [{"text": text} for text in texts]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_other_delimiters_and_encodings_are_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = tmp_path / "sheet.csv"
    lines = [["id", "score", "text"], ["a", "4", "caf\xe9"], ["", "", ""], ["b", "5", "two\nlines"], ["c"]]
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)
    rows = read_sheet(path, ["score", "id"])
    assert rows == [(2, {"score": "4", "id": "a"}), (4, {"score": "5", "id": "b"}), (6, {"score": "", "id": "c"})]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("id,text\na,b\n", "must have the column 'score' once, but has it 0 times"),
        ("id,score,score\na,1,2\n", "must have the column 'score' once, but has it 2 times"),
        ("", "must have the column 'id' once, but has it 0 times"),
        ('id,score\na,"1\n', "cannot be read as a table"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(content)
    with pytest.raises(PipelineError, match=what):
        read_sheet(path, ["id", "score"])


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="cannot be read"):
        read_sheet(tmp_path / "none.csv", ["id"])
