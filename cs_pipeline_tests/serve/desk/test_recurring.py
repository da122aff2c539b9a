"""Questions about nothing known that recur in the queue of handovers, without personal data."""

from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from cs_pipeline.cli.commands import app
from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.desk.handover import Handover, HandoverReason
from cs_pipeline.serve.desk.handover_queue import HandoverQueue
from cs_pipeline.serve.desk.recurring import recurring_questions
from cs_pipeline.serve.desk.screening import Screening

NOW = datetime.now(UTC)
BATTERY = [
    "My battery does not charge, the order was 4412345678",
    "the battery does not charge (jane@mail.example)",
    "why does my battery not charge?",
    "The battery will not charge",
]


@pytest.fixture(scope="module")
def screening() -> Screening:
    return Screening(Company())


def hand_over(
    lake: DataLake,
    number: int,
    question: str,
    *,
    days: int = 0,
    follows: str = "",
    reason: str = HandoverReason.UNCLEAR,
) -> None:
    """Puts a handover ``days`` old into the queue, as the desk does."""
    record = Handover(
        reference=f"H-{number:08X}",
        at=(NOW - timedelta(days=days)).isoformat(timespec="seconds"),
        reason=reason,
        follows=follows,
        summary="",
        model="3",
        intent=None,
        confidence=0.1,
        context="",
        values={},
        conversation=(("customer", "hello"), ("agent", "How can I help?"), ("customer", question)),
    )
    HandoverQueue(lake, Company()).put(record)


def test_similar_questions_of_three_conversations_are_one_group_without_personal_data(
    lake: DataLake, screening: Screening
) -> None:
    for number, question in enumerate(BATTERY):
        hand_over(lake, number, question, days=8 * (number == 3))
    hand_over(lake, 10, "Do you hire out tandems?")
    hand_over(lake, 11, "Is there a workshop in Leeds?")
    waiting = lake.path("serve", "handovers")
    (waiting / "delivered").mkdir()
    (waiting / "H-00000001.json").rename(waiting / "delivered" / "H-00000001.json")
    (group,) = recurring_questions(lake, lambda text: screening.mask(text, "customer"), NOW.date())
    assert (group.conversations, group.this_week) == (4, 3)
    assert {"battery", "charge"} <= set(group.keywords)
    assert len(group.examples) == 3
    assert not any(detail in text for text in group.examples for detail in ("4412345678", "jane", "{{"))


def test_one_conversation_counts_once_and_other_reasons_do_not_count(lake: DataLake, screening: Screening) -> None:
    hand_over(lake, 0, BATTERY[0])
    for number in (1, 2):
        hand_over(lake, number, BATTERY[number], follows="H-00000000")
    hand_over(lake, 3, BATTERY[3])
    hand_over(lake, 4, BATTERY[3], reason=HandoverReason.ANGER)
    assert recurring_questions(lake, lambda text: screening.mask(text, "customer"), NOW.date()) == []


def test_the_command_lists_them(lake: DataLake) -> None:
    run = CliRunner()
    assert "No question about something new" in run.invoke(app, ["unanswered"]).output
    for number, question in enumerate(BATTERY):
        hand_over(lake, number, question)
    said = " ".join(run.invoke(app, ["unanswered"]).output.split())
    assert "in 4 conversations this week" in said
    assert "nobody has answered it yet" in said
    assert "jane@mail.example" not in said
