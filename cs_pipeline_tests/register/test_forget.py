"""A lake whose version 2 was trained on a company's rows: its lineage, and forgetting a customer."""

import os
import shutil
import signal
import sys
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cs_pipeline.company import company_file, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.evaluation import BASELINES_FILE
from cs_pipeline.evaluate.people.intent_labels import export_intent_sheet, import_intent_sheet, read_intent_labels
from cs_pipeline.evaluate.people.ratings import write_human_ratings
from cs_pipeline.evaluate.results import evaluation_folder
from cs_pipeline.feedback import AskedQuestion, Feedback, GivenAnswer
from cs_pipeline.forget import find_affected, forget_records
from cs_pipeline.ingest.interactions import ingest_day
from cs_pipeline.ingest.landing import EDIT_DELAY, kept_copy, land_edits, land_files
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.prepare.checks import subjects_reconcile
from cs_pipeline.prepare.company.interactions import clean_day
from cs_pipeline.prepare.splits.conversations import join_conversations
from cs_pipeline.register.lineage import lineage_tree, trace_lineage
from cs_pipeline.register.promotion import judge_candidates, roll_back
from cs_pipeline.retrieval.index import RetrievalIndex, retrieval_folder
from cs_pipeline.tracking import FORGOTTEN, MODEL, champion_number, find_versions, get_version, open_store
from cs_pipeline.train.adapter import seen_rows
from cs_pipeline.train.retraining import check_retraining
from cs_pipeline_tests.conftest import copy_lake
from cs_pipeline_tests.support.company import files_with, ingest, known_rows
from cs_pipeline_tests.support.exports import export


@pytest.fixture
def lake(company_lake: Path, tmp_path: Path) -> DataLake:
    return copy_lake(company_lake, tmp_path / "lake")


@pytest.fixture
def jane(lake: DataLake) -> str:
    """The e-mail address of a customer on whose row version 2 was trained."""
    adapter = get_version(open_store(lake), 2).folder / "adapter"
    seen = set(seen_rows(adapter).column("subject_id").to_pylist())
    with Ledger(lake) as ledger:
        emails = (f"customer1x{number}@example.net" for number in range(120))
        return next(email for email in emails if ledger.hash_subject(email) in seen)


def rows_of(lake: DataLake, name: str, subject: str) -> int:
    return sum(row == subject for row in lake.read("prepare", name, ["subject_id"]).column("subject_id").to_pylist())


def training_rows(lake: DataLake, email: str) -> set[str]:
    with Ledger(lake) as ledger:
        subject = ledger.hash_subject(email)
    rows = lake.read("prepare", "train_split", ["row_id", "subject_id"]).to_pylist()
    return {row["row_id"] for row in rows if row["subject_id"] == subject}


def test_the_lineage_names_files_rows_runs_checks_and_decisions(lake: DataLake) -> None:
    found = trace_lineage(2, lake)
    (company,) = [file for file in found["files"] if file["source"] == "company"]
    with Ledger(lake) as ledger:
        (delivery,) = ledger.deliveries()
    assert (company["name"], company["sha256"], company["day"]) == ("tickets.csv", delivery.sha256, str(delivery.day))
    assert company["run"] == "a run"
    assert 10 < company["rows"] <= found["sides"]["train"]["company"]  # the recipe samples some
    assert found["sides"]["test"]["company"] > 0
    assert {check["asset"] for check in found["checks"]} >= {"clean_bitext", "conversations", "adapter", "evaluation"}
    assert found["run"] == found["tags"]["cs.dagster_run"]
    (decision,) = found["history"]
    assert (decision["version"], decision["kind"], decision["champion_before"]) == (2, "decision", 1)
    assert (decision["promote"], found["aliases"]) == (False, ["challenger"])
    assert champion_number(open_store(lake)) == 1
    first = trace_lineage(1, lake)
    assert first["aliases"] == ["champion"]
    assert [(entry["kind"], entry["promote"]) for entry in first["history"]] == [
        ("decision", False),
        ("rollback", True),
    ]
    console = Console(width=200, record=True, file=StringIO())
    console.print(lineage_tree(found))
    text = console.export_text()
    assert f"tickets.csv, sha256 {delivery.sha256[:12]}…: {company['rows']} rows, delivered {delivery.day}" in text


def test_an_unknown_version_has_no_lineage(lake: DataLake) -> None:
    with pytest.raises(PipelineError, match="no version 9") as raised:
        trace_lineage(9, lake)
    assert "1, 2" in raised.value.fix


def test_a_customer_is_forgotten_everywhere_and_for_good(lake: DataLake, jane: str, tmp_path: Path) -> None:
    with Ledger(lake) as ledger:
        subject = ledger.hash_subject(jane)
        (delivery,) = ledger.deliveries()
    assert jane.encode() in kept_copy(lake, delivery.sha256).read_bytes()
    before = lake.read("prepare", "conversations").num_rows
    hers = training_rows(lake, jane)
    assert hers
    assert hers <= known_rows(lake)
    found = find_affected(lake, subject=jane)
    assert retrieval_folder(lake) / "answers.parquet" in found.tables
    summary = "\n".join(found.summary())
    assert "tickets.csv: 1 records" in summary
    assert found.versions == [2]
    assert jane not in summary

    forget_records(lake, found, "asked on the phone")
    assert not files_with(lake, jane.encode())
    assert known_rows(lake) == set(lake.read("prepare", "train_split", ["row_id"]).column("row_id").to_pylist())
    assert not hers & known_rows(lake)
    RetrievalIndex.load(retrieval_folder(lake))
    assert not files_with(lake, subject.encode()) or all(
        path.name.startswith("ledger.db") or "adapter" in path.parts or path.name == "rows.parquet"
        for path in files_with(lake, subject.encode())
    )
    assert lake.read("prepare", "conversations").num_rows == before - 1
    for name in ("conversations", "train_split", "validation_split", "test_split"):
        assert rows_of(lake, name, subject) == 0
    assert not hers & set(lake.read("prepare", "subjects").column("row_id").to_pylist())
    assert subjects_reconcile(lake).passed
    tags = {int(v.version): v.tags for v in find_versions(open_store(lake))}
    assert tags[2][FORGOTTEN] == "asked on the phone"
    assert FORGOTTEN not in tags[1]

    # The other 119 records are still read when the day is ingested again.
    day = delivery.day
    company = load_company(lake)
    assert sum(file.kept for file in ingest_day(lake, company, day)) == 119
    cleaned = clean_day(lake, company, day)
    assert subject not in cleaned.rows.column("subject_id").to_pylist()
    # A delivery of the same rows in another file does not bring her back, and its kept copy is redacted too.
    again = export(tmp_path / "again.csv", 120, seed=1)
    again.write_text(again.read_text() + "one more question,one more answer for you,someone@example.net\n")
    land_files([again], lake, company)
    ingest(lake)
    assert not files_with(lake, jane.encode())
    joined = join_conversations(lake)
    assert subject not in joined.rows.column("subject_id").to_pylist()


def test_a_customer_is_found_by_each_of_her_ids(prepared: Path, tmp_path: Path) -> None:
    lake = DataLake(tmp_path / "prepared")
    shutil.copytree(prepared, lake.root)
    company_file(lake).write_text(
        "columns: {question: question, answer: answer, customer_id: id, customer_email: email}\n"
    )
    tickets = tmp_path / "tickets.csv"
    tickets.write_text(
        "question,answer,id,email\n"
        "Where is my new kettle?,It will arrive on Monday.,900100001,jane@example.net\n"
        "How do I pay by invoice?,Choose it at the checkout.,900100002,joe@example.net\n"
    )
    land_files([tickets], lake, load_company(lake))
    ingest(lake)
    join_conversations(lake)
    with Ledger(lake) as ledger:
        jane, joe = (ledger.hash_subject(f"{name}@example.net") for name in ("jane", "joe"))
    assert (rows_of(lake, "conversations", jane), rows_of(lake, "conversations", joe)) == (1, 1)
    forget_records(lake, find_affected(lake, subject="900100001"), "asked for")
    assert (rows_of(lake, "conversations", jane), rows_of(lake, "conversations", joe)) == (0, 1)


@pytest.mark.parametrize("name", ["answers.parquet", BASELINES_FILE])
def test_an_evaluated_answer_that_copies_hers_is_removed_too(lake: DataLake, jane: str, name: str) -> None:
    rows = lake.read("prepare", "train_split", ["row_id", "response"]).to_pylist()
    [hers] = [row["response"] for row in rows if row["row_id"] in training_rows(lake, jane)]
    path = evaluation_folder("tiny", lake) / name
    table = pq.read_table(path.with_name("answers.parquet"))
    copied, other = sorted(set(table.column("row_id").to_pylist()))[:2]
    words = hers.split()

    def answer(row: dict[str, Any]) -> str:
        if (row["system"], row["row_id"]) == ("nearest", copied):
            return f"Well: {hers}"
        if (row["system"], row["row_id"]) == ("nearest", other):
            return " ".join([*words[:8], *(f"word{number}" for number in range(20))])
        return "an answer of its own"

    answers = pa.array([answer(row) for row in table.to_pylist()])
    place = table.schema.get_field_index("answer")
    pq.write_table(table.set_column(place, "answer", answers), path)
    forget_records(lake, find_affected(lake, subject=jane), "asked for")
    left = pq.read_table(path)
    assert copied not in left.column("row_id").to_pylist(), "for no system, because they are compared row by row"
    assert other in left.column("row_id").to_pylist()
    assert not any(hers in answer for answer in left.column("answer").to_pylist())


def test_a_marked_version_is_not_promoted_and_makes_retraining_due(
    lake: DataLake, jane: str, own_recipes: None
) -> None:
    forget_records(lake, find_affected(lake, subject=jane), "asked for")
    client = open_store(lake)
    client.set_registered_model_alias(MODEL, "champion", "1")
    with pytest.raises(PipelineError):
        roll_back(lake, 2, "try", "a test")
    judge_candidates(lake, "a test")
    client.set_registered_model_alias(MODEL, "champion", "2")
    _, due = check_retraining(lake)
    assert due.due
    assert "forgotten" in due.reason


def test_a_row_is_removed_with_its_conversation(lake: DataLake) -> None:
    rows = lake.read("prepare", "train_split", ["row_id", "source"]).to_pylist()
    row = next(row["row_id"] for row in rows if row["source"] == "company")
    forget_records(lake, find_affected(lake, row=row), "said in confidence")
    for name in ("conversations", "train_split"):
        assert row not in lake.read("prepare", name, ["row_id"]).column("row_id").to_pylist()
    with Ledger(lake) as ledger:
        assert row in ledger.tombstones().rows
        (delivery,) = ledger.deliveries()
    assert sum(file.kept for file in ingest_day(lake, load_company(lake), delivery.day)) == 119


def test_feedback_and_handovers_are_removed_too(lake: DataLake, jane: str) -> None:
    company, shown = load_company(lake), GivenAnswer("version 2", "It is on its way to you since this morning.")
    rows = lake.read("prepare", "conversations", ["row_id", "subject_id"]).to_pylist()
    with Ledger(lake) as ledger:
        row = next(row["row_id"] for row in rows if row["subject_id"] == ledger.hash_subject(jane))
    with Feedback(lake) as feedback:
        feedback.rate("cleaned", "anna", AskedQuestion("Is it here yet?"), shown, 5)
        feedback.rate("imported", "anna", AskedQuestion("Where is it?"), shown, 4)
        imported = next(one for one in feedback.judgements(raw=True) if one["id"] == "imported")
        feedback.forget(["imported"])
        feedback.add_clean([imported | {"question_id": row, "source": "import"}])
    assert write_human_ratings(lake, company).rows.num_rows == 2
    with Feedback(lake) as feedback:
        feedback.rate("raw", "anna", AskedQuestion(f"I am {jane}, is it here?"), shown, 1)
        feedback.agent_edit("edited", "tom", "Where is my parcel?", shown.answer, [shown], customer=jane.upper())
        feedback.agent_edit(
            "draft",
            "tom",
            "Where is the parcel?",
            "It comes to you on Tuesday.",
            [GivenAnswer("version 2", f"Dear {jane}")],
        )
        feedback.agent_edit(
            "other", "tom", "Where is this parcel?", "It is with you on Monday.", [], customer="x@y.org"
        )
    assert land_edits(lake, company, datetime.now(UTC) + EDIT_DELAY) == 3
    hers, another = (lake.path("serve", "handovers", *at) for at in (("delivered", "H-1.json"), ("H-2.json",)))
    hers.parent.mkdir(parents=True)
    hers.write_text(f'{{"summary": "{jane} waits."}}')
    another.write_text('{"summary": "Somebody waits."}')
    ingest(lake)
    held = join_conversations(lake).rows.num_rows

    found = find_affected(lake, subject=jane)
    assert found.feedback == {"imported", "raw", "edited", "draft"}
    assert "feedback: 4 ratings and edits" in found.summary()
    assert found.tables[lake.table("evaluate", "human_ratings")] == 1
    forget_records(lake, found, "asked for")
    assert not files_with(lake, jane.encode())
    assert not files_with(lake, jane.upper().encode())
    assert another.exists()
    assert lake.read("evaluate", "human_ratings", ["id"]).column("id").to_pylist() == ["cleaned"]
    with Feedback(lake) as feedback:
        assert [edit.id for edit in feedback.edits()] == ["other"]
        # Late retries of clients.
        feedback.rate("raw", "anna", AskedQuestion(f"I am {jane}, is it here?"), shown, 1)
        feedback.agent_edit("edited", "tom", "Where is my parcel?", shown.answer, [shown], customer=jane.upper())
    assert write_human_ratings(lake, company).rows.num_rows == 1
    assert land_edits(lake, company, datetime.now(UTC) + EDIT_DELAY) == 1
    ingest(lake)
    assert join_conversations(lake).rows.num_rows == held - 3, "the old row and both edits; the other edit stays"


def test_the_label_of_a_forgotten_row_disappears(lake: DataLake, tmp_path: Path) -> None:
    sheet = tmp_path / "intents.csv"
    export_intent_sheet(lake, sheet, 2)
    lines = sheet.read_text(encoding="utf-8-sig").splitlines()[1:]
    one, two = (line.split(",")[0] for line in lines if line.startswith("r"))
    labels = tmp_path / "labels.csv"
    labels.write_text(f"id,intent\n{one},cancel_order\n{two},get_refund\n")
    import_intent_sheet(lake, labels)
    found = find_affected(lake, row=one.removeprefix("r"))
    assert found.tables[lake.table("evaluate", "intent_labels")] == 1
    forget_records(lake, found, "asked for")
    assert read_intent_labels(lake) == {two.removeprefix("r"): "get_refund"}
    with pytest.raises(PipelineError, match=f"line 2: the id '{one}' is not that of a company row"):
        import_intent_sheet(lake, labels)


def test_a_judgement_can_be_forgotten_by_its_id(lake: DataLake) -> None:
    with Feedback(lake) as feedback:
        feedback.rate("0123", "anna", AskedQuestion("Is it here yet?"), GivenAnswer("version 2", "Yes."), 5)
    write_human_ratings(lake, load_company(lake))
    forget_records(lake, find_affected(lake, row="0123"), "asked for")
    assert lake.read("evaluate", "human_ratings").num_rows == 0
    assert write_human_ratings(lake, load_company(lake)).rows.num_rows == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "Give either a subject or a row"),
        ({"subject": "jane@example.net", "row": "r"}, "Give either"),
        ({"subject": "nobody@example.net"}, "nothing that belongs to this customer"),
        ({"row": "0123456789abcdef"}, "nothing that belongs to this row"),
    ],
)
def test_forgetting_nothing_is_an_error(lake: DataLake, given: dict[str, str], complaint: str) -> None:
    with pytest.raises(PipelineError, match=complaint):
        find_affected(lake, **given)


def test_after_a_kill_at_any_line_the_same_call_finishes(lake: DataLake, jane: str) -> None:
    """The removal is killed before every tenth line; afterwards finding and forgetting again removes everything.

    Lines of finding do not count, because it changes nothing.
    """
    hers = training_rows(lake, jane)
    assert hers <= known_rows(lake)
    for attempt in range(300):
        child = os.fork()
        if child == 0:
            left = 1 + attempt * 10

            def trace(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal left
                if frame.f_code.co_filename.endswith(("forget.py", "redaction.py", "lake.py", "ledger.py")):
                    if event == "line":
                        left -= 1
                        if left == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                    return trace
                return None

            found = find_affected(lake, subject=jane)
            sys.settrace(trace)
            forget_records(lake, found, "asked for")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        with Ledger(lake) as ledger:
            assert ledger.hash_subject(jane) in ledger.tombstones().subjects or os.WIFSIGNALED(status)
        if os.WIFEXITED(status):
            break
    else:
        raise AssertionError("the removal never finished")
    assert attempt > 5
    assert not files_with(lake, jane.encode())
    assert find_affected(lake, subject=jane).tables == {}
    assert not list(lake.path("prepare").glob(".retrieval_index.*"))
    if retrieval_folder(lake).exists():  # otherwise the next run rebuilds it from its sources
        assert not hers & known_rows(lake)
