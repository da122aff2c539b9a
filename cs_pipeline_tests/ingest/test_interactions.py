import json
import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.company import Columns, Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import INTERACTION, QUARANTINED, check_schema
from cs_pipeline.ingest import interactions
from cs_pipeline.ingest.exports import Record, format_of, read, redact
from cs_pipeline.ingest.interactions import FileFacts, day_facts, ingest_day
from cs_pipeline.ingest.landing import kept_copy, scan_landing
from cs_pipeline.ingest.ledger import Delivery, Ledger
from cs_pipeline_tests.support.killed import kill, kill_points

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = NOW.date()
COMPANY = Company(retention_days=14)

CHAT = """\
[c-1] Jane Roe: where is it?
[c-2] agent: Hello?
[c-1] Tom (Support): Hi Jane, it is here
no turn at all
[c-1] Jane Roe: thank you
"""
ROWS = b"question,answer,customer_email\nq1,a1,jane@example.org\n,a2,x\ncaf\xe9,a3,x\nq4,a4,ann@example.org\n"


def deliver(lake: DataLake, files: dict[str, bytes], company: Company = COMPANY) -> list[Delivery]:
    """Delivers the files through the real landing folder."""
    for name, data in files.items():
        path = lake.root / "landing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    scan_landing(lake, company, NOW)
    taken = scan_landing(lake, company, NOW + timedelta(minutes=1)).taken
    assert {delivery.name for delivery in taken} == files.keys()
    return taken


def turns(lake: DataLake) -> list[dict[str, Any]]:
    table = lake.read("ingest", f"company_interactions/{DAY}")
    check_schema(table, INTERACTION, "turns")
    return table.to_pylist()


def quarantine(lake: DataLake) -> list[dict[str, Any]]:
    table = lake.read("ingest", f"company_quarantine/{DAY}")
    check_schema(table, QUARANTINED, "quarantine")
    return table.to_pylist()


def reconciles(facts: list[FileFacts]) -> bool:
    return all(file.records == file.kept + sum(file.quarantined.values()) + file.forgotten for file in facts)


def test_turns_of_a_conversation_share_what_is_known_about_its_people(lake: DataLake) -> None:
    [delivery] = deliver(lake, {"chat.txt": CHAT.encode()})
    facts = ingest_day(lake, COMPANY, DAY)
    found = turns(lake)
    assert [(row["conversation_id"], row["turn"], row["role"], row["text"]) for row in found] == [
        ("c-1", 0, "customer", "where is it?"),
        ("c-2", 0, "agent", "Hello?"),
        ("c-1", 1, "agent", "Hi Jane, it is here"),
        ("c-1", 2, "customer", "thank you"),
    ]
    people = [
        {"placeholder": "Client Name", "value": "Jane Roe"},
        {"placeholder": "Person Name", "value": "Tom"},
    ]
    assert [row["known"] for row in found] == [people, [], people, people]
    assert {row["source_file_sha256"] for row in found} == {delivery.sha256}
    assert {row["delivered_on"] for row in found} == {DAY}
    assert [row["source_row"] for row in found] == [0, 1, 2, 4]
    for row in found:
        line = CHAT.encode()[row["byte_offset"] :].splitlines()[0].decode()
        assert line.endswith(row["text"])
    [file] = facts
    assert (file.name, file.format, file.records, file.kept, file.turns) == ("chat.txt", "transcript", 5, 4, 4)
    assert file.quarantined == {"is not a turn of a conversation": 1}
    assert file.bad_share == 0.2
    assert reconciles(facts)


def test_turns_of_a_conversation_share_the_first_label(lake: DataLake) -> None:
    rows = b"ticket_id,author,body,topic\n1,Jane,hi,\n1,agent,yes?,battery\n2,Tom,x,\n1,Jane,thanks,brakes\n"
    deliver(lake, {"turns.csv": rows, "pairs.csv": b"question,answer,topic\nq,a,\nr,b,wheels\n"})
    ingest_day(lake, COMPANY, DAY)
    labels = {row["text"]: row["label"] for row in turns(lake)}
    assert labels == dict.fromkeys(("hi", "yes?", "thanks"), "battery") | {
        "r": "wheels",
        "b": "wheels",
    } | dict.fromkeys(("x", "q", "a"))


def test_bad_records_are_quarantined_with_position_and_reason(lake: DataLake) -> None:
    [delivery] = deliver(lake, {"rows.csv": ROWS})
    facts = ingest_day(lake, COMPANY, DAY)
    assert [row["text"] for row in turns(lake)] == ["q1", "a1", "q4", "a4"]
    assert quarantine(lake) == [
        {
            "source_file_sha256": delivery.sha256,
            "source_row": place,
            "byte_offset": ROWS.index(record.encode("latin-1")),
            "delivered_on": DAY,
            "reason": reason,
            "record": record.replace("é", "\ufffd"),
        }
        for place, record, reason in ((2, ",a2,x", "has no question"), (3, "café,a3,x", "is not UTF-8"))
    ]
    assert facts[0].quarantined == {"has no question": 1, "is not UTF-8": 1}
    assert day_facts(lake, DAY) == facts


def test_people_are_hashed_and_files_are_readable_by_their_owner_only(lake: DataLake) -> None:
    deliver(lake, {"rows.csv": ROWS})
    ingest_day(lake, COMPANY, DAY)
    with Ledger(lake) as ledger:
        hashed = ledger.hash_subject("JANE@example.org ")
    assert [row["subject_id"] for row in turns(lake)][:2] == [hashed, hashed]
    for folder in ("company_interactions", "company_quarantine"):
        assert lake.path("ingest", folder).stat().st_mode & 0o777 == 0o700
        assert lake.table("ingest", f"{folder}/{DAY}").stat().st_mode & 0o777 == 0o600


def tables(lake: DataLake) -> dict[str, bytes]:
    folders = (lake.path("ingest", "company_interactions"), lake.path("ingest", "company_quarantine"))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for folder in folders for path in folder.iterdir()}


def test_ingesting_again_gives_the_same_bytes(lake: DataLake) -> None:
    deliver(lake, {"rows.csv": ROWS, "chat.txt": CHAT.encode()})
    ingest_day(lake, COMPANY, DAY)
    before = tables(lake)
    assert len(before) == 3
    ingest_day(lake, COMPANY, DAY)
    assert tables(lake) == before


def test_after_a_kill_at_any_line_the_next_run_gives_the_same_tables(lake: DataLake) -> None:
    def work() -> None:
        ingest_day(lake, COMPANY, DAY)

    def remove_tables() -> None:
        for path in lake.path("ingest").glob("company_*/*"):
            path.unlink()

    deliver(lake, {"rows.csv": b"question,answer\nq,a\nx\n"})
    work()
    whole, left, traced = tables(lake), set(), {interactions.__file__}
    remove_tables()
    points = kill_points(work, lake.path("ingest"), traced)
    assert len(points) > len(whole)
    for point in points:
        remove_tables()
        kill(work, point, traced)
        for name, data in tables(lake).items():
            assert whole.get(name, data) == data
            left.add(name)
        work()
        assert tables(lake) == whole
    assert len(left) > len(whole)


def test_forgotten_customers_are_recognised_by_email_or_id(lake: DataLake) -> None:
    columns = Columns(question="q", answer="a", customer_email="mail", customer_id="id")
    company = Company(columns=columns)
    rows = b"q,a,mail,id\n1,x,jane@example.org,88001\n2,x,ann@example.org,88002\n3,x,tom@example.org,88003\n"
    chat = "[c] jane@example.org: secret\n[c] agent: hi\n[d] visitor: hello\n"
    deliver(lake, {"rows.csv": rows, "chat.txt": chat.encode()}, company)
    with Ledger(lake) as ledger:
        ledger.add_tombstone("subject", ledger.hash_subject("Jane@example.org"), "asked")
        ledger.add_tombstone("subject", ledger.hash_subject("88003"), "asked")
    facts = ingest_day(lake, company, DAY)
    assert {row["text"] for row in turns(lake)} == {"hello", "2", "x"}
    assert sorted((file.name, file.records, file.kept, file.forgotten) for file in facts) == [
        ("chat.txt", 3, 1, 2),
        ("rows.csv", 3, 1, 2),
    ]
    assert reconciles(facts)


def test_forgotten_conversations_are_left_out_as_a_whole(lake: DataLake) -> None:
    rows = b"question,answer,ticket_id,email\n1,x,T-100,\n2,x,T-200,\n3,x,T-100,jane@example.org\n4,x,T-300,ann@x.org\n"
    deliver(lake, {"rows.csv": rows})
    with Ledger(lake) as ledger:
        ledger.add_tombstone("subject", ledger.hash_subject("jane@example.org"), "asked")
        ledger.add_tombstone("row", ledger.hash_row("T-300"), "asked")
    facts = ingest_day(lake, COMPANY, DAY)
    assert [row["text"] for row in turns(lake)] == ["2", "x"]
    assert facts[0].forgotten == 3


def test_a_redacted_record_is_no_longer_a_record_of_the_day(lake: DataLake) -> None:
    [delivery] = deliver(lake, {"rows.csv": ROWS})
    before = ingest_day(lake, COMPANY, DAY)
    rows = turns(lake)
    path = kept_copy(lake, delivery.sha256)
    redact(format_of(delivery.name, path), path, {rows[0]["source_row"]})
    after = ingest_day(lake, COMPANY, DAY)
    assert turns(lake) == rows[2:]
    assert (before[0].records, after[0].records) == (4, 3)


def test_a_damaged_delivery_adds_one_row_to_the_quarantine(lake: DataLake) -> None:
    import gzip

    packed = gzip.compress(os.urandom(20_000).hex().encode())
    rows = b"question,answer\nq,a\n"
    packed = gzip.compress(rows) + packed[: len(packed) // 2]
    [delivery] = deliver(lake, {"rows.csv.gz": packed})
    assert delivery.damage is not None
    facts = ingest_day(lake, COMPANY, DAY)
    assert [row["text"] for row in turns(lake)] == ["q", "a"]
    assert quarantine(lake)[-1]["reason"] == delivery.damage
    assert facts[0].quarantined[delivery.damage] == 1
    assert reconciles(facts)


def test_the_facts_of_an_unusable_file_say_what_to_do(lake: DataLake) -> None:
    deliver(lake, {"rows.csv": b"Frage,Antwort\na,b\n", "page.html": b"<p>", "zero.jsonl": b""})
    files = {file.name: file for file in ingest_day(lake, COMPANY, DAY)}
    assert files["rows.csv"].problem is not None
    assert "it has Frage, Antwort." in files["rows.csv"].problem
    assert "company.yaml" in files["rows.csv"].problem
    assert files["page.html"].format == "unknown"
    assert {name: file.bad_share for name, file in files.items()} == {"rows.csv": 1, "page.html": 1, "zero.jsonl": 1}
    assert turns(lake) == []


def test_a_changed_file_replaces_its_earlier_delivery(lake: DataLake) -> None:
    deliver(lake, {"rows.csv": b"question,answer\nq,a\n"})
    deliver(lake, {"rows.csv": b"question,answer\nq,better\n"})
    ingest_day(lake, COMPANY, DAY)
    found = turns(lake)
    assert [row["text"] for row in found] == ["q", "better"]
    assert [row["turn"] for row in found] == [0, 1]


def test_an_expired_day_cannot_be_ingested_again(lake: DataLake) -> None:
    [delivery] = deliver(lake, {"rows.csv": ROWS})
    with Ledger(lake) as ledger:
        ledger.expire(delivery.sha256)
    with pytest.raises(PipelineError, match="kept for 14 days"):
        ingest_day(lake, COMPANY, DAY)


def test_a_missing_kept_copy_is_named(lake: DataLake) -> None:
    [delivery] = deliver(lake, {"rows.csv": ROWS})
    kept_copy(lake, delivery.sha256).unlink()
    with pytest.raises(PipelineError, match=r"kept copy of rows\.csv of 2026-03-02"):
        ingest_day(lake, COMPANY, DAY)
    assert not lake.table("ingest", f"company_interactions/{DAY}").exists()


def test_a_day_without_deliveries_has_empty_tables(lake: DataLake) -> None:
    other = date(2026, 3, 3)
    with pytest.raises(PipelineError, match="2026-03-03 was not ingested"):
        day_facts(lake, other)
    assert ingest_day(lake, COMPANY, other) == []
    assert lake.read("ingest", f"company_interactions/{other}").num_rows == 0


def test_the_facts_contain_no_values_of_a_file(lake: DataLake) -> None:
    bad = b'{"question": "SECRET", "SECRET": 1, "SECRET": 2}\n{"question": {"SECRET": 1}, "answer": "SECRET"}\nSECRET\n'
    deliver(lake, {"rows.jsonl": bad, "rows.csv": b"SECRET@x.org,y\nSECRET,b\n", "t.txt": b"SECRET\n"})
    facts = ingest_day(lake, COMPANY, DAY)
    assert sum(len(file.quarantined) for file in facts) >= 5
    assert "SECRET" not in repr(facts)
    assert "SECRET" not in json.dumps(
        json.loads((lake.path("ingest", "company_interactions") / f"{DAY}.json").read_text())
    )


def test_large_deliveries_are_written_in_batches(lake: DataLake, tmp_path: Path) -> None:
    rows = 30_000
    data = b"question,answer\n" + b"".join(b"q%d,a%d\n" % (number, number) for number in range(rows))
    [delivery] = deliver(lake, {"rows.csv": data})
    facts = ingest_day(lake, COMPANY, DAY)
    found = lake.read("ingest", f"company_interactions/{DAY}", ["text"]).column("text").to_pylist()
    path = kept_copy(lake, delivery.sha256)
    items = read(format_of(delivery.name, path), path, COMPANY)
    assert found == [turn.text for item in items if isinstance(item, Record) for turn in item.turns]
    assert facts[0].turns == len(found) == 2 * rows
