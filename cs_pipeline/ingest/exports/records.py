"""Records of exports, and the interface of a kind of export."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from cs_pipeline.company import Company, SubjectSettings

Role = Literal["customer", "agent", "automatic"]
JsonObject = Mapping[str, Any]

# Names from the catalogue of placeholders, cs_pipeline/text/placeholders.yaml.
CUSTOMER_NAME = "Client Name"
CUSTOMER_EMAIL = "Customer Email"
CUSTOMER_PHONE = "Customer Phone Number"
CUSTOMER_ID = "Account Number"
TICKET = "Ticket Number"
AGENT_NAME = "Person Name"

_MIN_ID_LENGTH = 5
"""Shorter ids are not replaced in texts: a "7" in a text rarely means the customer with the id 7."""

MAX_LABEL_LENGTH = 80
"""Longer values are sentences, and not names of subjects."""

_SURROGATE = re.compile("[\ud800-\udfff]")

Location = tuple[int, int | None, int | None]
"""Index, offset and length of a record."""


class UnusableError(Exception):
    """A record cannot be used. The message states the reason. It is shown in the UI, so it must not quote the record."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One record of a file: a row, a ticket, a conversation, a line of a transcript.

    ``index`` counts from 0 and includes a table's header and blank lines. ``offset`` and ``length`` are in bytes of the
    file, None in Parquet. ``subject`` is the customer's e-mail address, else the customer's id. ``known`` has personal data
    from the export's own fields: pairs of a placeholder and the value that it replaces. ``left_out`` counts messages that
    the customer never saw: private comments, notes, drafts. ``label`` is what the record is about according to the export,
    as ``as_label`` returns it.
    """

    index: int
    offset: int | None
    length: int | None
    conversation_id: str
    turns: list[Turn]
    subject: str | None
    known: list[tuple[str, str]]
    left_out: int
    label: str | None = None


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used. ``excerpt`` has its first 500 characters, unchanged."""

    index: int
    offset: int | None
    reason: str
    excerpt: str


@dataclass(frozen=True)
class ExportKind:
    """The JSON export of a help desk. Its module defines one as ``KIND`` and is listed in ``exports.KINDS``.

    ``name`` is shown to users. ``list_key`` is the key of the list of records if the file is one JSON document.
    ``is_record`` recognises a JSON object of this kind by keys that no other kind has. ``to_record`` is called with a
    record's location, its JSON object, and the people by id. It raises UnusableError if the record cannot be used.

    ``people_key`` is the key of a list of people beside the records, such as Zendesk's ``users``. Each has an ``id``.
    ``customer_id`` returns the id of a record's customer in that list. Redaction removes a person from the list if all
    records with this customer are redacted.

    ``tags`` returns a record's tags. ``fields`` returns its fields, with values of any type, by every name that
    company.yaml may use for them. ``subjects`` in company.yaml says which tag or field is the record's label.
    """

    name: str
    list_key: str
    is_record: Callable[[JsonObject], bool]
    to_record: Callable[[Location, JsonObject, dict[str, JsonObject]], Record]
    people_key: str | None = None
    customer_id: Callable[[JsonObject], str | None] = lambda record: None
    tags: Callable[[JsonObject], list[str]] = lambda record: []
    fields: Callable[[JsonObject], Mapping[str, object]] = lambda record: {}

    def label_of(self, record: JsonObject, subjects: SubjectSettings) -> str | None:
        """What the record is about according to the export, None if it does not say. Never raises UnusableError."""
        if subjects.field and (label := as_label(self.fields(record).get(subjects.field))) is not None:
            return label
        carried = {tag.casefold() for tag in self.tags(record)} if subjects.tags else set()
        return next((as_label(tag) for tag in subjects.tags if tag.casefold() in carried), None)


def make_record(
    location: Location,
    conversation_id: str,
    turns: list[Turn],
    subject: str | None,
    known: Iterable[tuple[str, str | None]],
    left_out: int = 0,
    label: str | None = None,
) -> Record:
    """The record without empty turns and without empty or repeated values of ``known``.

    Raises UnusableError if it has no text, or text that cannot be stored in a table.
    """
    turns = [turn for turn in turns if turn.text.strip()]
    if not turns:
        raise UnusableError("has no text")
    values = list(dict.fromkeys((name, value.strip()) for name, value in known if value and value.strip()))
    for text in (conversation_id, subject or "", *(turn.text for turn in turns), *(value for _, value in values)):
        if "\0" in text:
            raise UnusableError("holds a NUL character")
        # JSON escapes can spell half a surrogate pair, which UTF-8 cannot encode.
        if _SURROGATE.search(text):
            raise UnusableError("holds half of a surrogate pair")
    return Record(*location, conversation_id, turns, subject, values, left_out, label)


def as_text(value: object, field_name: str) -> str:
    """A field's text; null becomes the empty string. Raises UnusableError for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UnusableError(f"its {field_name} is not text")
    return value


def as_id(value: object, field_name: str) -> str | None:
    """A field's id, given as a number or text; None if it is missing. Raises UnusableError for anything else."""
    # In a table, a column of integers with missing values is read as floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise UnusableError(f"its {field_name} is not an id")
    return None if value is None else str(value).strip() or None


def distinctive_id(value: str | None) -> str | None:
    """``value`` if it is long enough to be replaced wherever it occurs in a text, else None."""
    return value if value is not None and len(value) >= _MIN_ID_LENGTH and any(map(str.isdigit, value)) else None


def known_of_customer(name: str, email: str | None, phone: str | None, id: str | None) -> list[tuple[str, str | None]]:
    """A customer's values for ``known``, with their placeholders."""
    return [(CUSTOMER_NAME, name), (CUSTOMER_EMAIL, email), (CUSTOMER_PHONE, phone), (CUSTOMER_ID, distinctive_id(id))]


def as_label(value: object) -> str | None:
    """The name of a subject, from a field that holds text, a number, or a list with one of them. Else None.

    The name has one line and no control or invisible characters. A value longer than MAX_LABEL_LENGTH is not a name. A
    label is optional, so no value makes its record unusable.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        text = as_id(value, "subject") or ""
    except UnusableError:
        return None
    # Cc, Cf, Cs, Co, Cn: control, invisible, half of a surrogate pair, private, unassigned.
    visible = (character for character in " ".join(text.split()) if not unicodedata.category(character).startswith("C"))
    label = " ".join("".join(visible).split())
    return label if 0 < len(label) <= MAX_LABEL_LENGTH else None


def texts_in(value: object, key: str = "name") -> list[str]:
    """The texts in a field's list of texts, or of objects that have the text at ``key``. Other values are left out."""
    items = value if isinstance(value, list) else []
    texts = (item.get(key) if isinstance(item, dict) else item for item in items)
    return [text for text in texts if isinstance(text, str)]


def objects_in(value: object) -> list[dict[str, Any]]:
    """The objects in a field's list, for an optional field. Other values are left out."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_objects(value: object, field_name: str) -> list[dict[str, Any]]:
    """A field's list of objects; null becomes the empty list. Raises UnusableError for anything else."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnusableError(f"its {field_name} are not a list of objects")
    return value


def in_time_order(items: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """``items`` sorted by the time at ``key`` (ISO 8601), oldest first; unchanged if one of them lacks it."""
    if all(isinstance(item.get(key), str) for item in items):
        return sorted(items, key=lambda item: item[key])
    return items


_ROLE_WORDS = frozenset(
    {"customer", "client", "user", "end", "enduser", "visitor", "guest", "requester", "buyer", "consumer", "human"}
)
"""Words for a customer's role, which are not part of a name."""

_WORD = re.compile(r"\w+")
_LETTERS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@lru_cache(maxsize=1024)
def role_of(speaker: str, company: Company) -> Role:
    """The speaker's role according to ``agents`` and ``automatic`` in company.yaml. All other speakers are customers."""
    words = _words(speaker)
    if any(_words(name) in words for name in company.automatic):
        return "automatic"
    return "agent" if any(_words(name) in words for name in company.agents) else "customer"


@lru_cache(maxsize=1024)
def person_name(speaker: str, company: Company) -> str | None:
    """The speaker's name without words for a role: "Tom" for "Tom (Support)". An e-mail address is not changed."""
    if "@" in speaker:
        return speaker
    roles = {*_words(" ".join((*company.agents, *company.automatic))).split(), *_ROLE_WORDS}
    names = [word for word in _LETTERS.findall(speaker) if word.casefold() not in roles]
    return " ".join(names) if sum(map(len, names)) > 1 else None


def speaker_placeholder(speaker: str, role: Role) -> str:
    """The placeholder that replaces the speaker's name."""
    if role == "customer":
        return CUSTOMER_EMAIL if "@" in speaker else CUSTOMER_NAME
    return AGENT_NAME


def _words(text: str) -> str:
    # The spaces around it ensure that only whole words match.
    return f" {' '.join(_WORD.findall(text.casefold()))} "
