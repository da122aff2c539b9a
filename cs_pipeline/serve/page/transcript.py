"""A chat as the page keeps it: plain values that survive a reload, as they are shown, told to the model, and exported."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, TypedDict

from cs_pipeline.llm.prompt import Context
from cs_pipeline.serve.desk.desk import Ask, Reply

TITLE = 60
"""Characters of a question that stand for its chat in a list."""

ChatSettings = dict[str, str | float | bool | None]


class ChatTurn(TypedDict):
    """A question and its answer. ``system`` is who answered, as judgements call it: "version 3", or "version 3:base".

    ``settings`` shaped the answer; ``thumb`` is what the person thought of it, None until they say.
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
    """The turns of a conversation, oldest first. ``id`` is empty until there is one."""

    id: str
    turns: list[ChatTurn]


def new_chat() -> Conversation:
    """A conversation in which nothing was said."""
    return {"id": "", "turns": []}


def system_of(reply: Reply) -> str:
    """The name by which evaluation and judgements know who answered."""
    return f"version {reply.served.name}"


def settings_of(ask: Ask, reply: Reply) -> ChatSettings:
    """What shaped an answer: how it was asked for, who wrote it, and how it ended."""
    return {
        "model": ask.model,
        "recipe": reply.served.recipe,
        "tone": ask.tone.value,
        "temperature": ask.sampling.temperature,
        "top_p": ask.sampling.top_p,
        "private": ask.private,
        "author": reply.author,
        "finish": reply.finish,
    }


def turn_of(ask: Ask, reply: Reply) -> ChatTurn:
    """What is kept of a question and its answer."""
    return {
        "question": ask.text,
        "answer": reply.text,
        "system": system_of(reply),
        "settings": settings_of(ask, reply),
        "intent": reply.intent,
        "confidence": reply.confidence,
        "handover": None if reply.handover is None else reply.handover.value,
        "sources": [asdict(source) for source in reply.sources],
        "thumb": None,
    }


def earlier(turns: Sequence[ChatTurn]) -> Context:
    """The turns as the model is told them."""
    return [said for turn in turns for said in (("customer", turn["question"]), ("agent", turn["answer"]))]


def title(chat: Conversation) -> str:
    """The first question, shortened to a line."""
    line = " ".join(chat["turns"][0]["question"].split())
    return line if len(line) <= TITLE else f"{line[:TITLE].rstrip()} …"


def chat_messages(turns: Sequence[ChatTurn]) -> list[dict[str, str]]:
    """The turns as a Gradio chatbot takes them: for each the question, then the answer with what is to know of it."""
    return [
        message for turn in turns for message in (asked(turn["question"]), with_answer(turn["answer"], _notes(turn)))
    ]


def asked(question: str) -> dict[str, str]:
    """A question as a message."""
    return {"role": "user", "content": shown(question)}


def with_answer(answer: str, notes: str = "") -> dict[str, str]:
    """An answer, or as much as there is of it, as a message; ``notes`` are HTML below it."""
    return {"role": "assistant", "content": shown(answer or "…") + notes}


def shown(text: str) -> str:
    """``text`` as HTML that shows just that: the chatbot takes what it is given for HTML, Markdown switched off or not."""
    return f'<div class="said">{escape(text)}</div>'


def as_json(chat: Conversation) -> str:
    """The whole chat, for programs."""
    return json.dumps(chat, indent=2, ensure_ascii=False) + "\n"


def transcript_text(chat: Conversation) -> str:
    """The chat for people to read: who said what."""
    lines = [
        line
        for turn in chat["turns"]
        for line in (f"Customer: {turn['question']}", f"{turn['system'].capitalize()}: {turn['answer']}", "")
    ]
    return "\n".join(lines)


def _notes(turn: ChatTurn) -> str:
    known = [turn["system"] if turn["settings"]["author"] == "model" else f"the desk, not {turn['system']}"]
    if turn["intent"] is not None:
        sure = "" if turn["confidence"] is None else f" ({turn['confidence']:.0%})"
        known.append(f"intent {turn['intent']}{sure}")
    if turn["settings"]["finish"] != "stop":
        known.append(_ENDS[str(turn["settings"]["finish"])])
    notes = f'<div class="notes">{escape(" · ".join(known))}</div>'
    if turn["handover"] is not None:
        notes += f'<div class="handover">Handed over to a person: {escape(turn["handover"])}</div>'
    if turn["sources"]:
        notes += f'<div class="sources">Sources:{source_list(turn["sources"])}</div>'
    return notes


def source_list(sources: Sequence[Mapping[str, Any]]) -> str:
    """Texts that were looked up (fields of ``desk.Source``) as an HTML list: each with its title, and its text to unfold."""
    return f"<ul>{''.join(map(_source, sources))}</ul>"


def _source(source: Mapping[str, Any]) -> str:
    title, address = escape(source["title"]), source["address"]
    if source["kind"] == "answer":
        name = f"A past answer to \u201c{title}\u201d"
    elif address and address.startswith(("https://", "http://")):
        name = f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">{title}</a>'
    else:
        name = f"{title} ({escape(address)})" if address else title
    return f"<li><details><summary>{name}</summary>{shown(source['text'])}</details></li>"


_ENDS = {"length": "cut off at its longest", "time": "cut off when its time was up", "cancelled": "stopped"}
