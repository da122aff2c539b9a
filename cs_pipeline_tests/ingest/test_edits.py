"""Agents' edits land as the company's conversations: exactly once, even after a kill, and without personal data."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from cs_pipeline import feedback
from cs_pipeline.company import Columns, Company
from cs_pipeline.core import database
from cs_pipeline.core import lake as files
from cs_pipeline.core.lake import DataLake
from cs_pipeline.feedback import Feedback, GivenAnswer
from cs_pipeline.ingest import landing, landing_folder, ledger
from cs_pipeline.ingest.interactions import ingest_day
from cs_pipeline.ingest.landing import EDIT_DELAY, SETTLE_TIME, kept_copy, land_edits, scan_landing
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.prepare.company.interactions import clean_day
from cs_pipeline_tests.support.killed import kill, kill_points

TRACED = {str(module.__file__) for module in (feedback, database, landing, landing_folder, ledger, files)}
# With these settings, a table of edits, or an agent named agent, would be misread.
COMPANY = Company(columns=Columns(question="question", answer="reply"), agents=("Team Blue",), retention_days=30)
DRAFT = GivenAnswer("version 3", "Dear jane@example.com, it is on its way.", {"tone": "friendly"})
TICKET = "Hello, where is my order 4412345678? My name is Jane Doe, jane@example.com."
SENT = "Hello Jane, your order 4412345678 left our warehouse this morning. You have it tomorrow."


def soon() -> datetime:
    """The time from which edits made now are landed."""
    return datetime.now(UTC) + EDIT_DELAY


def edit(lake: DataLake, id: str, ticket: str = TICKET, sent: str = SENT, customer: str = "") -> None:
    with Feedback(lake) as store:
        store.agent_edit(id, "tom", ticket, sent, [DRAFT], picked=0, customer=customer)


def landed(lake: DataLake) -> list[str]:
    return sorted(path.name for path in (lake.root / "landing").iterdir())


def delivered(lake: DataLake) -> list[str]:
    """The ids of the edits in all deliveries that are not superseded."""
    with Ledger(lake) as known:
        superseded = known.superseded()
        kept = [kept_copy(lake, one.sha256) for one in known.deliveries() if one.sha256 not in superseded]
    return sorted(json.loads(line).get("id", "") for path in kept for line in path.read_text().splitlines())


def test_edits_wait_for_one_another_and_land_once(lake: DataLake) -> None:
    assert land_edits(lake, COMPANY, datetime.now(UTC)) == 0
    edit(lake, "one")
    assert land_edits(lake, COMPANY, datetime.now(UTC)) == 0
    edit(lake, "two", customer="jane@example.com")
    assert land_edits(lake, COMPANY, soon()) == 2
    assert land_edits(lake, COMPANY, soon()) == 0
    edit(lake, "three")
    assert land_edits(lake, COMPANY, soon()) == 1
    assert landed(lake) == ["agent_edits_000001.jsonl", "agent_edits_000002.jsonl"]
    assert not list(lake.path("serve").glob("*agent_edits*")), "files with raw text are removed"
    # The very next scan delivers them, because they were put there atomically.
    assert len(scan_landing(lake, COMPANY, datetime.now(UTC)).taken) == 2
    assert delivered(lake) == ["one", "three", "two"]


def test_files_of_edits_are_removed_once_they_were_read(lake: DataLake) -> None:
    edit(lake, "one")
    land_edits(lake, COMPANY, soon())
    theirs = lake.root / "landing" / "agent_edits_000007.jsonl"
    theirs.write_text("{}")
    land_edits(lake, COMPANY, soon())
    assert landed(lake) == ["agent_edits_000001.jsonl", theirs.name], "it was not read yet"
    scan_landing(lake, COMPANY, datetime.now(UTC))
    scan_landing(lake, COMPANY, datetime.now(UTC) + 2 * SETTLE_TIME)
    land_edits(lake, COMPANY, soon())
    assert landed(lake) == [theirs.name]
    assert "one" in delivered(lake)


def test_an_edit_becomes_a_training_row(prepared: Path, lake: DataLake) -> None:
    lake.path("prepare").mkdir(parents=True)
    for name in ("intent_classifier", "answer_classifier"):
        shutil.copytree(prepared / "prepare" / name, lake.path("prepare", name))
    shutil.copy(prepared / "prepare" / "bitext_splits.parquet", lake.path("prepare"))
    edit(lake, "one", customer="jane@example.com")
    edit(lake, "two", "Hi, how do I cancel my order?", "Open the order and press Cancel, please.")
    edit(lake, "three", "Hi, when do I get my refund?", "The money is back on your account within three days.")
    land_edits(lake, COMPANY, soon())
    now = datetime.now(UTC)
    (delivery,) = scan_landing(lake, COMPANY, now).taken
    (facts,) = ingest_day(lake, COMPANY, delivery.day)
    assert (facts.format, facts.records, facts.kept, facts.turns) == ("Zendesk tickets", 3, 3, 6)
    cleaned = clean_day(lake, COMPANY, delivery.day)
    rows = cleaned.rows.to_pylist() + cleaned.flagged.to_pylist()
    assert cleaned.counts["set_aside"] == cleaned.counts["flagged"] == {}
    one, two, three = rows
    assert one["instruction"].endswith("my order {{Order Number}}? My name is {{Client Name}}, {{Customer Email}}.")
    assert "{{Order Number}}" in one["response"]
    assert "Jane" not in one["response"]
    assert (one["source"], one["source_file_sha256"], one["context"]) == ("company", delivery.sha256, None)
    assert two["intent"] == "cancel_order"
    with Ledger(lake) as known:
        assert one["subject_id"] == known.hash_subject("jane@example.com")
    assert len({row["subject_id"] for row in (one, two, three)} - {None}) == 3, (
        "unnamed customers are not one who floods the desk"
    )


def test_texts_of_edits_are_deleted_after_the_retention_period(lake: DataLake) -> None:
    edit(lake, "one", customer="jane@example.com")
    later = soon()
    land_edits(lake, COMPANY, later)
    land_edits(lake, COMPANY, later + timedelta(days=29))
    with Feedback(lake) as store:
        assert store.edits()[0].ticket == TICKET
    land_edits(lake, COMPANY, later + timedelta(days=31))
    assert not any(b"jane" in path.read_bytes() for path in lake.path("serve").iterdir())
    edit(lake, "one", customer="jane@example.com")
    assert land_edits(lake, COMPANY, soon() + timedelta(days=32)) == 0, "a late retry is recognised"


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if possible: what a killed process wrote remains, and syncing is fast."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize("scan_between", [True, False])
def test_after_a_kill_at_any_line_each_edit_lands_exactly_once(memory: Path, scan_between: bool) -> None:
    start, lake = DataLake(memory / "start"), DataLake(memory / "killed")
    edit(start, "one")
    edit(start, "two")
    scan_landing(start, COMPANY, datetime.now(UTC))
    work = partial(land_edits, lake, COMPANY, soon())
    shutil.copytree(start.root, lake.root)
    points = kill_points(work, lake.root, TRACED)
    assert len(points) > 8, "the steps were traced"
    for point in points:
        shutil.rmtree(lake.root)
        shutil.copytree(start.root, lake.root)
        kill(work, point, TRACED)
        now = datetime.now(UTC)
        if scan_between:
            scan_landing(lake, COMPANY, now)
        edit(lake, "three")
        while land_edits(lake, COMPANY, soon()):
            pass
        for _ in range(2):
            now += 2 * SETTLE_TIME
            scan_landing(lake, COMPANY, now)
        assert delivered(lake) == ["one", "three", "two"]
        land_edits(lake, COMPANY, soon())
        assert landed(lake) == []
        assert not list(lake.path("serve").glob("*agent_edits*"))
