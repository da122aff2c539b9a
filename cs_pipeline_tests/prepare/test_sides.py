import numpy as np
import pyarrow as pa
import pytest

from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.classifier import TextClassifier
from cs_pipeline.prepare.sides import SIDES, leaks, take_sides
from cs_pipeline.prepare.split import Split, split
from cs_pipeline.schema import SPLIT_ROW, check_schema
from cs_pipeline_tests.prepare import conversations


@pytest.fixture(scope="module")
def splits() -> pa.Table:
    rows = [{str(name): value for name, value in row.items()} for row in sample_rows(1_080).to_dict("records")]
    return split(conversations(rows), before=None).rows


def test_sides(splits: pa.Table) -> None:
    train = splits.to_pandas().query("split == 'train'")
    classifier = TextClassifier.fit(train["instruction"].tolist(), train["intent"].tolist(), "characters")
    tables, leakage = take_sides(splits, classifier)
    assert tuple(tables) == SIDES
    assert sum(table.num_rows for table in tables.values()) == splits.num_rows
    raw = {row["row_id"]: row for row in splits.to_pylist()}
    for side, table in tables.items():
        check_schema(table, SPLIT_ROW, side)
        for row in table.to_pylist():
            assert row["split"] == side
            assert {name: row[name] for name in splits.column_names} == raw[row["row_id"]]
        similarity = table.column("nearest_train_similarity")
        assert similarity.null_count == (table.num_rows if side == "train" else 0)
    test = tables["test"].to_pandas()
    predicted, confidence = classifier.predict(test["instruction"].tolist())
    assert test["predicted_intent"].tolist() == predicted
    np.testing.assert_allclose(test["predicted_confidence"], confidence, rtol=1e-6)
    assert leakage.ours.tolist() == test["nearest_train_similarity"].tolist()
    ours = tables["train"].to_pandas()
    by_heart, _ = classifier.predict(ours["instruction"].tolist())
    assert (np.array(by_heart) == ours["intent"]).mean() > (ours["predicted_intent"] == ours["intent"]).mean() > 0.9


def test_the_report_of_leakage(splits: pa.Table) -> None:
    train = splits.to_pandas().query("split == 'train'")
    classifier = TextClassifier.fit(train["instruction"].tolist(), train["intent"].tolist(), "words")
    facts = take_sides(splits, classifier)[1].facts()
    assert facts["bins"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    for name in ("cluster_split", "random_split"):
        assert sum(facts[name]["shares"]) == pytest.approx(1, abs=1e-3)
        assert facts[name]["rows"] == splits.to_pandas().eval("split == 'test'").sum()
    assert facts["cluster_split"]["median"] < facts["random_split"]["median"]


def test_a_leak_is_found(splits: pa.Table) -> None:
    assert leaks(splits) == []
    rows = splits.to_pylist()
    train = next(row for row in rows if row["split"] == "train" and len(row["instruction"]) > 30)
    other_intent = next(row["intent"] for row in rows if row["intent"] != train["intent"])
    planted = [
        {**train, "row_id": "alike", "instruction": f"{train['instruction'].upper()}!", "split": "test"},
        {**train, "row_id": "other intent", "intent": other_intent, "split": "test"},
        {**train, "row_id": "other words", "instruction": "xyz " * 9, "split": "validation"},
    ]
    found = leaks(pa.Table.from_pylist([*rows, *planted], schema=splits.schema))
    assert ("alike", train["row_id"]) in found
    assert {judge for judge, _ in found} == {"alike"}


def test_bitext_does_not_leak(split_bitext: Split) -> None:
    assert leaks(split_bitext.rows) == []
