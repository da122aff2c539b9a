"""A chat as plain data that survives a reload, with the forms in which it is shown, sent to the model, and exported."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, TypedDict

from cs_pipeline.llm.prompt import Context
from cs_pipeline.serve.desk.desk import DeskRequest, Reply

_MAX_TITLE = 60

ChatSettings = dict[str, str | float | bool | None]


class ChatTurn(TypedDict):
    """A question and its answer. ``system`` names the author as in evaluations: "version 3" or "version 3:base".

    ``settings`` are those of the answer. ``thumb`` is the person's verdict, None until given.
    """

    question: str
    answer: str
    system: str
    settings: ChatSettings
    intent: str | None
    confidence: float | None
    handover: str | None
    sources: list[dict[str, Any]]
    thumb: bool | None


class Conversation(TypedDict):
    """The turns of a conversation, oldest first. ``id`` is empty before the first turn."""

    id: str
    turns: list[ChatTurn]


def new_chat() -> Conversation:
    """An empty conversation."""
    return {"id": "", "turns": []}


def system_of(reply: Reply) -> str:
    """The author's name in evaluations and ratings."""
    return f"version {reply.served.name}"


def settings_of(request: DeskRequest, reply: Reply) -> ChatSettings:
    """How an answer was requested, who wrote it, and how it ended."""
    return {
        "model": request.model,
        "recipe": reply.served.recipe,
        "tone": request.tone.value,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "private": request.private,
        "author": reply.author,
        "finish": reply.finish,
    }


def turn_of(request: DeskRequest, reply: Reply) -> ChatTurn:
    """What the chat keeps of a question and its answer."""
    return {
        "question": request.text,
        "answer": reply.text,
        "system": system_of(reply),
        "settings": settings_of(request, reply),
        "intent": reply.intent,
        "confidence": reply.confidence,
        "handover": None if reply.handover is None else reply.handover.value,
        "sources": [asdict(source) for source in reply.sources],
        "thumb": None,
    }


def earlier(turns: Sequence[ChatTurn]) -> Context:
    """The turns as the model gets them."""
    return [message for turn in turns for message in (("customer", turn["question"]), ("agent", turn["answer"]))]


def title(chat: Conversation) -> str:
    """The first question, shortened to one line."""
    line = " ".join(chat["turns"][0]["question"].split())
    return line if len(line) <= _MAX_TITLE else f"{line[:_MAX_TITLE].rstrip()} …"


def chatbot_messages(turns: Sequence[ChatTurn]) -> list[dict[str, str]]:
    """The turns as messages of a Gradio chatbot: each question, then its answer with notes below."""
    return [
        message
        for turn in turns
        for message in (question_message(turn["question"]), answer_message(turn["answer"], _notes(turn)))
    ]


def question_message(question: str) -> dict[str, str]:
    """A question as a chatbot message."""
    return {"role": "user", "content": as_html(question)}


def answer_message(answer: str, notes: str = "") -> dict[str, str]:
    """An answer, or its beginning, as a chatbot message. ``notes`` are HTML below it."""
    return {"role": "assistant", "content": as_html(answer or "…") + notes}


def as_html(text: str) -> str:
    """``text`` as HTML that shows exactly that. The chatbot renders HTML even with Markdown switched off."""
    return f'<div class="said">{escape(text)}</div>'


def as_json(chat: Conversation) -> str:
    """The complete chat as JSON."""
    return json.dumps(chat, indent=2, ensure_ascii=False) + "\n"


def transcript_text(chat: Conversation) -> str:
    """The chat as readable text: who said what."""
    lines = [
        line
        for turn in chat["turns"]
        for line in (f"Customer: {turn['question']}", f"{turn['system'].capitalize()}: {turn['answer']}", "")
    ]
    return "\n".join(lines)


def _notes(turn: ChatTurn) -> str:
    facts = [turn["system"] if turn["settings"]["author"] == "model" else f"the desk, not {turn['system']}"]
    if turn["intent"] is not None:
        confidence = "" if turn["confidence"] is None else f" ({turn['confidence']:.0%})"
        facts.append(f"intent {turn['intent']}{confidence}")
    if turn["settings"]["finish"] != "stop":
        facts.append(_FINISH_LABELS[str(turn["settings"]["finish"])])
    notes = f'<div class="notes">{escape(" · ".join(facts))}</div>'
    if turn["handover"] is not None:
        notes += f'<div class="handover">Handed over to a person: {escape(turn["handover"])}</div>'
    if turn["sources"]:
        notes += f'<div class="sources">Sources:{source_list(turn["sources"])}</div>'
    return notes


def source_list(sources: Sequence[Mapping[str, Any]]) -> str:
    """Sources (fields of ``CitedSource``) as an HTML list. Each title unfolds to its text."""
    return f"<ul>{''.join(map(_source_item, sources))}</ul>"


def _source_item(source: Mapping[str, Any]) -> str:
    title, address = escape(source["title"]), source["address"]
    if source["kind"] == "answer":
        label = f"A past answer to \u201c{title}\u201d"
    elif address and address.startswith(("https://", "http://")):
        label = f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">{title}</a>'
    else:
        label = f"{title} ({escape(address)})" if address else title
    return f"<li><details><summary>{label}</summary>{as_html(source['text'])}</details></li>"


_FINISH_LABELS = {
    "length": "cut off at the length limit",
    "time": "cut off at the time limit",
    "cancelled": "stopped",
}
