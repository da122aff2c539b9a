import json
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.company import Company, SubjectSettings
from cs_pipeline.ingest.exports import Turn, recognise
from cs_pipeline_tests.ingest.exports import bad_records, records, written

VERA = {"id": 256120, "type": "customer", "first": "Vera", "last": "Bean", "email": "vera@example.org"}
MILO = {"id": 4004, "type": "user", "first": "Milo", "last": "Grant", "email": "milo@shop.example"}


def thread(kind: str, author: dict[str, Any], body: str, at: str, **more: Any) -> dict[str, Any]:
    return {
        "id": 9,
        "type": kind,
        "status": "active",
        "state": "published",
        "action": {"type": "default", "associatedEntities": {}},
        "source": {"type": "email", "via": author["type"]},
        "customer": VERA,
        "createdBy": author,
        "body": body,
        "createdAt": at,
    } | more


def conversation(**more: Any) -> dict[str, Any]:
    """As the Inbox API returns it, with embedded threads, newest first."""
    return {
        "id": 1755285700,
        "number": 25712,
        "threads": 5,
        "type": "email",
        "status": "closed",
        "subject": "Refund",
        "primaryCustomer": VERA,
        "createdBy": VERA,
        "source": {"type": "email", "via": "customer"},
        "_embedded": {
            "threads": [
                thread("lineitem", MILO, "", "2026-03-02T10:05:00Z"),
                thread("message", MILO, "<p>Hello Vera,</p><p>it is done &ndash; today.</p>", "2026-03-02T10:04:00Z"),
                thread("note", MILO, "She is cross", "2026-03-02T10:02:00Z"),
                thread("message", MILO, "not yet", "2026-03-02T10:01:00Z", state="draft"),
                thread(
                    "message", MILO, "We got it", "2026-03-02T09:01:00Z", source={"type": "workflows", "via": "user"}
                ),
                thread("customer", VERA, "My refund?<br>It is late.", "2026-03-02T09:00:00Z"),
            ]
        },
    } | more


TURNS = [
    Turn("customer", "My refund?\nIt is late."),
    Turn("automatic", "We got it"),
    Turn("agent", "Hello Vera,\n\nit is done – today."),
]


@pytest.mark.parametrize("shape", ["lines", "list", "api"])
def test_a_conversation_is_read_from_every_layout(tmp_path: Path, shape: str) -> None:
    text = {
        "lines": json.dumps(conversation()) + "\n",
        "list": json.dumps([conversation()]),
        "api": json.dumps({"_embedded": {"conversations": [conversation()]}, "page": {"size": 25}}, indent=4),
    }[shape]
    path = written(tmp_path, "export.json", text.encode())
    assert str(recognise("export.json", path, Company())) == "Help Scout conversations"
    (record,) = records(path)
    assert record.turns == TURNS
    assert record.conversation_id == "1755285700"
    assert record.subject == "vera@example.org"
    assert record.left_out == 2
    assert record.known == [
        ("Client Name", "Vera Bean"),
        ("Customer Email", "vera@example.org"),
        ("Account Number", "256120"),
        ("Ticket Number", "1755285700"),
        ("Ticket Number", "25712"),
        ("Person Name", "Milo Grant"),
    ]


def test_conversations_of_webhooks_are_read(tmp_path: Path) -> None:
    vera = {"id": 29418, "firstName": "Vera", "lastName": "Bean", "email": "vera@example.org", "type": "customer"}
    body = {
        "id": 98754,
        "customer": vera,
        "threads": [
            {"type": "customer", "state": "published", "author": vera, "text": "Hi & hello <you@example.org>"},
            {"type": "reply", "state": "published", "author": MILO, "text": "Hi"},
        ],
    }
    (record,) = records(written(tmp_path, "hooks.jsonl", json.dumps(body).encode()))
    assert record.turns == [Turn("customer", "Hi & hello <you@example.org>"), Turn("agent", "Hi")]
    assert ("Client Name", "Vera Bean") in record.known


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_embedded": {}}, "has no threads: export the conversations with them"),
        ({"_embedded": {"threads": []}}, "has no text"),
        ({"_embedded": {"threads": [thread("note", MILO, "x", "")]}}, "has no public comment"),
        ({"_embedded": {"threads": [thread("chat", {"type": "robot"}, "x", "")]}}, "has a thread without author"),
        ({"_embedded": {"threads": [thread("customer", VERA, "x", "", type=["customer"])]}}, "its type is not text"),
        ({"_embedded": {"threads": [thread("customer", VERA, "", "") | {"body": 7}]}}, "its thread is not text"),
        ({"primaryCustomer": VERA | {"first": {}, "last": 3}}, "its person's name is not text"),
        ({"id": None, "number": None}, "has no id"),
    ],
)
def test_an_unusable_conversation_is_bad_with_a_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = written(tmp_path, "export.json", json.dumps([conversation(), conversation(**change)]).encode())
    assert [(bad.index, bad.reason) for bad in bad_records(path)] == [(1, reason)]
    assert len(records(path)) == 1


API = {
    "tags": [{"id": 1, "color": "#fff", "tag": "vip"}, {"id": 2, "tag": "refund"}],
    "customFields": [{"id": 8, "name": "Topic", "value": "8518", "text": "Late refund"}],
}
WEBHOOK = {"tags": ["vip", "refund"], "customFields": [{"fieldId": 8, "name": "Topic", "value": "Late refund"}]}


@pytest.mark.parametrize("fields", [API, WEBHOOK])
@pytest.mark.parametrize(
    ("subjects", "label"),
    [
        ({}, None),
        ({"tags": ["shipping", "Refund"]}, "Refund"),
        ({"field": "Topic", "tags": ["refund"]}, "Late refund"),
        ({"field": 8}, "Late refund"),
        ({"field": "9", "tags": ["refund"]}, "refund"),
    ],
)
def test_the_label_is_what_company_yaml_chooses(
    tmp_path: Path, fields: dict[str, Any], subjects: dict[str, Any], label: str | None
) -> None:
    company = Company(subjects=SubjectSettings.model_validate(subjects))
    path = written(tmp_path, "export.jsonl", json.dumps(conversation(**fields)).encode())
    assert [record.label for record in records(path, company)] == [label]
