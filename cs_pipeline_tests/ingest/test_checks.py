"""The checks of the ingest stage: each passes on sound tables and fails on the fault that it is for."""

from datetime import UTC, datetime, timedelta

import pytest

from cs_pipeline.company import company_file, load_company
from cs_pipeline.core.lake import PRIVATE, DataLake
from cs_pipeline.core.schema import CONVERSATION, INTERACTION
from cs_pipeline.ingest import checks
from cs_pipeline.ingest.interactions import ingest_day
from cs_pipeline.ingest.landing import scan_landing
from cs_pipeline_tests.prepare import conversations

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = NOW.date()
GOOD, BAD = "where is it,on its way\n", "only one field\n"


def test_bitext_rows_have_distinct_ids_and_the_agreed_schema(lake: DataLake) -> None:
    rows = conversations([{"row_id": str(number)} for number in range(5)])
    lake.write("ingest", "bitext_conversations", rows, CONVERSATION)
    assert checks.row_ids_unique(lake).facts == {"rows": 5, "distinct": 5}
    assert checks.row_ids_unique(lake).passed
    assert checks.schema_agreed(lake).passed
    lake.write("ingest", "bitext_conversations", conversations([{"row_id": "a"}, {"row_id": "a"}]), CONVERSATION)
    assert not checks.row_ids_unique(lake).passed
    lake.write("ingest", "bitext_conversations", CONVERSATION.empty_table(), CONVERSATION)
    assert not checks.row_ids_unique(lake).passed, "an empty table is not enough"


def test_another_schema_is_described(lake: DataLake) -> None:
    rows = conversations([{}]).drop_columns(["intent"])
    lake.write("ingest", "bitext_conversations", rows, rows.schema)
    outcome = checks.schema_agreed(lake)
    assert not outcome.passed
    assert "intent" in (outcome.problem or "")


@pytest.fixture
def ingested(lake: DataLake) -> DataLake:
    """A day with a file of which one record in five cannot be used."""
    file = lake.root / "landing" / "monday.csv"
    file.parent.mkdir(parents=True)
    file.write_text("question,answer\n" + GOOD * 8 + BAD * 2)
    company = load_company(lake)
    for moment in (NOW, NOW + timedelta(minutes=1)):
        scan_landing(lake, company, moment)
    ingest_day(lake, company, DAY)
    return lake


def test_the_share_of_bad_records_is_limited(ingested: DataLake) -> None:
    assert checks.few_bad_records(ingested, str(DAY)).passed, "one in five is the default limit"
    company_file(ingested).write_text("bad_share: 0.1\n")
    outcome = checks.few_bad_records(ingested, str(DAY))
    assert not outcome.passed
    assert outcome.facts == {"max_bad_share": 0.1}
    assert "monday.csv: 20%" in (outcome.problem or "")
    assert "raise bad_share in company.yaml" in (outcome.problem or "")


def test_a_lost_turn_does_not_reconcile(ingested: DataLake) -> None:
    outcome = checks.records_reconcile(ingested, str(DAY))
    assert outcome.passed
    assert (outcome.facts["records"], outcome.facts["kept"], outcome.facts["quarantined"]) == (10, 8, 2)
    name = f"company_interactions/{DAY}"
    ingested.write("ingest", name, ingested.read("ingest", name).slice(1), INTERACTION, mode=PRIVATE)
    assert not checks.records_reconcile(ingested, str(DAY)).passed
