import json
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.company import Company, SubjectSettings
from cs_pipeline.ingest.exports import Turn, recognise
from cs_pipeline_tests.ingest.exports import bad_records, records, written

JANE: dict[str, Any] = {
    "id": 377922500012,
    "name": "Jane Roe",
    "email": "jane@example.org",
    "phone": "+1 555 0100",
    "role": "end-user",
}
TOM: dict[str, Any] = {"id": 377922500099, "name": "Tom Weaver", "email": "tom@shop.example", "role": "agent"}
MARY: dict[str, Any] = {"id": 377922500123, "name": "Mary Poe", "email": "mary@example.net", "role": "end-user"}


def comment(author: int, text: str, at: str, **more: Any) -> dict[str, Any]:
    return {
        "id": 40,
        "type": "Comment",
        "author_id": author,
        "body": text,
        "html_body": f'<div class="zd-comment"><p>{text}</p></div>',
        "plain_body": text,
        "public": True,
        "attachments": [],
        "via": {"channel": "email", "source": {"from": {"address": "x@example.org", "name": "x"}}},
        "created_at": at,
    } | more


def ticket(**more: Any) -> dict[str, Any]:
    """As it is in the account's export."""
    return {
        "url": "https://shop.zendesk.com/api/v2/tickets/35436.json",
        "id": 35436,
        "subject": "My order",
        "description": "Where is it?",
        "status": "closed",
        "requester": JANE,
        "submitter": JANE,
        "assignee": TOM,
        "via": {"channel": "email"},
        "comments": [
            comment(JANE["id"], "Where is&nbsp;it?", "2026-07-20T22:55:29Z"),
            comment(-1, "We got your mail.", "2026-07-20T22:55:30Z", via={"channel": "rule"}),
            comment(TOM["id"], "Check the parcel first", "2026-07-21T08:00:00Z", public=False),
            comment(TOM["id"], "Hi Jane, it comes today.", "2026-07-21T09:00:00Z"),
        ],
    } | more


TURNS = [
    Turn("customer", "Where is it?"),
    Turn("automatic", "We got your mail."),
    Turn("agent", "Hi Jane, it comes today."),
]


@pytest.mark.parametrize("shape", ["lines", "list", "document", "indented"])
def test_a_ticket_is_read_from_every_layout(tmp_path: Path, shape: str) -> None:
    both = [ticket(), ticket(id=35437)]
    text = {
        "lines": "\n".join(map(json.dumps, both)),
        "list": json.dumps(both),
        "document": json.dumps({"count": 2, "tickets": both, "next_page": None}),
        "indented": json.dumps({"next_page": None, "tickets": both}, indent=2),
    }[shape]
    path = written(tmp_path, "tickets.json", text.encode())
    assert str(recognise("tickets.json", path, Company())) == "Zendesk tickets"
    first, second = records(path)
    assert first.turns == second.turns == TURNS
    assert (first.conversation_id, second.conversation_id) == ("35436", "35437")
    assert first.subject == "jane@example.org"
    assert first.left_out == 1
    assert first.known == [
        ("Client Name", "Jane Roe"),
        ("Customer Email", "jane@example.org"),
        ("Customer Phone Number", "+1 555 0100"),
        ("Account Number", "377922500012"),
        ("Ticket Number", "35436"),
        ("Person Name", "Tom Weaver"),
    ]
    for record in (first, second):
        assert record.offset is not None
        assert record.length is not None
        part = text.encode()[record.offset : record.offset + record.length]
        assert json.loads(part)["id"] == int(record.conversation_id)


def test_the_list_of_users_says_who_is_who(tmp_path: Path) -> None:
    bare = ticket(requester=None, submitter=None, assignee=None, requester_id=JANE["id"])
    bare["comments"].append(comment(MARY["id"], "I second that", "2026-07-22T09:00:00Z"))
    text = json.dumps({"tickets": [bare], "users": [JANE, TOM, MARY, {"id": []}, {"id": True}, 7]})
    (record,) = records(written(tmp_path, "tickets.json", text.encode()))
    assert record.turns == [*TURNS, Turn("customer", "I second that")]
    assert record.subject == "jane@example.org"
    assert ("Person Name", "Tom Weaver") in record.known
    assert ("Client Name", "Mary Poe") in record.known


def test_without_a_list_of_users_others_are_agents_except_those_in_copy(tmp_path: Path) -> None:
    bare = ticket(requester=None, submitter=None, assignee=None, requester_id=JANE["id"], collaborator_ids=[MARY["id"]])
    bare["comments"].append(comment(MARY["id"], "I second that", "2026-07-22T09:00:00Z"))
    (record,) = records(written(tmp_path, "tickets.jsonl", json.dumps(bare).encode()))
    assert record.turns == [*TURNS, Turn("customer", "I second that")]
    assert record.subject == str(JANE["id"])


def test_comments_are_sorted_oldest_first(tmp_path: Path) -> None:
    turned = ticket()
    turned["comments"].reverse()
    (record,) = records(written(tmp_path, "tickets.jsonl", json.dumps(turned).encode()))
    assert record.turns == TURNS


def test_html_is_read_if_there_is_no_plain_text(tmp_path: Path) -> None:
    html = {"plain_body": None, "body": "", "html_body": "<div><p>One &amp; two</p><p>three<br>four</p></div>"}
    (record,) = records(
        written(tmp_path, "t.jsonl", json.dumps(ticket(comments=[comment(JANE["id"], "", "", **html)])).encode())
    )
    assert record.turns == [Turn("customer", "One & two\n\nthree\nfour")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"comments": [comment(JANE["id"], "x", "", public=False)]}, "has no public comment"),
        ({"comments": []}, "has no text"),
        ({"comments": [comment(JANE["id"], " ", "")]}, "has no text"),
        ({"comments": ["x"]}, "its comments are not a list of objects"),
        ({"comments": [comment(JANE["id"], "x", "", plain_body={})]}, "its comment is not text"),
        ({"comments": [comment(JANE["id"], "x", "", author_id=None)]}, "has a comment without author"),
        ({"comments": [comment(JANE["id"], "x", "", via={"channel": []})]}, "its channel is not text"),
        ({"id": None}, "has no id"),
        ({"id": [1]}, "its id is not an id"),
        ({"requester": JANE | {"name": 7}, "submitter": None}, "its requester's name is not text"),
    ],
)
def test_an_unusable_ticket_is_bad_with_a_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    text = json.dumps([ticket(**change), ticket()])
    path = written(tmp_path, "t.json", text.encode())
    assert [(bad.index, bad.offset, bad.reason) for bad in bad_records(path)] == [(0, 1, reason)]
    assert len(records(path)) == 1


def test_a_ticket_without_comments_says_how_to_export_it(tmp_path: Path) -> None:
    bare = ticket(requester_id=JANE["id"])
    del bare["comments"]
    (bad,) = bad_records(written(tmp_path, "t.jsonl", json.dumps(bare).encode()))
    assert bad.reason == "has no comments: export the tickets with them"


def test_complete_records_of_a_truncated_export_are_kept(tmp_path: Path) -> None:
    text = json.dumps({"tickets": [ticket(), ticket(id=2), ticket(id=3)]}, indent=1).encode()
    third = text.index(b'"id": 3,')
    start = text.rindex(b'{\n   "url"', 0, third)
    path = written(tmp_path, "t.json", text[: third + 900])
    assert [record.conversation_id for record in records(path)] == ["35436", "2"]
    assert [(bad.index, bad.offset, bad.reason) for bad in bad_records(path)] == [
        (2, start, "the JSON breaks off here")
    ]


TAGGED = {
    "type": "problem",
    "tags": ["vip", "brakes", "battery"],
    "custom_fields": [{"id": 36001, "value": "topic__battery"}, {"id": 36002, "value": ["a", "b"]}, {"id": 36003}],
}


@pytest.mark.parametrize(
    ("subjects", "change", "label"),
    [
        ({}, {}, None),
        ({"tags": ["battery", "brakes"]}, {}, "battery"),
        ({"tags": ["Brakes", "battery"]}, {}, "Brakes"),
        ({"tags": ["wheels"]}, {}, None),
        ({"tags": ["battery"]}, {"tags": None}, None),
        ({"tags": ["battery"]}, {"tags": "battery"}, None),
        ({"tags": ["battery"]}, {"tags": [7, None, ["battery"], "battery"]}, "battery"),
        ({"field": "36001", "tags": ["brakes"]}, {}, "topic__battery"),
        ({"field": 36001}, {}, "topic__battery"),
        ({"field": "36002", "tags": ["brakes"]}, {}, "brakes"),
        ({"field": "36003"}, {}, None),
        ({"field": "36001"}, {"custom_fields": [7, {"value": "x"}, {"id": [], "value": "y"}]}, None),
        ({"field": "36001"}, {"custom_fields": {"36001": "x"}}, None),
        ({"field": "type"}, {}, "problem"),
    ],
)
def test_the_label_is_what_company_yaml_chooses(
    tmp_path: Path, subjects: dict[str, Any], change: dict[str, Any], label: str | None
) -> None:
    company = Company(subjects=SubjectSettings.model_validate(subjects))
    path = written(tmp_path, "t.jsonl", json.dumps(ticket(**(TAGGED | change))).encode())
    assert [record.label for record in records(path, company)] == [label]
