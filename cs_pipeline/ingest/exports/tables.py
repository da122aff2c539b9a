"""Makes records from the rows of tables (CSV, JSON Lines, Parquet) and from the lines of plain transcripts.

A row is a question and its answer, or one turn of a conversation. A line of a transcript is one turn, written as
``speaker<tab>text<tab>conversation``, as ``speaker|text|conversation``, or as ``[conversation] Speaker: text``.
"""

import re
from collections.abc import Mapping, Sequence

from cs_pipeline.company import Columns, Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest
from cs_pipeline.ingest.exports.records import (
    TICKET,
    Location,
    Record,
    Turn,
    UnusableError,
    as_id,
    as_label,
    as_text,
    distinctive_id,
    known_of_customer,
    make_record,
    person_name,
    role_of,
    speaker_placeholder,
)

UNKNOWN_COLUMNS = "its columns are not known"

_COMMON_NAMES = {
    "question": ("question", "instruction", "customer_message", "prompt"),
    "answer": ("answer", "response", "agent_reply", "reply"),
    "text": ("text", "message", "body"),
    "speaker": ("speaker", "role", "author", "sender"),
    "conversation": ("conversation", "conversation_id", "ticket_id", "chat_id", "thread_id"),
    "customer_id": ("customer_id", "user_id"),
    "customer_name": ("customer_name",),
    "customer_email": ("customer_email", "email"),
    "subject": ("topic", "intent"),  # "subject" itself is the subject line of a mail in most tables
}
"""Column names that need no entry in company.yaml, in lower case, with spaces and hyphens as underscores."""

_COLUMN_NAME = re.compile(r"[^\W\d][\w.()/-]{0,39}( [\w.()/-]+){0,2}")
_BRACKETED = re.compile(r"\s*\[([^\]]+)\]\s*([^:]{1,80}?)\s*:(.*)", re.DOTALL)
_TIME = re.compile(r"\d{1,2}:\d{2}(:\d{2})?(\s*[ap]m)?", re.IGNORECASE)


def columns_of(names: Sequence[str], company: Company) -> Columns | None:
    """The columns that company.yaml names, if the table has all of them, else a guess by the names of the columns.

    None if the guess is ambiguous, or finds neither a question and its answer nor a turn.
    """
    if company.columns is not None and all(names.count(name) == 1 for name in _mapped_columns(company)):
        return company.columns
    found = {field: [name for name in names if _normalised(name) in common] for field, common in _COMMON_NAMES.items()}
    if len(found["subject"]) > 1:  # subjects are optional: a table with several such columns is read without them
        found["subject"] = []
    if any(len(matches) > 1 for matches in found.values()):
        return None
    columns = {field: matches[0] for field, matches in found.items() if matches}
    has_pair = {"question", "answer"} <= columns.keys()
    has_turn = {"text", "speaker", "conversation"} <= columns.keys()
    if has_pair == has_turn:
        return None
    ignored = {"text", "speaker"} if has_pair else {"question", "answer"}
    return Columns.model_validate({field: name for field, name in columns.items() if field not in ignored})


def columns_of_object(element: Mapping[str, object], company: Company) -> Columns | None:
    """Like ``columns_of``, for a row of JSON, which may lack some of the keys that company.yaml names."""
    columns = company.columns
    if columns is not None and (columns.question or columns.text) in element:
        return columns
    return columns_of(list(element), company)


def unknown_columns(name: str, columns: Sequence[str], company: Company) -> PipelineError:
    """The error for a table with unknown columns.

    It quotes them only if all of them look like column names. The first row of a table without names may be personal data.
    """
    if not columns or not all(_COLUMN_NAME.fullmatch(column) for column in columns):
        return PipelineError(
            f"{name}: its first row does not look like column names.",
            "Put the column names into the first row: question and answer, or text, speaker and conversation.",
        )
    missing = [column for column in _mapped_columns(company) if column not in columns]
    lacks = f", but not {', '.join(missing)} of company.yaml" if missing else ""
    return PipelineError(
        f"{name}: it is unknown which columns hold the question and the answer; it has {', '.join(columns)}{lacks}.",
        "Name them in company.yaml in the lake, either for one question and answer per row:\n"
        "    columns:\n      question: NAME\n      answer: NAME\n"
        "  or for one turn per row:\n"
        "    columns:\n      text: NAME\n      speaker: NAME\n      conversation: NAME\n"
        "  and, if the table has them, also customer_id, customer_name, customer_email and subject.",
    )


def record_of_row(location: Location, row: Mapping[str, object], columns: Columns, company: Company) -> Record:
    """The record of a row. Raises UnusableError if a required value is missing or has the wrong type."""

    def value(column: str | None) -> object:
        return None if column is None else row.get(column)

    conversation = as_id(value(columns.conversation), "conversation id")
    email = as_text(value(columns.customer_email), "customer's e-mail").strip() or None
    customer = as_id(value(columns.customer_id), "customer id")
    name = as_text(value(columns.customer_name), "customer's name")
    known = [*known_of_customer(name, email, None, customer), (TICKET, distinctive_id(conversation))]
    if columns.question is None:
        if conversation is None:
            raise UnusableError("has no conversation id")
        speaker = as_text(value(columns.speaker), "speaker").strip()
        if not speaker:
            raise UnusableError("has no speaker")
        role = role_of(speaker, company)
        turns = [Turn(role, as_text(value(columns.text), "text"))]
        known.append((speaker_placeholder(speaker, role), person_name(speaker, company)))
    else:
        question, answer = (as_text(value(columns.question), "question"), as_text(value(columns.answer), "answer"))
        if answer.strip() and not question.strip():
            raise UnusableError("has no question")
        turns = [Turn("customer", question), *([Turn("agent", answer)] if answer.strip() else [])]
        # This id has the same value for the same row in another delivery, but not for an equal row of another customer.
        conversation = conversation or digest(question, answer, email or customer)
    label = as_label(value(columns.subject))
    return make_record(location, conversation, turns, email or customer, known, label=label)


def record_of_line(location: Location, line: str, company: Company) -> Record | None:
    """The record of a line of a transcript; None for a header. Raises UnusableError if the line is not a turn."""
    fields = _turn_fields(line)
    if fields is None:
        raise UnusableError("is not a turn of a conversation")
    speaker, text, conversation = fields
    if location[0] == 0 and speaker.casefold() == "speaker":
        return None
    if not speaker:
        raise UnusableError("has no speaker")
    if not conversation:
        raise UnusableError("has no conversation id")
    # Some chat logs have the time here. If it were used as the id, every minute would be a separate conversation.
    if _TIME.fullmatch(conversation):
        raise UnusableError("has a time where its conversation id should be")
    role = role_of(speaker, company)
    name = person_name(speaker, company)
    subject = name if role == "customer" and name is not None and "@" in name else None
    known = [(speaker_placeholder(speaker, role), name)]
    return make_record(location, conversation, [Turn(role, text)], subject, known)


def _turn_fields(line: str) -> tuple[str, str, str] | None:
    """Speaker, text and conversation id."""
    for separator in "\t|":
        if line.count(separator) >= 2:
            speaker, rest = line.split(separator, 1)
            text, conversation = rest.rsplit(separator, 1)
            return speaker.strip(), text.strip(), conversation.strip()
    found = _BRACKETED.fullmatch(line)
    return None if found is None else (found[2].strip(), found[3].strip(), found[1].strip())


def _mapped_columns(company: Company) -> list[str]:
    columns = {} if company.columns is None else company.columns.model_dump()
    return [name for name in columns.values() if name is not None]


def _normalised(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
