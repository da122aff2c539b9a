"""A person's labels of company intents: on a sheet, in the lake, in the evaluation and in the report."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cs_pipeline.cli.commands import app
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import SPLIT_ROW
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.people.intent_labels import (
    NO_INTENT,
    allowed_intents,
    export_intent_sheet,
    import_intent_sheet,
    labelled_intents,
    read_intent_labels,
)
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.results import EvaluationResults, evaluation_folder
from cs_pipeline.recipe import LookupRecipe, load_recipe
from cs_pipeline.retrieval.router import NO_SUBJECT
from cs_pipeline.train.adapter import build_lookup
from cs_pipeline_tests.support.reported import Page

TURNS = [["customer", "hello"], ["agent", "=how can I help?"]]


@pytest.fixture
def lake(prepared: Path, lake: DataLake) -> DataLake:
    """Every second test row is a company's, without a subject, and the router is sure of its intent."""
    shutil.copytree(prepared / "prepare", lake.path("prepare"))
    rows = lake.read("prepare", "test_split").to_pylist()
    for row in rows[::2]:
        row |= {
            "source": "company",
            "context": json.dumps(TURNS),
            "predicted_intent": row["intent"],
            "intent": NO_SUBJECT,
        }
    lake.write("prepare", "test_split", pa.Table.from_pylist(rows, SPLIT_ROW), SPLIT_ROW)
    return lake


def company(lake: DataLake) -> dict[str, dict[str, Any]]:
    rows = lake.read("prepare", "test_split").to_pylist()
    return {row["row_id"]: row for row in rows if row["source"] == "company"}


def cells(sheet: Path) -> list[dict[str, str]]:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def filled(path: Path, intents: list[tuple[str, str]]) -> Path:
    """A sheet with the ids and intents only, as a spreadsheet with semicolons saves it."""
    path.write_text("\n".join(["id;intent", *(f"r{row};{intent}" for row, intent in intents)]))
    return path


def test_the_sheet_is_blind_and_lists_the_intents(lake: DataLake, tmp_path: Path) -> None:
    sheet = tmp_path / "intents.csv"
    assert export_intent_sheet(lake, sheet, 10) == 10
    rows, known = cells(sheet), company(lake)
    asked = [row for row in rows if row["id"]]
    assert len(asked) == 10
    assert [row["intents to choose from"] for row in rows] == [*allowed_intents(lake), NO_INTENT]
    for row in asked:
        source = known[row["id"].removeprefix("r")]
        assert row["question"] == source["instruction"]
        assert row["earlier turns"] == "Customer: hello\nAgent: =how can I help?"
        assert row["intent"] == ""
    assert list(rows[0]) == ["id", "earlier turns", "question", "intent", "intents to choose from"]
    with pytest.raises(PipelineError, match="already exists"):
        export_intent_sheet(lake, sheet, 10)
    drawn = {row["id"].removeprefix("r") for row in asked}
    import_intent_sheet(lake, filled(tmp_path / "filled.csv", [(row, "cancel_order") for row in sorted(drawn)]))
    assert export_intent_sheet(lake, tmp_path / "more.csv", 100) == len(known) - 10, "labelled rows are not asked again"
    assert drawn.isdisjoint(row["id"].removeprefix("r") for row in cells(tmp_path / "more.csv"))


def test_the_command_line_exports_and_imports(lake: DataLake, tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["intents", *arguments], env={"COLUMNS": "200"})
        if result.exception:
            raise result.exception
        return " ".join(result.output.split())

    sheet = tmp_path / "intents.csv"
    assert "5 questions" in command("export", str(sheet), "--rows", "5")
    rows = cells(sheet)
    for number, row in enumerate(rows[:5]):
        row["intent"] = [" Cancel_Order ", "cancel_order", NO_INTENT, "get_refund", ""][number]
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert "4 labels added, 0 already known" in command("import", str(sheet))
    assert "0 labels added, 4 already known" in command("import", str(sheet))
    first = rows[0]["id"].removeprefix("r")
    assert read_intent_labels(lake)[first] == "cancel_order"
    assert sorted(read_intent_labels(lake).values()) == ["cancel_order", "cancel_order", "get_refund", NO_INTENT]
    other = filled(tmp_path / "other.csv", [(first, "get_refund")])
    with pytest.raises(PipelineError, match="'cancel_order' from an earlier import"):
        command("import", str(other))
    assert "1 labels added" in command("import", str(other), "--replace")
    assert read_intent_labels(lake)[first] == "get_refund"


def test_a_sheet_with_faults_changes_nothing(lake: DataLake, tmp_path: Path) -> None:
    one, two, *_ = sorted(company(lake))
    bitext = next(
        row for row in lake.read("prepare", "test_split", ["row_id"]).column(0).to_pylist() if row not in company(lake)
    )
    sheet = filled(
        tmp_path / "faults.csv",
        [
            (one, "cancel_order"),
            (two, "cancel_ordr"),
            ("0123456789abcdef", "cancel_order"),
            (bitext, "cancel_order"),
            (one, "get_refund"),
            (one, "cancel_order"),
        ],
    )
    with pytest.raises(PipelineError) as error:
        import_intent_sheet(lake, sheet, replace=True)
    assert str(sheet) in error.value.what
    for fault in (
        "line 3: the intent 'cancel_ordr' is not allowed (did you mean 'cancel_order'?)",
        "line 4: the id 'r0123456789abcdef' is not that of a company row of the test split",
        f"line 5: the id 'r{bitext}' is not that",
        f"line 6: 'r{one}' has the label 'get_refund' here and 'cancel_order' in an earlier line",
    ):
        assert fault in error.value.what
    assert "line 7" not in error.value.what
    assert "Allowed are cancel_order, " in error.value.fix
    assert read_intent_labels(lake) == {}


def test_agreement_with_the_classifier() -> None:
    test = pd.DataFrame(
        {
            "row_id": list("abcde"),
            "source": ["bitext", *["company"] * 4],
            "intent": [NO_SUBJECT] * 4 + ["a_subject"],
            "predicted_intent": list("vwxyz"),
        }
    )
    found = labelled_intents(test, {"a": "v", "b": "w", "c": NO_INTENT, "d": "y"})
    assert found is not None
    assert (found.company_rows, found.counted, found.labelled) == (4, 1, 3)
    assert (found.without_intent, found.agreed) == (1, 2)
    assert (found.share, found.low, found.high) == pytest.approx((2 / 3, 0.2077, 0.9385), abs=1e-4)  # Wilson
    without = labelled_intents(test, {})
    assert without is not None
    assert (without.counted, without.labelled, without.share) == (1, 0, None)
    assert labelled_intents(test[:1], {"a": "v"}) is None


def test_labelled_rows_count_for_right_intent(lake: DataLake, tmp_path: Path, own_recipes: None) -> None:
    recipe = load_recipe("tiny_lookup")
    assert isinstance(recipe, LookupRecipe)
    build_lookup(recipe, lake)

    def evaluated() -> tuple[EvaluationResults, pd.DataFrame]:
        results = evaluate(recipe, lake, None, print).results
        rows = pd.read_parquet(evaluation_folder(recipe.name, lake) / "answers.parquet")
        return results, rows[rows["system"] == "tuned"].set_index("row_id")

    before, rows_before = evaluated()
    known = company(lake)
    assert rows_before["labelled"][sorted(known)].sum() == 0
    assert before.intent_labels is not None
    assert before.intent_labels.labelled == 0
    text = " ".join(Page(write_report(recipe, lake).path.read_text()).text.split())
    assert f"0 of {len(known)} company rows count for right intent" in text
    assert "Nobody has labelled one yet: cs-pipeline intents export FILE" in text
    # A person agrees with the prediction on one row, calls another one something else, and finds no intent for a third.
    agreed, changed, none = sorted(known)[:3]
    other = next(intent for intent in allowed_intents(lake) if intent != known[changed]["predicted_intent"])
    labels = [(agreed, known[agreed]["predicted_intent"]), (changed, other), (none, NO_INTENT)]
    import_intent_sheet(lake, filled(tmp_path / "labels.csv", labels))
    after, rows = evaluated()
    assert after.fingerprint != before.fingerprint
    assert after.data.intent_labels is not None
    assert rows["labelled"][sorted(known)].to_dict() == {row: int(row in (agreed, changed)) for row in sorted(known)}
    assert rows["intent"][changed] == other
    assert rows["intent"][none] == rows_before["intent"][none]
    assert rows["right_intent"][changed] == 0, "the look-up follows the prediction, and the person does not"
    assert rows["quality"][changed] == 0
    assert rows["answer"].equals(rows_before["answer"]), "the prediction still routes"
    bitext = rows.index.difference(sorted(known))
    assert rows.loc[bitext, "right_intent"].equals(rows_before.loc[bitext, "right_intent"])
    assert after.intent_labels is not None
    assert (after.intent_labels.labelled, after.intent_labels.agreed, after.intent_labels.without_intent) == (3, 1, 1)
    text = " ".join(Page(write_report(recipe, lake).path.read_text()).text.replace("\N{NO-BREAK SPACE}", " ").split())
    assert f"2 of {len(known)} company rows count for right intent" in text
    assert "The router agrees with 1 of 3 labels (33 %, 95 % interval 6 to 79 %); 1 of them say" in text
    assert evaluate(recipe, lake, None, print).reused
