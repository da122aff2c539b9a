"""A kind of export is one module and one entry in ``KINDS``: a toy help desk is registered, ingested and redacted."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.company import Company, SubjectSettings
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest import exports
from cs_pipeline.ingest.exports import KINDS, ExportKind, Record, Turn, format_of, redact
from cs_pipeline.ingest.exports.records import (
    TICKET,
    JsonObject,
    Location,
    UnusableError,
    as_id,
    as_label,
    as_objects,
    as_text,
    distinctive_id,
    known_of_customer,
    make_record,
)
from cs_pipeline.ingest.interactions import ingest_day
from cs_pipeline.ingest.landing import kept_copy, land_files, scan_landing
from cs_pipeline_tests.ingest.exports import bad_records, read_all, records, written


def chat_record(location: Location, chat: JsonObject, people: dict[str, JsonObject]) -> Record:
    number = as_id(chat.get("chat_id"), "chat id")
    if number is None:
        raise UnusableError("has no chat id")
    guest = people.get(as_id(chat.get("guest"), "guest") or "", {})
    turns = [
        Turn("customer" if line.get("by") == "guest" else "agent", as_text(line.get("says"), "line"))
        for line in as_objects(chat.get("lines"), "lines")
    ]
    name, email = as_text(guest.get("name"), "name"), as_text(guest.get("mail"), "mail")
    known = [*known_of_customer(name, email, None, None), (TICKET, distinctive_id(number))]
    return make_record(location, number, turns, email or None, known)


TOY = ExportKind(
    name="Toy chats",
    list_key="chats",
    is_record=lambda element: "chat_id" in element,
    to_record=chat_record,
    people_key="guests",
    customer_id=lambda chat: as_id(chat.get("guest"), "guest"),
)

GUESTS = [
    {"id": 1, "name": "Jane Roe", "mail": "jane@example.org"},
    {"id": 2, "name": "Tom Poe", "mail": "tom@example.org"},
]


def chat(number: int, guest: int, **more: Any) -> dict[str, Any]:
    lines = [{"by": "guest", "says": f"Where is parcel {number}?"}, {"by": "staff", "says": "On its way."}]
    return {"chat_id": number, "guest": guest, "lines": lines} | more


def export(*chats: dict[str, Any]) -> bytes:
    return json.dumps({"guests": GUESTS, "chats": chats}).encode()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "KINDS", (*KINDS, TOY))


def test_without_registration_its_records_are_bad(tmp_path: Path) -> None:
    assert [bad.reason for bad in bad_records(written(tmp_path, "chats.json", export(chat(12345, 1))))] == [
        "its columns are not known"
    ]


@pytest.mark.usefixtures("toy")
def test_a_registered_kind_is_landed_and_ingested(lake: DataLake, tmp_path: Path) -> None:
    path = written(tmp_path, "chats.json", export(chat(12345, 1), chat(12346, 2, lines=7)))
    [landed] = land_files([path], lake, Company())
    assert landed.format == "Toy chats"
    [delivery] = scan_landing(lake, Company(), datetime.now(UTC)).taken
    [facts] = ingest_day(lake, Company(), delivery.day)
    assert (facts.format, facts.records, facts.kept, facts.turns) == ("Toy chats", 2, 1, 2)
    assert facts.quarantined == {"its lines are not a list of objects": 1}
    rows = lake.read("ingest", f"company_interactions/{delivery.day}").to_pylist()
    assert [(row["role"], row["text"]) for row in rows] == [
        ("customer", "Where is parcel 12345?"),
        ("agent", "On its way."),
    ]
    assert {"placeholder": "Client Name", "value": "Jane Roe"} in rows[0]["known"]
    assert b"Jane Roe" in kept_copy(lake, delivery.sha256).read_bytes()


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", ["chats.json", "chats.jsonl"])
def test_a_registered_kind_is_redacted_with_its_people(tmp_path: Path, name: str) -> None:
    chats = [chat(12345, 1), chat(12346, 2), chat(12347, 2)]
    lines = "\n".join(map(json.dumps, chats)).encode()
    path = written(tmp_path, name, lines if name.endswith("l") else export(*chats))
    before = read_all(path)
    assert [record.conversation_id for record in records(path)] == ["12345", "12346", "12347"]
    redact(format_of(name, path), path, {0, 1})
    assert read_all(path) == before[2:]
    content = path.read_bytes()
    assert b"12345" not in content
    assert b"Jane Roe" not in content
    if name == "chats.json":
        assert json.loads(content)["guests"] == [None, GUESTS[1]], "Tom has a chat that is not redacted"


def test_two_help_desks_are_registered() -> None:
    assert [kind.name for kind in KINDS] == ["Zendesk tickets", "Help Scout conversations"]
    assert len({kind.list_key for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (" battery \n range\t", "battery range"),
        ("bat\u200bte\u202ery\0\ud83d\U000e0041", "battery"),
        ("बैटरी 🔋", "बैटरी 🔋"),
        (17.0, "17"),
        (["battery"], "battery"),
        ("x" * 80, "x" * 80),
        *((value, None) for value in ("x" * 81, "", "\u200b", None, True, 1.5, [], ["a", "b"], [["a"]], {"a": "b"})),
    ],
)
def test_a_label_is_a_short_line_or_none(value: object, label: str | None) -> None:
    assert as_label(value) == label


@pytest.mark.usefixtures("toy")
def test_a_kind_without_tags_and_fields_has_no_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "chats.json", export(chat(12345, 1, tags=["battery"])))
    company = Company(subjects=SubjectSettings(field="tags", tags=("battery",)))
    assert [record.label for record in records(path, company)] == [None]
