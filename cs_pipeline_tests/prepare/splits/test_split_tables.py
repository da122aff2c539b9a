from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cs_pipeline.company import company_file
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, file_sha256, read_json
from cs_pipeline.core.schema import CONVERSATION, PREDICTION, SPLIT_ROW, check_schema
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.router import PREDICTIONS
from cs_pipeline.prepare.splits import split_tables
from cs_pipeline.prepare.splits.split import SPLITS, split
from cs_pipeline.prepare.splits.split_tables import random_split, write_split
from cs_pipeline.retrieval.similarity import naive_split_similarity, nearest
from cs_pipeline_tests.prepare import conversations


@pytest.fixture(scope="module")
def splits() -> pa.Table:
    rows = [{str(name): value for name, value in row.items()} for row in sample_rows(1_080).to_dict("records")]
    return split(conversations(rows), before=None).rows


def make_lake(folder: Path, splits: pa.Table, company: pa.Table | None = None) -> DataLake:
    """A lake with what the splits are made of."""
    lake = DataLake(folder)
    lake.write("prepare", "bitext_splits", splits, CONVERSATION)
    together = splits if company is None else pa.concat_tables([splits, company])
    lake.write("prepare", "conversations", together, CONVERSATION)
    predicted = [predicted_for(row) for row in together.to_pylist()]
    lake.write("prepare", PREDICTIONS, pa.Table.from_pylist(predicted, schema=PREDICTION), PREDICTION)
    return lake


def predicted_for(row: dict[str, Any]) -> dict[str, Any]:
    """The prediction for a row: its intent, but none for every tenth row. The numbers depend on the row's id alone."""
    number = int(digest(row["row_id"]), 16) % 10
    return {
        "row_id": row["row_id"],
        "predicted_intent": None if number == 0 else f"{row['intent']} predicted",
        "predicted_confidence": number / 10,
    }


@pytest.fixture(scope="module")
def bitext_only(splits: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """A lake with the three splits of Bitext's rows."""
    lake = make_lake(tmp_path_factory.mktemp("lake"), splits)
    for name in SPLITS:
        write_split(lake, name)
    return lake


def company_rows(splits: pa.Table) -> pa.Table:
    """Two company rows per split, with a subject of the company as their intent."""
    rows = [
        {
            "row_id": f"company {name} {number}",
            "source": "company",
            "instruction": f"{row['instruction']} {number}",
            "response": "an answer",
            "intent": "a_subject_of_its_own",
            "intent_confidence": 0.5,
            "cluster_id": row["cluster_id"],
            "split": name,
        }
        for name in SPLITS
        for number, row in enumerate(splits.filter(pc.equal(splits.column("split"), name)).to_pylist()[:2])
    ]
    return conversations(rows)


def leakage(lake: DataLake) -> dict[str, Any]:
    report: dict[str, Any] = read_json(lake.path("prepare", "leakage.json"))
    return report


def frame(lake: DataLake, name: str) -> pd.DataFrame:
    return lake.read("prepare", f"{name}_split").to_pandas()


def test_the_splits_hold_every_bitext_row_once_with_its_predicted_intent(
    bitext_only: DataLake, splits: pa.Table
) -> None:
    raw = {row["row_id"]: row for row in splits.to_pylist()}
    total = 0
    for name in SPLITS:
        table = bitext_only.read("prepare", f"{name}_split")
        check_schema(table, SPLIT_ROW, name)
        total += table.num_rows
        for row in table.to_pylist():
            assert row["split"] == name
            assert {name: row[name] for name in splits.column_names} == raw[row["row_id"]]
            predicted = predicted_for(row)
            assert row["predicted_intent"] == predicted["predicted_intent"]
            assert row["predicted_confidence"] == pytest.approx(predicted["predicted_confidence"])
        similarity = table.column("nearest_train_similarity")
        assert similarity.null_count == (0 if name == "test" else table.num_rows)
    assert total == splits.num_rows


def test_the_leakage_report_compares_this_split_with_a_random_one(bitext_only: DataLake, splits: pa.Table) -> None:
    test, train = frame(bitext_only, "test"), frame(bitext_only, "train")
    cosines = nearest(test["instruction"].tolist(), train["instruction"].tolist())[1]
    np.testing.assert_array_equal(test["nearest_train_similarity"], cosines)
    random_split = naive_split_similarity(splits.column("instruction").to_pylist(), len(test) / splits.num_rows)[1]
    report = leakage(bitext_only)
    assert report["bins"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert report["training_questions_compared"] == len(train)
    for name, values in (("cluster_split", cosines), ("random_split", random_split)):
        assert sum(report[name]["shares"]) == pytest.approx(1, abs=1e-3)
        assert report[name]["rows"] == len(test)
        assert report[name]["median"] == pytest.approx(np.median(values), abs=1e-4)
    assert report["cluster_split"]["median"] < report["random_split"]["median"]


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_made_alone_is_the_same(name: str, splits: pa.Table, bitext_only: DataLake, tmp_path: Path) -> None:
    lake = make_lake(tmp_path, splits)
    _, report = write_split(lake, name)
    assert (
        lake.table("prepare", f"{name}_split").read_bytes()
        == bitext_only.table("prepare", f"{name}_split").read_bytes()
    )
    others = [lake.table("prepare", f"{other}_split") for other in SPLITS if other != name]
    assert not any(path.exists() for path in others)
    assert report == (leakage(bitext_only) if name == "test" else None)
    assert lake.path("prepare", "leakage.json").exists() == (name == "test")


def test_company_rows_come_after_the_rows_of_bitext(bitext_only: DataLake, splits: pa.Table, tmp_path: Path) -> None:
    lake = make_lake(tmp_path, splits, company_rows(splits))
    for name in SPLITS:
        table, _ = write_split(lake, name)
        check_schema(table, SPLIT_ROW, name)
        bitext = bitext_only.read("prepare", f"{name}_split")
        columns = [name for name in SPLIT_ROW.names if name != "nearest_train_similarity"]
        first = table.slice(0, bitext.num_rows).select(columns)
        assert first.equals(bitext.select(columns)), "Bitext's rows come first, unchanged"
        added = table.slice(bitext.num_rows).to_pylist()
        assert [row["row_id"] for row in added] == [f"company {name} {number}" for number in range(2)]
        assert [row["predicted_intent"] for row in added] == [predicted_for(row)["predicted_intent"] for row in added]
        assert all((row["nearest_train_similarity"] is not None) == (name == "test") for row in added)
    before, after = leakage(bitext_only), leakage(lake)
    assert after["cluster_split"]["rows"] == before["cluster_split"]["rows"]
    assert after["training_questions_compared"] == before["training_questions_compared"] + 2
    assert after["random_split"] == before["random_split"]


def used_rows(lake: DataLake, share: float) -> dict[str, list[str]]:
    """The row ids of each split with this ``bitext_share``, Bitext's without the company's."""
    company_file(lake).write_text(f"bitext_share: {share}")
    tables = {name: write_split(lake, name)[0].to_pylist() for name in SPLITS}
    return {name: [row["row_id"] for row in rows if row["source"] == "bitext"] for name, rows in tables.items()}


def test_a_company_can_leave_out_a_part_of_bitext(splits: pa.Table, tmp_path: Path) -> None:
    lake = make_lake(tmp_path, splits, company_rows(splits))
    everything, half, tenth, nothing = (used_rows(lake, share) for share in (1, 0.5, 0.1, 0))
    assert nothing == {name: [] for name in SPLITS}
    assert [frame(lake, name)["source"].tolist() for name in SPLITS] == [["company", "company"]] * 3
    assert not lake.path("prepare", "leakage.json").exists(), "there is no row of Bitext to compare"
    for name in ("validation", "test"):
        assert half[name] == tenth[name] == everything[name], "questions of Bitext are still judged"
    assert set(tenth["train"]) < set(half["train"]) < set(everything["train"])
    assert len(half["train"]) == pytest.approx(len(everything["train"]) / 2, rel=0.2)
    cluster = dict(zip(splits.column("row_id").to_pylist(), splits.column("cluster_id").to_pylist(), strict=True))
    kept = {cluster[row] for row in half["train"]}
    assert half["train"] == [row for row in everything["train"] if cluster[row] in kept], "whole clusters are left out"


def test_without_bitext_every_split_needs_a_row_of_the_company(splits: pa.Table, tmp_path: Path) -> None:
    lake = make_lake(tmp_path, splits, company_rows(splits).slice(0, 2))
    with pytest.raises(PipelineError, match=r"no row is left for: test, validation\."):
        used_rows(lake, 0)
    assert used_rows(lake, 0.01)["test"], "with a part of Bitext it has"


def test_test_questions_are_compared_with_a_limited_number_of_training_questions(
    splits: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_tables, "MAX_TRAINING_QUESTIONS", {"bitext": 100, "company": 1})
    lake = make_lake(tmp_path, splits, company_rows(splits))
    test, report = write_split(lake, "test")
    assert report is not None
    assert report["training_questions_compared"] == 101
    write_split(lake, "train")
    train = frame(lake, "train")
    sample = train[train["source"] == "bitext"].sort_values("row_id").head(100)
    company = train[train["source"] == "company"].sort_values("row_id").head(1)
    cosines = nearest(test.column("instruction").to_pylist(), [*sample["instruction"], *company["instruction"]])[1]
    np.testing.assert_allclose(test.column("nearest_train_similarity").to_numpy(), cosines, rtol=1e-6)


def test_the_random_split_is_made_once(bitext_only: DataLake, splits: pa.Table, tmp_path: Path) -> None:
    random = random_split(bitext_only)
    lake = DataLake(tmp_path)
    lake.write("prepare", "bitext_splits", splits, CONVERSATION)
    assert random_split(lake).equals(random)
    path = lake.table("prepare", "random_split")
    written = path.stat().st_mtime_ns, file_sha256(path)
    assert random_split(lake).equals(random)
    assert (path.stat().st_mtime_ns, file_sha256(path)) == written
    fewer = splits.slice(100)
    lake.write("prepare", "bitext_splits", fewer, CONVERSATION)
    again = random_split(lake)
    assert not again.equals(random)
    assert set(again.column("row_id").to_pylist()) <= set(fewer.column("row_id").to_pylist())
