"""Makes pairs from the turns of a conversation: a message of the customer, and the reply of a person at the company."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cs_pipeline.prepare.company.mail import is_automatic, own_words

EARLIER_MESSAGES = 3
"""The maximum number of messages before a question that are kept as its context."""


@dataclass(frozen=True)
class TicketMessage:
    """Consecutive turns of one role. ``text`` has no quoted mail and no signatures; ``raw`` is the text as delivered.

    ``turns`` are the indices of its turns, from 0.
    """

    role: Literal["customer", "agent"]
    text: str
    raw: str
    turns: tuple[int, ...]


@dataclass(frozen=True)
class QuestionAnswer:
    """A message of the customer and its answer. ``reason`` says why it cannot be used for training; None if it can.

    ``context`` are the messages before the question, oldest first.
    """

    question: TicketMessage
    answer: TicketMessage | None
    context: tuple[TicketMessage, ...]
    reason: str | None


@dataclass(frozen=True)
class Paired:
    """The ``pairs`` of a conversation, one per message of the customer, and the number of ``automatic`` replies removed."""

    pairs: list[QuestionAnswer]
    automatic: int


def pair(turns: Sequence[tuple[str, str]], automatic: Sequence[re.Pattern[str]] = ()) -> Paired:
    """Pairs up ``turns``, each a role (customer, agent, automatic) and its raw text, in their order.

    Consecutive turns of one role are one message. Automatic replies are recognised by role, by their words or by a pattern
    of ``automatic``. They are not answers. An automatic reply from the customer's mailbox becomes a pair without an answer.
    """
    messages: list[TicketMessage] = []
    pairs: list[QuestionAnswer] = []
    removed = 0
    for turn, (role, raw) in enumerate(turns):
        words = own_words(raw)
        if role == "automatic" or is_automatic(words, automatic):
            removed += 1
            if role == "customer":
                message = TicketMessage("customer", words, raw, (turn,))
                pairs.append(QuestionAnswer(message, None, (), "automatic reply"))
            continue
        message = TicketMessage("customer" if role == "customer" else "agent", words, raw, (turn,))
        if messages and messages[-1].role == message.role:
            message = _merge(messages.pop(), message)
        messages.append(message)
    for index, question in enumerate(messages):
        if question.role == "customer":
            answer = messages[index + 1] if index + 1 < len(messages) else None
            context = tuple([message for message in messages[:index] if message.text][-EARLIER_MESSAGES:])
            pairs.append(QuestionAnswer(question, answer, context, _reason(question, answer)))
    return Paired(sorted(pairs, key=lambda pair: pair.question.turns), removed)


def _merge(first: TicketMessage, second: TicketMessage) -> TicketMessage:
    text = f"{first.text}\n{second.text}".strip()
    return TicketMessage(first.role, text, f"{first.raw}\n{second.raw}", first.turns + second.turns)


def _reason(question: TicketMessage, answer: TicketMessage | None) -> str | None:
    if not question.text:
        return "question is only a signature or quoted mail"
    if answer is None:
        return "no answer by a person"
    return None if answer.text else "answer is only a signature or quoted mail"
