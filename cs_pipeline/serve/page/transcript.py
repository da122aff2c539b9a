"""A chat as JSON data, which a browser can keep, and its conversion for the page, the model and the export."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypedDict

from cs_pipeline.feedback import GivenAnswer
from cs_pipeline.llm.prompt import Context
from cs_pipeline.serve.desk.desk import Desk, DeskRequest, Reply
from cs_pipeline.serve.page.controls import TEMPLATES

_MAX_TITLE = 60

HTML: Any = TEMPLATES.get_template("answers.html.jinja").module
"""The macros of answers.html.jinja. They escape all texts: the chatbot renders HTML even with Markdown switched off."""


class ChatTurn(TypedDict):
    """A question and its answer. ``system`` names the author as in evaluations: "version 3" or "version 3:base".

    ``settings`` are those of the answer. ``thumb`` is the person's verdict, None until given.
    """

    question: str
    answer: str
    system: str
    settings: Mapping[str, str | float | bool | None]
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


def given_answer(request: DeskRequest, reply: Reply) -> GivenAnswer:
    """The answer as feedback stores it: with the request's settings, its author, and why it ended."""
    settings = {
        "model": request.model,
        "recipe": reply.served.recipe,
        "tone": request.tone.value,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "private": request.private,
        "author": reply.author,
        "finish": reply.finish,
    }
    return GivenAnswer(f"version {reply.served.name}", reply.text, settings)


def draft_answers(desk: Desk, requests: Sequence[DeskRequest]) -> tuple[list[Reply], tuple[GivenAnswer, ...]]:
    """The models' own answers to all ``requests``, written at the same time."""
    with ThreadPoolExecutor(len(requests)) as pool:
        replies = list(pool.map(desk.draft, requests))
    return replies, tuple(map(given_answer, requests, replies))


def turn_of(request: DeskRequest, reply: Reply) -> ChatTurn:
    """The turn that the chat stores for ``request`` and its ``reply``."""
    given = given_answer(request, reply)
    return {
        "question": request.text,
        "answer": given.answer,
        "system": given.system,
        "settings": given.settings,
        "intent": reply.intent,
        "confidence": reply.confidence,
        "handover": None if reply.handover is None else reply.handover.value,
        "sources": [asdict(source) for source in reply.sources],
        "thumb": None,
    }


def messages_of(turns: Sequence[ChatTurn]) -> Context:
    """The turns as the messages that a model gets before the question."""
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
        for message in (question_message(turn["question"]), answer_message(turn["answer"], HTML.notes(turn)))
    ]


def question_message(question: str) -> dict[str, str]:
    """A question as a chatbot message."""
    return {"role": "user", "content": HTML.message_text(question)}


def answer_message(answer: str, notes: str = "") -> dict[str, str]:
    """An answer, or its beginning, as a chatbot message. ``notes`` are HTML below it."""
    return {"role": "assistant", "content": HTML.message_text(answer or "…") + notes}


def as_json(chat: Conversation) -> str:
    """The complete chat as JSON."""
    return json.dumps(chat, indent=2, ensure_ascii=False) + "\n"


def transcript_text(chat: Conversation) -> str:
    """The chat as plain text, with the author before each message."""
    lines = [
        line
        for turn in chat["turns"]
        for line in (f"Customer: {turn['question']}", f"{turn['system'].capitalize()}: {turn['answer']}", "")
    ]
    return "\n".join(lines)
