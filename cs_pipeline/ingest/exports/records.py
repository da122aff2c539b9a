"""What a file of conversations is read into: records that can be used, and those that cannot, with their reason."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from cs_pipeline.company import Company

Role = Literal["customer", "agent", "automatic"]

# Names of the catalogue, cs_pipeline/text/placeholders.yaml.
CUSTOMER_NAME = "Client Name"
CUSTOMER_EMAIL = "Customer Email"
CUSTOMER_PHONE = "Customer Phone Number"
CUSTOMER_ID = "Account Number"
TICKET = "Ticket Number"
AGENT_NAME = "Person Name"

_LEAST_ID = 5
"""Ids shorter than this stay in the text: a customer's number 7 is in too many sentences that do not mean him."""

_HALF = re.compile("[\ud800-\udfff]")

Where = tuple[int, int | None, int | None]
"""Place, offset and length of a record."""


class UnusableError(Exception):
    """Why a record cannot be used. The reasons are counted and shown, so they never quote the record."""


@dataclass(frozen=True)
class Turn:
    """What one side said at a time."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One of what the file is a list of: a row, a ticket, a conversation, a line of a transcript.

    ``place`` counts from 0, a table's header and blank lines included; ``offset`` and ``length`` are bytes of the file,
    null in Parquet. ``subject`` is the customer's e-mail address, else the customer's id. ``known`` are values that the
    export's own fields say of its people, each with the placeholder that is to take its place. ``left_out`` counts what
    the customer never saw: private comments, notes, drafts.
    """

    place: int
    offset: int | None
    length: int | None
    conversation_id: str
    turns: list[Turn]
    subject: str | None
    known: list[tuple[str, str]]
    left_out: int


@dataclass(frozen=True)
class Bad:
    """A record that cannot be used; ``record`` are its first 500 characters, raw."""

    place: int
    offset: int | None
    reason: str
    record: str


def make_record(
    where: Where,
    conversation_id: str,
    turns: list[Turn],
    subject: str | None,
    known: Iterable[tuple[str, str | None]],
    left_out: int = 0,
) -> Record:
    """The record, without empty turns, and with the values of ``known`` that are there, each once.

    Raises UnusableError when it has no sound text.
    """
    turns = [turn for turn in turns if turn.text.strip()]
    if not turns:
        raise UnusableError("has no text")
    values = list(dict.fromkeys((name, value.strip()) for name, value in known if value and value.strip()))
    for text in (conversation_id, subject or "", *(turn.text for turn in turns), *(value for _, value in values)):
        if "\0" in text:
            raise UnusableError("holds a NUL character")
        # JSON may spell half a character; no table can hold it.
        if _HALF.search(text):
            raise UnusableError("holds half of a surrogate pair")
    return Record(*where, conversation_id, turns, subject, values, left_out)


def as_text(value: object, what: str) -> str:
    """A field's text; null is the empty one. Raises UnusableError for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UnusableError(f"its {what} is not text")
    return value


def as_id(value: object, what: str) -> str | None:
    """A field's id, a number or text; None where there is none. Raises UnusableError for anything else."""
    # Tables without a value in some row hold their whole numbers as floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise UnusableError(f"its {what} is no id")
    return None if value is None else str(value).strip() or None


def known_id(value: str | None) -> str | None:
    """``value`` where it is long enough to be told from other numbers."""
    return value if value is not None and len(value) >= _LEAST_ID and any(map(str.isdigit, value)) else None


def objects(value: object, what: str) -> list[dict[str, Any]]:
    """A field's list of objects; null is the empty one. Raises UnusableError for anything else."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnusableError(f"its {what} are no list of objects")
    return value


def in_time_order(items: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """``items`` by the time at ``key`` (ISO 8601), oldest first; as they stand where one of them lacks it."""
    if all(isinstance(item.get(key), str) for item in items):
        return sorted(items, key=lambda item: item[key])
    return items


_ROLE_LIKE = frozenset(
    {"customer", "client", "user", "end", "enduser", "visitor", "guest", "requester", "buyer", "consumer", "human"}
)
"""Words that say what a customer is and not who."""

_WORD = re.compile(r"\w+")
_LETTERS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@lru_cache(maxsize=1024)
def role_of(speaker: str, company: Company) -> Role:
    """The role, by the words of company.yaml; whom they do not name is a customer."""
    spoken = _words(speaker)
    if any(_words(name) in spoken for name in company.automatic):
        return "automatic"
    return "agent" if any(_words(name) in spoken for name in company.agents) else "customer"


@lru_cache(maxsize=1024)
def name_of(speaker: str, company: Company) -> str | None:
    """Who it is, without the words that say what he is: "Tom" of "Tom (Support)"; an e-mail address as it stands."""
    if "@" in speaker:
        return speaker
    roles = {*_words(" ".join((*company.agents, *company.automatic))).split(), *_ROLE_LIKE}
    names = [word for word in _LETTERS.findall(speaker) if word.casefold() not in roles]
    return " ".join(names) if sum(map(len, names)) > 1 else None


def speaker_placeholder(speaker: str, role: Role) -> str:
    """What takes the place of the speaker's name."""
    if role == "customer":
        return CUSTOMER_EMAIL if "@" in speaker else CUSTOMER_NAME
    return AGENT_NAME


def _words(text: str) -> str:
    # Spaces around, so that a word is found as a whole one.
    return f" {' '.join(_WORD.findall(text.casefold()))} "
