"""People's judgements get into the table without personal data, and from there into the report."""

import csv
import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cs_pipeline.cli.commands import app
from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.evaluate.people.people import rater_agreement, read_opinions
from cs_pipeline.evaluate.people.ratings import write_human_ratings
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.results import evaluation_file, read_evaluation, write_evaluation
from cs_pipeline.feedback import AskedQuestion, Feedback, GivenAnswer
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline_tests.conftest import copy_lake

ASKED = AskedQuestion(
    "I am Jane Doe, where is order 4412345678?", [("customer", "jane@example.com here"), ("agent", "Hello Jane!")]
)
TUNED = GivenAnswer(
    "version 3", "It is on its way to jane@example.com.", {"tone": "friendly", "value": "jane@example.com"}
)
BASE = GivenAnswer("version 3:base", "Orders are orders.", {"tone": "neutral"})


def table(lake: DataLake) -> str:
    return file_sha256(lake.table("evaluate", "human_ratings"))


def test_personal_data_is_removed(lake: DataLake) -> None:
    with Feedback(lake) as feedback:
        feedback.rate("r1", "browser 1", ASKED, TUNED, 5)
        feedback.rate("r2", "browser 2", ASKED, TUNED, 4)
        feedback.vote("v1", "browser 1", ASKED, [BASE, TUNED], winner=1)
        feedback.thumb("t1", "browser 1", AskedQuestion("Another question"), BASE, up=False)
    with Feedback(lake):  # open at the same time, as in a page
        found = write_human_ratings(lake, Company())
        # Raw text is not kept after that.
        assert not any(b"jane@" in path.read_bytes() for path in lake.root.rglob("*") if path.is_file())
    one, two, vote, thumb = lake.read("evaluate", "human_ratings").to_pylist()
    assert one["question"] == "I am {{Client Name}}, where is order {{Order Number}}?"
    assert json.loads(one["context"])[0] == ["customer", "{{Customer Email}} here"]
    assert "Jane" not in one["context"]
    assert "jane" not in "".join(one["answers"]) + one["settings"]
    assert json.loads(one["settings"])["tone"] == "friendly"
    assert json.loads(vote["settings"])[0] == {"tone": "neutral"}
    assert found.replaced["Order Number"] == 3
    # The hashes show only that questions and people are the same.
    assert one["question_id"] == two["question_id"] == vote["question_id"] != thumb["question_id"]
    assert one["rater"] == vote["rater"] == thumb["rater"] != two["rater"]
    assert "browser" not in one["rater"]
    assert rater_agreement(lake.read("evaluate", "human_ratings")).ratings == 1
    before = table(lake)
    assert write_human_ratings(lake, Company()).replaced == {}
    assert table(lake) == before, "equal input gives equal bytes"


def test_without_feedback_the_table_is_empty_and_the_report_has_no_section(lake: DataLake) -> None:
    assert read_opinions(lake) is None
    assert write_human_ratings(lake, Company()).rows.num_rows == 0
    assert read_opinions(lake) is None


def test_forgotten_judgements_do_not_come_back(lake: DataLake) -> None:
    with Feedback(lake) as feedback:
        feedback.rate("r1", "anna", ASKED, TUNED, 5)
        feedback.rate("r2", "anna", AskedQuestion("Another question"), TUNED, 4)
    with Ledger(lake) as ledger:
        ledger.add_tombstone("row", "r1", "asked for")
    assert write_human_ratings(lake, Company()).forgotten == 1
    with Feedback(lake) as feedback:
        feedback.rate("r1", "anna", ASKED, TUNED, 5)  # a client tries again, late
        assert feedback.judgements(raw=True)
    found = write_human_ratings(lake, Company())
    assert (found.forgotten, found.rows.column("id").to_pylist()) == (1, ["r2"])
    with Feedback(lake) as feedback:
        assert feedback.judgements(raw=True) == []
    with Ledger(lake) as ledger:
        ledger.add_tombstone("row", found.rows.column("question_id")[0].as_py(), "asked for")
    assert write_human_ratings(lake, Company()).rows.num_rows == 0


def test_the_opinions_in_the_report(lake: DataLake) -> None:
    with Feedback(lake) as feedback:
        for number in range(10):
            asked = AskedQuestion(f"Question {number}")
            feedback.rate(f"r{number}", "anna", asked, TUNED, 1 if number < 2 else 5)
            feedback.vote(f"v{number}", "anna", asked, [BASE, TUNED], winner=None if number == 0 else int(number < 8))
    write_human_ratings(lake, Company())
    found = read_opinions(lake)
    assert found is not None
    (counts,) = found.counts
    assert [counts[f"n{score}"] for score in range(1, 6)] == [2, 0, 0, 0, 8]
    assert (counts["negative"], counts["positive"], counts["thumbs_up"]) == (0.2, 0.8, None)
    assert (counts["positive_low"], counts["positive_high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson
    (wins,) = found.wins
    assert (wins["system_a"], wins["wins"], wins["ties"], wins["losses"]) == ("version 3", 7, 1, 2)
    assert [row["system"] for row in found.groups[0]] == ["version 3", "version 3:base"]
    # Of two systems it is the log-odds of 7.5 wins against 2.5, half a win added to each.
    assert found.groups[0][0]["strength"] - found.groups[0][1]["strength"] == pytest.approx(math.log(8 / 3))
    assert (found.judgements, found.agreement.raters, found.agreement.ratings_alpha) == (20, 1, None)


def test_an_exported_sheet_comes_back_into_the_report(
    champion_lake: Path, tmp_path: Path, tiny: FineTuneRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = copy_lake(champion_lake, tmp_path / "lake")
    assert 'id="people"' not in write_report(tiny, lake).path.read_text()
    sheet = tmp_path / "samples.csv"

    def command(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["ratings", *arguments], env={"COLUMNS": "200"})
        if result.exception:
            raise result.exception
        return " ".join(result.output.split())

    assert "150 answers" in command("export", str(sheet), "--recipe", "tiny")
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    key = json.loads(sheet.with_suffix(".key.json").read_text())
    (free,) = {one["system"] for one in key.values()} - {"version 1", "version 1:base"}
    assert free.startswith("free look-up '")
    for rater, least in (("Anna", 4), ("Ben", 3)):
        filled = tmp_path / f"{rater}.csv"
        with filled.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "score"], extrasaction="ignore")
            writer.writeheader()
            scored = [row | {"score": least if key[row["id"]]["system"] == "version 1" else 1} for row in rows]
            writer.writerows(scored)
        with pytest.raises(PipelineError, match="is missing"):
            command("import", str(filled), "--rater", rater)
        arguments = ("import", str(filled), "--rater", rater, "--key", str(sheet.with_suffix(".key.json")))
        assert "150 ratings added, 0 already known" in command(*arguments)
        assert "0 ratings added, 150 already known" in command(*arguments)
    found = write_human_ratings(lake, Company())
    assert found.rows.num_rows == 300
    assert set(found.rows.column("source").to_pylist()) == {"import"}
    html = write_report(tiny, lake).path.read_text()
    section = html[html.index('id="people"') : html.index('id="tables"')]
    assert 'href="#people"' in html
    won = "2 people with 100 verdicts prefer its answers on 50 questions and the others on 0 (100 %"
    assert won in " ".join(html.split()), "on the first screen"
    for text in ("300 judgements by 2 people", "version 1:base", "100&nbsp;%", "96 to 100", "alpha"):
        assert text in " ".join(section.split()), text
    assert write_report(tiny, lake).path.read_text() == html
    # Answers of an unregistered adapter could not be attributed later.
    other = read_evaluation("tiny", lake).model_copy(update={"adapter_fingerprint": "another"})
    write_evaluation(other, evaluation_file("tiny", lake))
    with pytest.raises(PipelineError, match="is not registered"):
        command("export", str(tmp_path / "other.csv"), "--recipe", "tiny")
