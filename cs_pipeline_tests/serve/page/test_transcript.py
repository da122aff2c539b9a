import json
from typing import Any

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.page.controls import parse_details
from cs_pipeline.serve.page.transcript import (
    ChatTurn,
    Conversation,
    as_json,
    chatbot_messages,
    messages_of,
    title,
    transcript_text,
)

TURN: ChatTurn = {
    "question": "where is <b>it</b>?\nmy parcel",
    "answer": "On its way & soon there.",
    "system": "version 3",
    "settings": {"author": "model", "finish": "stop", "tone": "neutral"},
    "intent": "track_order",
    "confidence": 0.934,
    "handover": None,
    "sources": [],
    "thumb": None,
}
CHAT: Conversation = {"id": "one", "turns": [TURN, {**TURN, "question": "and when?", "thumb": True}]}


def test_messages_are_escaped_and_show_their_author() -> None:
    question, answer = chatbot_messages([TURN])
    assert question == {
        "role": "user",
        "content": '<div class="message-text">where is &lt;b&gt;it&lt;/b&gt;?\nmy parcel</div>',
    }
    assert answer["content"] == (
        '<div class="message-text">On its way &amp; soon there.</div>'
        '<div class="notes">version 3 · intent track_order · about anything known: 93%</div>'
    )


def test_notes_below_an_answer_show_sources_handover_and_cutoff() -> None:
    sources: list[dict[str, Any]] = [
        {"kind": "passage", "title": "<Returns>", "address": 'https://shop.example/a?b="c', "text": "<p>30 days"},
        {"kind": "passage", "title": "Fees", "address": "javascript:alert(1)", "text": "none"},
        {"kind": "answer", "title": "where is it?", "address": None, "text": "On its way."},
    ]
    more: ChatTurn = {
        **TURN,
        "sources": sources,
        "handover": "the customer is angry",
        "intent": None,
        "confidence": 0.12,
    }
    more["settings"] = {"author": "desk", "finish": "length"}
    content = chatbot_messages([more])[1]["content"]
    link = '<a href="https://shop.example/a?b=&#34;c" target="_blank" rel="noopener noreferrer">&lt;Returns&gt;</a>'
    assert (
        f'<li><details><summary>{link}</summary><div class="message-text">&lt;p&gt;30 days</div></details></li>'
        in content
    )
    assert "<summary>Fees (javascript:alert(1))</summary>" in content, "only web addresses become links"
    assert "<summary>A past answer to \u201cwhere is it?\u201d</summary>" in content
    assert "Handed over to a person: the customer is angry" in content
    assert (
        "the desk, not version 3 · no known intent · about anything known: 12% · cut off at the length limit" in content
    )
    assert not any(word in chatbot_messages([TURN])[1]["content"] for word in ("Sources", "Handed", "cut"))


def test_earlier_turns_name_their_speaker() -> None:
    assert messages_of([TURN]) == [("customer", TURN["question"]), ("agent", TURN["answer"])]


def test_exports_contain_the_chat() -> None:
    assert json.loads(as_json(CHAT)) == CHAT
    assert transcript_text(CHAT).splitlines()[-2:] == ["Customer: and when?", "Version 3: On its way & soon there."]


def test_a_title_is_one_short_line() -> None:
    assert title(CHAT) == "where is <b>it</b>? my parcel"
    assert len(title({"id": "", "turns": [{**TURN, "question": "word " * 40}]})) <= 62


def test_details_are_read_line_by_line() -> None:
    assert parse_details("Order Number: 12:30\n\n Name :Ana ") == {"Order Number": "12:30", "Name": "Ana"}
    assert parse_details("") == {}
    for wrong in ("12345", "Name: Ana\n: 5"):
        with pytest.raises(PipelineError, match="Line"):
            parse_details(wrong)
