"""The asset: its table and JSON from landing to landing, with a person's file, and after a customer is forgotten."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256, read_json
from cs_pipeline.core.schema import CONVERSATION, SUBJECT, check_schema
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.prepare.checks import subjects_reconcile, subjects_reviewed
from cs_pipeline.prepare.splits.conversations import join_conversations
from cs_pipeline.prepare.subjects.discovery import Ticket
from cs_pipeline.prepare.subjects.edits import subjects_file
from cs_pipeline.prepare.subjects.subjects import (
    FoundSubjects,
    find_subjects,
    forget_examples,
    subject_facts,
    subject_of_rows,
)
from cs_pipeline.retrieval.router import NO_SUBJECT
from cs_pipeline_tests.prepare.subjects import land_tickets
from cs_pipeline_tests.support.grammar import FIRST_DAY, provider_tickets
from cs_pipeline_tests.support.joining import bitext

FEES = [
    ("why did I have to pay a late fee", "A reminder costs five euro. I have deducted the late fee from your bill."),
    ("there is a late fee on my bill", "I have deducted the late fee of the reminder from your bill."),
    ("late fee on the bill, why", "A reminder costs five euro, which is the late fee on your bill."),
    ("please take the late fee off my bill", "I have deducted the late fee from your bill."),
]
LIGHTS = [
    ("the light on my router is red", "Hold the reset pin until the light of the router turns white."),
    ("my router has a red light", "A red light means no signal: hold the reset pin until it turns white."),
    ("red light on the router", "Hold the reset pin until the red light turns white."),
    ("what does the red light on my router mean", "A red light means no signal. Hold the reset pin."),
]
MOVES = [
    ("we move to another flat next month", "Tell us the new address four weeks before you move, and we switch it on."),
    (
        "I move, what about my contract",
        "Tell us the new address and the date when you move; the contract goes with you.",
    ),
    (
        "how do I take the contract along when I move",
        "Tell us the new address; the contract goes with you when you move.",
    ),
]


def tickets(pairs: Sequence[tuple[str, str]], start: int, weeks: int = 0) -> list[Ticket]:
    """A conversation of each pair, by different customers."""
    return [
        Ticket(f"r{number:03}", f"c{number:03}", f"customer {number}", FIRST_DAY + timedelta(weeks=weeks), *pair)
        for number, pair in enumerate(pairs, start)
    ]


FIRST = [*tickets(FEES, 0), *tickets(LIGHTS, 10)]
NOBODY = tickets([("is your logo allowed on our shirts", "Please write to marketing.")], 20)


@pytest.fixture
def lake(lake: DataLake) -> DataLake:
    lake.write("prepare", "bitext_splits", bitext(), CONVERSATION)
    land_tickets(lake, [*FIRST, *NOBODY])
    return lake


def find(lake: DataLake) -> FoundSubjects:
    found = find_subjects(lake, Company())
    check_schema(found.rows, SUBJECT, "subjects")
    assert subjects_reconcile(lake).passed
    return found


def ids(found: FoundSubjects) -> list[str]:
    return [subject.id for subject in found.subjects]


def write_edits(lake: DataLake, text: str) -> None:
    subjects_file(lake).write_text(text)


def hashes(lake: DataLake) -> list[str]:
    return [file_sha256(lake.path("prepare", name)) for name in ("subjects.parquet", "subjects.json")]


def examples(lake: DataLake) -> str:
    return lake.path("prepare", "subjects.json").read_text()


def test_subjects_are_found_named_and_described(lake: DataLake) -> None:
    found = find(lake)
    assert ids(found) == ["late_fee_bill", "red_light_router"]
    fees = found.subjects[0]
    assert (fees.name, fees.conversations, fees.weeks) == ("Late fee bill", 4, {str(FIRST_DAY): 4})
    assert (fees.first_day, fees.found_on, fees.intent, fees.suggested) == (str(FIRST_DAY), str(FIRST_DAY), None, None)
    assert (fees.recent_share, fees.earlier_share) == (round(4 / 9, 4), None)
    assert len(fees.examples) == 3
    assert set(fees.examples) <= {question for question, _ in FEES}
    assert found.counts == {
        "usable": 9,
        "delivered_again": 0,
        "rows": 9,
        "with_subject": 8,
        "without": 1,
        "vague_question": 0,
    }
    assert subject_of_rows(lake) == {
        **{ticket.row_id: "late_fee_bill" for ticket in FIRST[:4]},
        **{ticket.row_id: "red_light_router" for ticket in FIRST[4:]},
    }


def test_without_company_rows_there_is_nothing_to_find(lake: DataLake, tmp_path: Path) -> None:
    empty = DataLake(tmp_path / "empty")
    found = find(empty)
    assert (found.subjects, found.rows.num_rows, found.new, found.unknown) == ([], 0, [], [])
    assert subjects_reviewed(empty).passed
    assert find(empty).reused


def test_unchanged_input_is_reused_and_a_rebuild_has_the_same_bytes(lake: DataLake, tmp_path: Path) -> None:
    first = find(lake)
    before = hashes(lake)
    assert not first.reused
    again = find(lake)
    assert again.reused
    assert (again.subjects, again.rows, again.counts, again.new) == (
        first.subjects,
        first.rows,
        first.counts,
        first.new,
    )
    assert hashes(lake) == before
    lake.path("prepare", "subjects.json").unlink()
    assert not find(lake).reused
    assert hashes(lake) == before
    other = DataLake(tmp_path / "other")
    other.write("prepare", "bitext_splits", bitext(), CONVERSATION)
    land_tickets(other, reversed([*FIRST, *NOBODY]))
    find(other)
    assert other.read("prepare", "subjects").equals(lake.read("prepare", "subjects"))


def test_a_later_landing_keeps_ids_and_reports_what_is_new(lake: DataLake) -> None:
    find(lake)
    assert subject_facts(lake)["new"] == ["late_fee_bill", "red_light_router"]
    later = [*tickets(MOVES, 30, weeks=5), *tickets(FEES[:1], 40, weeks=5)]
    land_tickets(lake, later)
    found = find(lake)
    assert ids(found)[:2] == ["late_fee_bill", "red_light_router"]
    (new,) = found.new
    assert new == ids(found)[2]
    assert "move" in new
    fees = found.subjects[0]
    assert (fees.recent_share, fees.earlier_share) == (0.25, round(4 / 9, 4))
    outcome = subjects_reviewed(lake)
    assert not outcome.passed
    assert "1 subjects are new" in str(outcome.problem)
    write_edits(lake, f"rename: {{{new}: Moving house}}\n")
    assert find(lake).subjects[2].name == "Moving house"
    assert subjects_reviewed(lake).passed


def test_a_late_message_in_an_old_conversation_is_no_recent_conversation(lake: DataLake) -> None:
    find(lake)
    late = [
        replace(ticket, row_id=f"{ticket.row_id} late") for ticket in tickets([("thanks", "You are welcome.")], 0, 9)
    ]
    land_tickets(lake, late)
    found = find(lake)
    fees = next(subject for subject in found.subjects if subject.conversations == 4)
    assert (fees.recent_share, fees.earlier_share) == (0.0, round(4 / 9, 4))


def test_two_similar_conversations_of_the_last_weeks_are_a_candidate(tmp_path: Path) -> None:
    lake = DataLake(tmp_path / "provider")
    lake.write("prepare", "bitext_splits", bitext(), CONVERSATION)
    landed = provider_tickets(120, seed=3)[0]
    land_tickets(lake, landed)
    found = find(lake)
    assert all(row["subject"] is None for row in found.rows.to_pylist() if row["candidate"] is not None)
    (candidate,) = found.candidates
    dead, dark = candidate.examples
    assert (dead, dark) == ("Nothing lights up on the router for three days now", "Hub is not turning on, no lights")
    assert (candidate.conversations, candidate.first_day) == (2, str(FIRST_DAY + timedelta(weeks=11)))
    write_edits(lake, "rename: {gone: Gone}\n")
    assert find(lake).candidates == [candidate], "they stay when no ticket arrives"
    with Ledger(lake) as ledger:
        ledger.add_tombstone("row", next(row.conversation for row in landed if row.question == dark), "asked")
    forget_examples(lake, Company())
    assert dead not in examples(lake), "one conversation is no candidate"
    assert dark not in examples(lake)


def test_an_id_is_never_used_again(lake: DataLake) -> None:
    find(lake)
    for path in lake.path("prepare", "clean_interactions").glob("*"):
        path.unlink()
    land_tickets(lake, tickets(MOVES, 30, weeks=1))
    assert not {"late_fee_bill", "red_light_router"} & set(ids(find(lake)))
    land_tickets(lake, tickets(FEES, 50, weeks=2))
    back = find(lake)
    assert not {"late_fee_bill", "red_light_router"} & set(ids(back))
    assert any(subject.startswith("late_fee") for subject in ids(back))


def test_a_label_gives_id_and_name_unless_an_intent_has_the_id(lake: DataLake) -> None:
    labelled = [replace(ticket, label="Mahnung & Gebühr") for ticket in FIRST[:4]]
    lights = [replace(ticket, label="intent_0") for ticket in FIRST[4:]]
    land_tickets(lake, [*labelled, *lights, *NOBODY])
    found = find(lake)
    assert [(subject.id, subject.name) for subject in found.subjects] == [
        ("intent_0", "intent_0"),
        ("mahnung_gebühr", "Mahnung & Gebühr"),
    ]
    rows = bitext().to_pylist()
    lake.write(
        "prepare",
        "bitext_splits",
        bitext().set_column(
            CONVERSATION.get_field_index("intent"),
            CONVERSATION.field("intent"),
            [[row["intent"].replace("intent 0", "intent_0") for row in rows]],
        ),
        CONVERSATION,
    )
    lake.table("prepare", "subjects").unlink()
    assert "intent_0_2" in ids(find(lake))


def test_edits_win_stay_and_can_be_taken_back(lake: DataLake) -> None:
    untouched = find(lake)
    write_edits(
        lake,
        "merge: {late_fee_bill: [red_light_router]}\nsplit: {late_fee_bill: {light_off: [mean]}}\n"
        "map: {late_fee_bill: intent 1}\nrename: {gone: Gone}\n",
    )
    found = find(lake)
    assert {subject.id: subject.conversations for subject in found.subjects} == {"late_fee_bill": 6, "light_off": 2}
    assert found.subjects[0].intent == "intent 1"
    assert (found.subjects[1].name, found.subjects[1].found_on) == ("Light off", None)
    assert found.unknown == ["gone"]
    assert "gone" in str(subjects_reviewed(lake).problem)
    land_tickets(lake, tickets(LIGHTS[:1], 60, weeks=1))
    assert {subject.id: subject.conversations for subject in find(lake).subjects} == {
        "late_fee_bill": 7,
        "light_off": 2,
    }
    intents = {row["row_id"]: row["intent"] for row in join_conversations(lake).rows.to_pylist()}
    assert intents["r000"] == "intent 1"
    assert intents["r020"] == NO_SUBJECT
    subjects_file(lake).unlink()
    assert sorted(ids(find(lake))) == sorted(ids(untouched))
    write_edits(lake, "map: {late_fee_bill: intent 9}\n")
    with pytest.raises(PipelineError, match=r"subjects\.yaml: 'map\.late_fee_bill'"):
        find(lake)


def test_conversations_keep_cluster_and_split_when_a_person_edits_subjects(lake: DataLake) -> None:
    find(lake)
    columns = ["row_id", "cluster_id", "split"]
    before = join_conversations(lake).rows
    write_edits(lake, "merge: {late_fee_bill: [red_light_router]}\n")
    find(lake)
    after = join_conversations(lake).rows
    assert after.select(columns).equals(before.select(columns))
    assert set(after.column("intent").to_pylist()[-9:]) == {"late_fee_bill", NO_SUBJECT}


def test_a_forgotten_customer_leaves_no_example_and_no_word(lake: DataLake) -> None:
    secret = tickets([("late fee for my zeppelin on my bill", "I have deducted the late fee from your bill.")], 70)
    land_tickets(lake, [*FIRST, *secret, *NOBODY])
    find(lake)
    write_edits(lake, "map: {late_fee_bill: intent 1}\n")
    find(lake)
    assert "zeppelin" not in " ".join(read_json(lake.path("prepare", "subjects.json"))["subjects"][0]["keywords"])
    with Ledger(lake) as ledger:
        ledger.add_tombstone("row", secret[0].conversation, "asked")
    table = lake.read("prepare", "subjects")
    forget_examples(lake, Company())
    pq.write_table(
        table.filter([row != secret[0].row_id for row in table.column("row_id").to_pylist()]),
        lake.table("prepare", "subjects"),
    )
    assert "zeppelin" not in examples(lake)
    described = read_json(lake.path("prepare", "subjects.json"))
    assert (described["counts"]["rows"], described["subjects"][0]["intent"]) == (9, "intent 1")
    assert subjects_reconcile(lake).passed
    found = find(lake)
    assert not found.reused
    assert ids(found) == ["late_fee_bill", "red_light_router"]
    assert "zeppelin" not in examples(lake)


def test_rows_delivered_again_count_once(lake: DataLake) -> None:
    again = [replace(ticket, day=ticket.day + timedelta(weeks=1)) for ticket in FIRST[:3]]
    land_tickets(lake, again)
    found = find(lake)
    assert (found.counts["usable"], found.counts["delivered_again"], found.counts["rows"]) == (12, 3, 9)
    assert found.subjects[0].conversations == 4
    rows = lake.read("prepare", "subjects")
    lake.write("prepare", "subjects", rows.slice(1), SUBJECT)
    assert not subjects_reconcile(lake).passed
