"""Rows of CSV, JSON Lines and Parquet: which column holds what, and the record that a row is.

A row is a question and its answer, or one turn of a conversation.
"""

import re
from collections.abc import Mapping, Sequence

from cs_pipeline.company import Columns, Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest
from cs_pipeline.ingest.exports.records import (
    CUSTOMER_EMAIL,
    CUSTOMER_ID,
    CUSTOMER_NAME,
    TICKET,
    Record,
    Turn,
    UnusableError,
    Where,
    as_id,
    as_text,
    known_id,
    make_record,
    name_of,
    role_of,
    speaker_placeholder,
)

UNKNOWN_COLUMNS = "its columns are not known"

_OBVIOUS = {
    "question": ("question", "instruction", "customer_message", "prompt"),
    "answer": ("answer", "response", "agent_reply", "reply"),
    "text": ("text", "message", "body"),
    "speaker": ("speaker", "role", "author", "sender"),
    "conversation": ("conversation", "conversation_id", "ticket_id", "chat_id", "thread_id"),
    "customer_id": ("customer_id", "user_id"),
    "customer_name": ("customer_name",),
    "customer_email": ("customer_email", "email"),
}
"""Names of columns that need no mapping, lower case, with spaces and hyphens as underscores."""

_NAME = re.compile(r"[^\W\d][\w.()/-]{0,39}( [\w.()/-]+){0,2}")


def columns_of(found: Sequence[str], company: Company) -> Columns | None:
    """What the columns ``found`` hold: company.yaml's mapping where they have all of it, else by obvious names.

    None where neither says it, or names it twice.
    """
    if company.columns is not None and all(found.count(name) == 1 for name in _named(company)):
        return company.columns
    by_name = {what: [name for name in found if _plain(name) in names] for what, names in _OBVIOUS.items()}
    if any(len(names) > 1 for names in by_name.values()):
        return None
    one = {what: names[0] for what, names in by_name.items() if names}
    pair, turn = {"question", "answer"} <= one.keys(), {"text", "speaker", "conversation"} <= one.keys()
    if pair == turn:
        return None
    left_out = {"text", "speaker"} if pair else {"question", "answer"}
    return Columns.model_validate({what: name for what, name in one.items() if what not in left_out})


def columns_of_object(element: Mapping[str, object], company: Company) -> Columns | None:
    """As ``columns_of`` for a row of JSON, which may leave out what company.yaml names and the row has not."""
    columns = company.columns
    if columns is not None and (columns.question or columns.text) in element:
        return columns
    return columns_of(list(element), company)


def unknown_columns(name: str, found: Sequence[str], company: Company) -> PipelineError:
    """The error for a table whose columns nobody named.

    They are shown, but where one of them does not look like a name: then the first row may be a customer's.
    """
    if not found or not all(_NAME.fullmatch(column) for column in found):
        return PipelineError(
            f"{name}: its first row does not look like names of columns.",
            "Put the names of the columns into the first row: question and answer, or text, speaker and conversation.",
        )
    missing = [column for column in _named(company) if column not in found]
    lacks = f" and company.yaml's {', '.join(missing)} are not among them" if missing else ""
    return PipelineError(
        f"{name}: nothing says which columns hold the question and the answer; it has {', '.join(found)}{lacks}.",
        "Say it in company.yaml in the lake, either for a question and its answer a row:\n"
        "    columns:\n      question: NAME\n      answer: NAME\n"
        "  or for one turn a row:\n"
        "    columns:\n      text: NAME\n      speaker: NAME\n      conversation: NAME\n"
        "  and, where they are there, customer_id, customer_name and customer_email as well.",
    )


def record_of_row(where: Where, row: Mapping[str, object], columns: Columns, company: Company) -> Record:
    """The record of a row. Raises UnusableError when it lacks what it needs or holds it in the wrong type."""

    def value(column: str | None) -> object:
        return None if column is None else row.get(column)

    conversation = as_id(value(columns.conversation), "conversation id")
    email = as_text(value(columns.customer_email), "customer's e-mail").strip() or None
    customer = as_id(value(columns.customer_id), "customer id")
    known = [
        (CUSTOMER_NAME, as_text(value(columns.customer_name), "customer's name")),
        (CUSTOMER_EMAIL, email),
        (CUSTOMER_ID, known_id(customer)),
        (TICKET, known_id(conversation)),
    ]
    if columns.question is None:
        if conversation is None:
            raise UnusableError("has no conversation id")
        speaker = as_text(value(columns.speaker), "speaker").strip()
        if not speaker:
            raise UnusableError("has no speaker")
        role = role_of(speaker, company)
        turns = [Turn(role, as_text(value(columns.text), "text"))]
        known.append((speaker_placeholder(speaker, role), name_of(speaker, company)))
    else:
        question, answer = (as_text(value(columns.question), "question"), as_text(value(columns.answer), "answer"))
        if answer.strip() and not question.strip():
            raise UnusableError("has no question")
        turns = [Turn("customer", question), *([Turn("agent", answer)] if answer.strip() else [])]
        # By its content and its customer, not its place, so that the row is the same one in another delivery, and another
        # one than the equal row of another customer.
        conversation = conversation or digest(question, answer, email or customer)
    return make_record(where, conversation, turns, email or customer, known)


def _named(company: Company) -> list[str]:
    columns = {} if company.columns is None else company.columns.model_dump()
    return [name for name in columns.values() if name is not None]


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
