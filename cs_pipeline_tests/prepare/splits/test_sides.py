from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import CONVERSATION, SPLIT_ROW, check_schema
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.splits import sides as sides_module
from cs_pipeline.prepare.splits.sides import bitext_view, take_sides
from cs_pipeline.prepare.splits.split import SIDES, split
from cs_pipeline.retrieval.similarity import naive_split_similarity, nearest
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline_tests.prepare import conversations


@pytest.fixture(scope="module")
def splits() -> pa.Table:
    rows = [{str(name): value for name, value in row.items()} for row in sample_rows(1_080).to_dict("records")]
    return split(conversations(rows), before=None).rows


@pytest.fixture(scope="module")
def view(splits: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    lake = DataLake(tmp_path_factory.mktemp("lake"))
    lake.write("prepare", "bitext_splits", splits, CONVERSATION)
    return bitext_view(lake)


@pytest.fixture(scope="module")
def classifier(splits: pa.Table) -> TextClassifier:
    train = splits.to_pandas().query("split == 'train'")
    return TextClassifier.fit(train["instruction"].tolist(), train["intent"].tolist(), "characters")


def company_rows(splits: pa.Table) -> pa.Table:
    """Two company rows a side, each with an intent that no classifier would give its question."""
    rows = [
        {
            "row_id": f"company {side} {number}",
            "source": "company",
            "instruction": f"{row['instruction']} {number}",
            "response": "an answer",
            "intent": "an intent of its own",
            "intent_confidence": 0.25 * (number + 1),
            "cluster_id": row["cluster_id"],
            "split": side,
        }
        for side in SIDES
        for number, row in enumerate(splits.filter(pa.compute.equal(splits.column("split"), side)).to_pylist()[:2])
    ]
    return conversations(rows)


def test_sides_of_bitext_alone(splits: pa.Table, view: pa.Table, classifier: TextClassifier) -> None:
    tables, leakage = take_sides(splits, classifier, view)
    assert tuple(tables) == SIDES
    assert sum(table.num_rows for table in tables.values()) == splits.num_rows
    raw = {row["row_id"]: row for row in splits.to_pylist()}
    for side, table in tables.items():
        check_schema(table, SPLIT_ROW, side)
        for row in table.to_pylist():
            assert row["split"] == side
            assert {name: row[name] for name in splits.column_names} == raw[row["row_id"]]
        similarity = table.column("nearest_train_similarity")
        assert similarity.null_count == (0 if side == "test" else table.num_rows)
    test, train = tables["test"].to_pandas(), tables["train"].to_pandas()
    predicted, confidence = classifier.predict(test["instruction"].tolist())
    assert test["predicted_intent"].tolist() == predicted
    np.testing.assert_allclose(test["predicted_confidence"], confidence, rtol=1e-6)
    assert leakage.ours.tolist() == test["nearest_train_similarity"].tolist()
    cosines = nearest(test["instruction"].tolist(), train["instruction"].tolist())[1]
    np.testing.assert_array_equal(leakage.ours, cosines)
    share = len(test) / splits.num_rows
    naive = naive_split_similarity(splits.column("instruction").to_pylist(), share)[1]
    np.testing.assert_array_equal(np.sort(leakage.naive), np.sort(naive))
    by_heart, _ = classifier.predict(train["instruction"].tolist())
    assert (np.array(by_heart) == train["intent"]).mean() > (train["predicted_intent"] == train["intent"]).mean() > 0.85


def test_company_rows_bring_their_intent(splits: pa.Table, view: pa.Table, classifier: TextClassifier) -> None:
    alone, before = take_sides(splits, classifier, view)
    theirs = company_rows(splits)
    tables, leakage = take_sides(pa.concat_tables([splits, theirs]), classifier, view)
    for side, table in tables.items():
        check_schema(table, SPLIT_ROW, side)
        ours = table.slice(0, alone[side].num_rows)
        columns = [name for name in SPLIT_ROW.names if name != "nearest_train_similarity"]
        assert ours.select(columns).equals(alone[side].select(columns)), "Bitext's rows first, as they were"
        added = table.slice(alone[side].num_rows).to_pylist()
        assert [row["row_id"] for row in added] == [f"company {side} {number}" for number in range(2)]
        assert [row["predicted_intent"] for row in added] == ["an intent of its own"] * 2
        assert [row["predicted_confidence"] for row in added] == [0.25, 0.5]
        assert all((row["nearest_train_similarity"] is not None) == (side == "test") for row in added)
    assert len(leakage.ours) == len(before.ours)
    assert leakage.compared == before.compared + 2
    np.testing.assert_array_equal(leakage.naive, before.naive)


def test_test_questions_are_compared_with_a_bounded_number(
    splits: pa.Table, view: pa.Table, classifier: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides_module, "MOST_COMPARED", (100, 1))
    rows = pa.concat_tables([company_rows(splits), splits.slice(0, 900)])
    tables, leakage = take_sides(rows, classifier, view)
    assert leakage.compared == leakage.facts()["training_questions_compared"] == 101
    train = tables["train"].to_pandas()
    drawn = train[train["source"] == "bitext"].sort_values("row_id").head(100)
    theirs = train[train["source"] == "company"].sort_values("row_id").head(1)
    questions = [*drawn["instruction"], *theirs["instruction"]]
    cosines = nearest(tables["test"].column("instruction").to_pylist(), questions)[1]
    np.testing.assert_allclose(tables["test"].column("nearest_train_similarity").to_numpy(), cosines, rtol=1e-6)


def test_the_view_of_bitext_is_made_once(splits: pa.Table, view: pa.Table, tmp_path: Path) -> None:
    lake = DataLake(tmp_path)
    lake.write("prepare", "bitext_splits", splits, CONVERSATION)
    assert bitext_view(lake).equals(view)
    path = lake.table("prepare", "bitext_predictions")
    made = path.stat().st_mtime_ns
    assert bitext_view(lake).equals(view)
    assert path.stat().st_mtime_ns == made
    fewer = splits.slice(100)
    lake.write("prepare", "bitext_splits", fewer, CONVERSATION)
    again = bitext_view(lake)
    assert again.column("row_id").equals(fewer.column("row_id"))
    train = pa.compute.equal(fewer.column("split"), "train").to_pylist()
    for name in ("predicted_intent", "predicted_confidence"):
        assert [value is not None for value in again.column(name).to_pylist()] == train


def test_the_report_of_leakage(splits: pa.Table, view: pa.Table, classifier: TextClassifier) -> None:
    facts = take_sides(splits, classifier, view)[1].facts()
    assert facts["bins"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    for name in ("cluster_split", "random_split"):
        assert sum(facts[name]["shares"]) == pytest.approx(1, abs=1e-3)
        assert facts[name]["rows"] == splits.to_pandas().eval("split == 'test'").sum()
    assert facts["cluster_split"]["median"] < facts["random_split"]["median"]
