"""The asset's stage: the router of a lake, the predictions of its rows, and when both are made again."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cs_pipeline.company import company_file
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, write_json
from cs_pipeline.core.schema import CONVERSATION, PREDICTION
from cs_pipeline.prepare.checks import router_calibrated
from cs_pipeline.prepare.router import (
    PREDICTIONS,
    RouterQuality,
    calibration_error,
    forget_in_router,
    load_lake_router,
    router_quality,
    train_router,
)
from cs_pipeline.retrieval.router import NO_SUBJECT, router_folder

OWN = ["my kettle leaks", "water runs out of the kettle", "the kettle drips below", "is the kettle loud?"]


@pytest.fixture(scope="module")
def company(prepared: Path) -> pa.Table:
    """Bitext's rows of every third intent, and a company's: three training rows with a subject, two rows without one, and a
    later message that has the subject of its conversation.
    """
    rows = DataLake(prepared).read("prepare", "conversations").to_pylist()
    intents = sorted({row["intent"] for row in rows})[::3]
    rows = [row for row in rows if row["intent"] in intents]
    own = [
        rows[0]
        | {
            "row_id": f"own{number}",
            "source": "company",
            "instruction": question,
            "response": "Please tighten the lid.",
            "intent": "Leaking kettle" if number < 3 else NO_SUBJECT,
            "cluster_id": f"own{number}",
            "split": split,
        }
        for number, (question, split) in enumerate(zip([*OWN, OWN[3]], [*["train"] * 4, "test"], strict=True))
    ]
    later = {
        "row_id": "own5",
        "instruction": "ok thanks",
        "cluster_id": "own5",
        "context": "[]",
        "intent_confidence": 0.1,
    }
    return pa.Table.from_pylist([*rows, *own, own[0] | later], schema=CONVERSATION)


@pytest.fixture
def trained(lake: DataLake, company: pa.Table) -> DataLake:
    lake.write("prepare", "conversations", company, CONVERSATION)
    train_router(lake, "")
    return lake


def test_every_row_gets_a_prediction(trained: DataLake, company: pa.Table) -> None:
    table = trained.read("prepare", PREDICTIONS)
    assert table.schema.equals(PREDICTION)
    assert table.column("row_id").equals(company.column("row_id"))
    router = load_lake_router(trained)
    assert "Leaking kettle" in router.labels
    assert NO_SUBJECT not in router.labels
    for split, same in (("test", True), ("validation", True), ("train", False)):
        rows = pc.equal(company.column("split"), split)
        routes = router.route(company.filter(rows).column("instruction").to_pylist())
        found = table.filter(rows).column("predicted_intent").to_pylist()
        assert ([route.label for route in routes] == found) == same, split
    confidence = table.column("predicted_confidence").to_numpy()
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert 0 < table.column("predicted_intent").null_count < table.num_rows / 2


def test_what_the_router_is_worth(trained: DataLake, company: pa.Table) -> None:
    quality = router_quality(trained)
    validation = company.filter(pc.equal(company.column("split"), "validation"))
    assert quality.labels == len(set(company.column("intent").to_pylist())) - 1
    train = company.filter(pc.equal(company.column("split"), "train"))
    labelled = pc.sum(pc.not_equal(train.column("intent"), NO_SUBJECT)).as_py()
    assert quality.training_rows == labelled - 1, "a message such as 'ok thanks' trains no label"
    assert (quality.validation_rows, quality.company_rows) == (validation.num_rows, 0)
    assert quality.company_handed_over is None
    assert quality.accuracy is not None
    assert quality.accuracy > 0.8
    assert quality.unknown_handed_over is not None
    assert quality.unknown_handed_over > 0.3
    assert router_calibrated(trained).passed


def test_it_is_trained_again_only_when_something_has_changed(trained: DataLake, company: pa.Table) -> None:
    first = train_router(trained, "")
    assert first.reused
    assert first.quality == router_quality(trained)
    trained.table("prepare", PREDICTIONS).unlink()
    again = train_router(trained, "")
    assert not again.reused
    assert again.version == first.version
    trained.write("prepare", "conversations", company.slice(1), CONVERSATION)
    changed = train_router(trained, "")
    assert not changed.reused
    assert changed.version != first.version
    assert trained.read("prepare", PREDICTIONS).num_rows == company.num_rows - 1


def test_the_company_sets_the_share_of_false_handovers(trained: DataLake, company: pa.Table) -> None:
    trained.write("prepare", "conversations", company, CONVERSATION)
    usual = train_router(trained, "").quality.handed_over
    company_file(trained).write_text("handover: {false_share: 0.4}\n")
    try:
        assert train_router(trained, "").quality.handed_over == pytest.approx(0.4, abs=0.1)
    finally:
        company_file(trained).unlink()
    assert train_router(trained, "").quality.handed_over == usual
    assert usual is not None
    assert usual < 0.1


def test_a_forgotten_row_is_gone_from_the_router(trained: DataLake, company: pa.Table) -> None:
    version = train_router(trained, "").version
    own = pc.starts_with(company.column("row_id"), "own")
    trained.write("prepare", "conversations", company.filter(pc.invert(own)), CONVERSATION)
    forget_in_router(trained)
    assert "Leaking kettle" not in load_lake_router(trained).labels
    assert not {f"own{number}" for number in range(5)} & set(
        trained.read("prepare", PREDICTIONS).column("row_id").to_pylist()
    )
    assert train_router(trained, "").version != version
    trained.write("prepare", "conversations", company.slice(company.num_rows - 2), CONVERSATION)
    forget_in_router(trained)
    assert [path.name for path in trained.path("prepare").iterdir()] == ["conversations.parquet"]
    forget_in_router(trained)


def test_a_lake_without_router_or_intents_says_what_to_do(lake: DataLake, company: pa.Table) -> None:
    with pytest.raises(PipelineError, match="Materialise 'router' first"):
        load_lake_router(lake)
    lake.write("prepare", "conversations", company.slice(company.num_rows - 2), CONVERSATION)
    with pytest.raises(PipelineError, match="no training row with an intent"):
        train_router(lake, "")
    assert not router_folder(lake).exists()
    shutil.rmtree(lake.root)


GOOD = RouterQuality(9, 900, 300, 0.99, 0.01, 0.05, 40, 0.06, 0.9)


@pytest.mark.parametrize(
    ("quality", "problem"),
    [
        (GOOD, None),
        (replace(GOOD, calibration_error=0.08), "wrong by 8%"),
        (replace(GOOD, calibration_error=0.08, validation_rows=50), None),
        (replace(GOOD, company_handed_over=0.4), "does not recognise 40%"),
        (replace(GOOD, company_handed_over=0.4, company_rows=5), None),
        (RouterQuality(1, 3, 0, None, None, None, 0, None, None), None),
    ],
)
def test_the_check_warns(lake: DataLake, quality: RouterQuality, problem: str | None) -> None:
    write_json(lake.path("prepare", "router.json"), {"quality": vars(quality)})
    outcome = router_calibrated(lake)
    assert outcome.passed == (problem is None)
    assert (problem or "") in (outcome.problem or "")


def test_the_calibration_error() -> None:
    probabilities, right = np.array([0.9, 0.9, 0.4, 0.4]), np.array([True, False, False, True])
    assert calibration_error(probabilities, right) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) is None
