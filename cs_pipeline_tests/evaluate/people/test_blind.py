import csv
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.people.blind import SHEET_COLUMNS, BlindSheet, export_blind_sheet, import_blind_sheet
from cs_pipeline.evaluate.people.people import rating_counts
from cs_pipeline.retrieval.lookup import HANDOVER_ANSWER

AT = datetime(2026, 1, 1, tzinfo=UTC)
SYSTEMS = {"tuned": "version 3", "base": "version 3:base"}


@pytest.fixture
def answers() -> pd.DataFrame:
    rows = [
        (f"row{number}", system, f"=question {number}", f"{system}'s\nanswer {number}")
        for number in range(30)
        for system in ("base", "tuned", "random")
    ]
    return pd.DataFrame(rows, columns=["row_id", "system", "question", "answer"])


@pytest.fixture
def sheet(answers: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "blind.csv"
    assert export_blind_sheet(answers, SYSTEMS, path, questions=10) == BlindSheet(answers=20, handed_over=0)
    return path


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def filled(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SHEET_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_sheet_does_not_show_which_system_answered(sheet: Path, answers: pd.DataFrame, tmp_path: Path) -> None:
    rows = cells(sheet)
    assert list(rows[0]) == list(SHEET_COLUMNS)
    assert {row["score"] for row in rows} == {""}
    assert all(row["question"].startswith("'=question") for row in rows), "a formula is escaped"
    assert "version 3" not in sheet.read_text()
    first = [row["answer"].split("'")[0] for row in rows[::2]]
    assert set(first) == {"tuned", "base"}, "their order varies"
    questions = [row["question"] for row in rows]
    assert questions[::2] == questions[1::2], "the answers to one question stand together"
    assert questions[::2] != sorted(questions[::2])
    export_blind_sheet(answers, SYSTEMS, tmp_path / "again.csv", questions=10)
    assert cells(tmp_path / "again.csv") == rows
    export_blind_sheet(answers, SYSTEMS, tmp_path / "other.csv", questions=10, seed=1)
    assert {row["id"] for row in cells(tmp_path / "other.csv")}.isdisjoint(row["id"] for row in rows)


def test_scores_are_matched_by_id(sheet: Path, tmp_path: Path) -> None:
    rows = cells(sheet)
    for row in rows:
        row["score"] = "5" if "tuned" in row["answer"] else " 2.0 "
        row["question"], row["answer"] = "#NAME?", "changed by a spreadsheet"
    back = filled(tmp_path / "back.csv", rows[::-1])
    table = import_blind_sheet(back, sheet.with_suffix(".key.json"), "Anna", AT)
    counts = rating_counts(table).set_index("system")
    assert counts["n5"].to_dict() == {"version 3": 10, "version 3:base": 0}
    assert counts["n2"].to_dict() == {"version 3": 0, "version 3:base": 10}
    one = table.to_pylist()[0]
    assert one["question"].startswith("=question")
    assert one["answers"][0].endswith(one["question"].removeprefix("=question"))
    assert (one["rater"], one["at"], one["source"]) == ("Anna", AT, "import")
    again = import_blind_sheet(back, sheet.with_suffix(".key.json"), " Anna ", AT)
    assert again.equals(table), "the same sheet has the same ids"
    other = import_blind_sheet(back, sheet.with_suffix(".key.json"), "Ben", AT)
    assert set(other.column("id").to_pylist()).isdisjoint(table.column("id").to_pylist())


def test_every_fault_is_reported_and_nothing_imported(sheet: Path, tmp_path: Path) -> None:
    rows = [row | {"score": "3"} for row in cells(sheet)]
    rows[1]["score"] = ""
    rows[2]["score"] = "6"
    rows[3]["score"] = "good"
    rows[4]["id"] = "s-unknown"
    missing = rows.pop(5)["id"]
    rows.append(rows[6])
    back = filled(tmp_path / "back.csv", rows)
    with pytest.raises(PipelineError) as error:
        import_blind_sheet(back, sheet.with_suffix(".key.json"), "Anna", AT)
    # Each row takes two lines because its answer has a line break.
    assert "line 4: the score is missing" in error.value.what
    assert "line 6: the score is '6', not 1 to 5" in error.value.what
    assert "line 8: the score is 'good', not 1 to 5" in error.value.what
    assert "line 10: the id 's-unknown' is not in this sample" in error.value.what
    assert f"line 40: the id '{rows[6]['id']}' is repeated" in error.value.what
    assert f"the id '{missing}' is missing" in error.value.what
    assert error.value.what.count(" is missing") == 3, "one score, the removed id, and the id that was changed"
    assert "answer" not in error.value.what


def test_at_most_twenty_faults_are_listed(sheet: Path) -> None:
    with pytest.raises(PipelineError, match="the score is missing") as error:
        import_blind_sheet(sheet, sheet.with_suffix(".key.json"), "Anna", AT)
    assert error.value.what.count("the score is missing") == 20


def test_a_question_that_a_system_hands_over_is_left_out(answers: pd.DataFrame, tmp_path: Path) -> None:
    handed_over = (answers["system"] == "tuned") & answers["row_id"].isin([f"row{number}" for number in range(25)])
    answers.loc[handed_over, "answer"] = HANDOVER_ANSWER
    answers.loc[(answers["system"] == "random") & (answers["row_id"] == "row29"), "answer"] = HANDOVER_ANSWER
    path = tmp_path / "blind.csv"
    assert export_blind_sheet(answers, SYSTEMS, path, questions=10) == BlindSheet(answers=10, handed_over=25)
    assert {row["question"] for row in cells(path)} == {f"'=question {number}" for number in range(25, 30)}
    answers.loc[answers["system"] == "tuned", "answer"] = HANDOVER_ANSWER
    with pytest.raises(PipelineError, match="handed every question over"):
        export_blind_sheet(answers, SYSTEMS, tmp_path / "none.csv")


def test_a_sample_being_rated_is_not_replaced(sheet: Path, answers: pd.DataFrame) -> None:
    with pytest.raises(PipelineError, match="already exists"):
        export_blind_sheet(answers, SYSTEMS, sheet)
    sheet.unlink()
    with pytest.raises(PipelineError, match=r"key\.json already exists"):
        export_blind_sheet(answers, SYSTEMS, sheet)


def test_what_cannot_be_rated_or_imported_is_reported(sheet: Path, answers: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no answer to rate"):
        export_blind_sheet(answers, {"champion": "version 2"}, tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
    with pytest.raises(PipelineError, match="is missing"):
        import_blind_sheet(sheet, tmp_path / "none.key.json", "Anna", AT)
    with pytest.raises(PipelineError, match="name is empty, or the time has no time zone"):
        import_blind_sheet(sheet, sheet.with_suffix(".key.json"), " ", AT)
    with pytest.raises(PipelineError, match="name is empty, or the time has no time zone"):
        import_blind_sheet(sheet, sheet.with_suffix(".key.json"), "Anna", AT.replace(tzinfo=None))
