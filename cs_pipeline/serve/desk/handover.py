"""Decides when a person takes over from the model, and writes the message to the customer and the summary for that person.

In the first test, on 70 messages that were not used to write the rules (``cs_pipeline_tests/serve/desk/messages.yaml``), the
rules handed over 13 of the 16 messages that need a person and none of the 54 others. The author of the rules wrote the
messages, so these figures are an upper bound. Of 4,000 Bitext questions, the rules handed over 86 of the 125 that ask for a
person (the intent finds the rest) and 1 of the others.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml
from cs_pipeline.llm.prompt import Context
from cs_pipeline.serve.desk.mood import Mood, mood
from cs_pipeline.text.conduct import conduct


class HandoverReason(StrEnum):
    """Why a person takes over."""

    ASKED = "the customer asks for a person"
    SENSITIVE = "the matter needs a person"
    ANGER = "the customer is angry"
    FAILURE = "the answers did not help"
    UNCLEAR = "the question was not understood"
    WITHHELD = "the model's answer was withheld"


@dataclass(frozen=True)
class Handover:
    """The record for the person who takes over. It contains personal data.

    ``follows`` is the reference of an earlier handover of the same conversation, or empty. ``values`` are the details that
    the customer gave, by placeholder. ``conversation`` is the unmasked conversation. ``intent`` and ``confidence`` are as in
    ``Generation``; ``intent`` is None if the question is about nothing known, or if the wording alone decided.
    """

    reference: str
    at: str
    reason: str
    follows: str
    summary: str
    model: str
    intent: str | None
    confidence: float | None
    context: str
    values: Mapping[str, str]
    conversation: Context


def handover_reason(text: str, earlier: Context) -> HandoverReason | None:
    """Why a person should take over after the customer's message ``text``, judged by its words alone; else None."""
    if _ASKS_FOR_PERSON.search(text):
        return HandoverReason.ASKED
    if _SENSITIVE.search(text):
        return HandoverReason.SENSITIVE
    if mood(text) is Mood.ANGRY:
        return HandoverReason.ANGER
    return HandoverReason.FAILURE if _has_failed(text, earlier) else None


def handover_message(reason: HandoverReason, earlier: Context, values: Mapping[str, str]) -> tuple[str, str, str]:
    """The message to the customer, the reference of the new handover, and the reference that it follows, or "".

    If the conversation was handed over before, the message says so.
    """
    reference = f"H-{secrets.token_hex(4).upper()}"
    by_agent = [message for speaker, message in earlier if speaker == "agent"]
    previous = [match[0] for message in by_agent for match in _REFERENCE.finditer(message)]
    if previous:
        text = _MESSAGES["again"].format(reference=previous[-1])
    else:
        text = f"{_MESSAGES[reason.name.lower()]} {_MESSAGES['first'].format(reference=reference)}"
    phone, hours = values.get("Customer Support Phone Number"), values.get("Customer Support Hours")
    if phone:
        text += f" If it is urgent, please call {phone}{f' ({hours})' if hours else ''}."
    return text, reference, previous[-1] if previous else ""


def summarize(
    text: str, earlier: Context, reason: HandoverReason, intent: str | None, values: Mapping[str, str]
) -> str:
    """A few lines: the reason, the first and last question, the customer's details, and the last answer."""
    asked = [message for speaker, message in earlier if speaker == "customer"]
    answered = [message for speaker, message in earlier if speaker == "agent"]
    lines = [
        f"Reason: {reason.value}.",
        f"Customer messages: {len(asked) + 1}; mood of the last one: {mood(text).value}.",
        f"First message: {_shortened(asked[0])}" if asked else "",
        f"Last message: {_shortened(text)}",
        f"Topic: {intent.replace('_', ' ')}." if intent else "",
        f"Details: {', '.join(f'{name} {value}' for name, value in values.items())}." if values else "",
        f"Last answer: {_shortened(answered[-1])}" if answered else "No answer was given yet.",
    ]
    return "\n".join(filter(None, lines))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_QUOTE else f"{line[:_MAX_QUOTE].rsplit(' ', 1)[0]} …"


def _has_failed(text: str, earlier: Context) -> bool:
    """Whether the answers have not helped.

    True if the customer complains about having to repeat the request, complains twice that nothing helps, or asks the same
    question three times. Also true if the last two answers only asked for details or said what this desk is for.
    """
    if _REPEATED.search(text):
        return True
    asked = [message for speaker, message in earlier if speaker == "customer"]
    if len([message for message in (*asked, text) if _NOT_HELPED.search(message)]) >= 2 and _NOT_HELPED.search(text):
        return True
    if [_letters(message) for message in asked].count(_letters(text)) >= 2:
        return True
    last_two = [conduct(message) for speaker, message in earlier if speaker == "agent"][-2:]
    return len(last_two) == 2 and all(answer.asks_back or answer.redirects for answer in last_two)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


_MAX_QUOTE = 300
"""Characters of a message in the summary."""
_REFERENCE = re.compile(r"\bH-[0-9A-F]{8}\b")

_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))
_MESSAGES: dict[str, str] = _FILE["messages"]
_ASKS_FOR_PERSON, _SENSITIVE, _NOT_HELPED, _REPEATED = (
    any_of(_FILE[key], _FILE["words"], re.I) for key in ("asks_for_person", "sensitive", "not_helped", "repeated")
)
