"""Turns of a conversation become pairs: a customer's message, and what a person of the company replied."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cs_pipeline.prepare.company.mail import is_automatic, own_words

EARLIER_TURNS = 3
"""Messages before a question that stand beside it as its context, at most."""


@dataclass(frozen=True)
class TicketMessage:
    """What one side said until the other spoke: ``text`` are its own words, ``raw`` all that was delivered.

    ``places`` are the turns of the conversation that it was made of, from 0.
    """

    role: Literal["customer", "agent"]
    text: str
    raw: str
    places: tuple[int, ...]


@dataclass(frozen=True)
class QuestionAnswer:
    """A customer's message and its answer. ``reason`` says why it cannot train, None if it can.

    ``context`` are the messages before the question, oldest first.
    """

    question: TicketMessage
    answer: TicketMessage | None
    context: tuple[TicketMessage, ...]
    reason: str | None


@dataclass(frozen=True)
class Paired:
    """The ``pairs`` of a conversation, one for each message of the customer, and how many ``automatic`` replies were cut."""

    pairs: list[QuestionAnswer]
    automatic: int


def pair(turns: Sequence[tuple[str, str]], automatic: Sequence[re.Pattern[str]] = ()) -> Paired:
    """Pairs up ``turns``, each a role (customer, agent, automatic) and its raw text, in the order they were said.

    Turns of one side without one of the other between them are one message. Automatic replies, by role, by their words or
    by an expression of ``automatic``, answer nothing; one from a customer's mailbox is a message of its own, unanswered.
    """
    messages: list[TicketMessage] = []
    pairs: list[QuestionAnswer] = []
    cut = 0
    for place, (role, raw) in enumerate(turns):
        words = own_words(raw)
        if role == "automatic" or is_automatic(words, automatic):
            cut += 1
            if role == "customer":
                pairs.append(
                    QuestionAnswer(TicketMessage("customer", words, raw, (place,)), None, (), "automatic reply")
                )
            continue
        message = TicketMessage("customer" if role == "customer" else "agent", words, raw, (place,))
        if messages and messages[-1].role == message.role:
            message = _joined(messages.pop(), message)
        messages.append(message)
    for number, question in enumerate(messages):
        if question.role == "customer":
            answer = messages[number + 1] if number + 1 < len(messages) else None
            said = [message for message in messages[:number] if message.text]
            pairs.append(QuestionAnswer(question, answer, tuple(said[-EARLIER_TURNS:]), _reason(question, answer)))
    return Paired(sorted(pairs, key=lambda pair: pair.question.places), cut)


def _joined(first: TicketMessage, second: TicketMessage) -> TicketMessage:
    return TicketMessage(
        first.role,
        f"{first.text}\n{second.text}".strip(),
        f"{first.raw}\n{second.raw}",
        first.places + second.places,
    )


def _reason(question: TicketMessage, answer: TicketMessage | None) -> str | None:
    if not question.text:
        return "question of nothing but a signature or quoted mail"
    if answer is None:
        return "no answer by a person"
    return None if answer.text else "answer of nothing but a signature or quoted mail"
