"""Help Scout conversations, as its Inbox API and its webhooks give them.

The keys used are ``id``, ``number``, ``primaryCustomer`` or ``customer`` (id, email, first or firstName, last or
lastName), and for each of ``threads`` or ``_embedded.threads``: ``type``, ``state``, ``body`` or ``text`` (HTML),
``createdBy`` or ``author`` (the same with type customer or user), ``createdAt``, ``source.type``.
https://developer.helpscout.com/mailbox-api/endpoints/conversations/threads/list/
"""

from collections.abc import Mapping

from cs_pipeline.ingest.exports.markup import plain_text
from cs_pipeline.ingest.exports.records import (
    AGENT_NAME,
    TICKET,
    ExportKind,
    JsonObject,
    Location,
    Record,
    Role,
    Turn,
    UnusableError,
    as_id,
    as_objects,
    as_text,
    distinctive_id,
    in_time_order,
    known_of_customer,
    make_record,
)

_BY_TYPE: Mapping[str, Role] = {"customer": "customer", "message": "agent", "reply": "agent"}
_BY_AUTHOR: Mapping[str, Role] = {"customer": "customer", "user": "agent", "team": "agent", "system": "automatic"}
_EVENTS = frozenset({"lineitem", "forwardparent"})
"""Threads that record what happened to the conversation. They are not messages."""


def _is_conversation(element: JsonObject) -> bool:
    embedded = element.get("_embedded")
    return (
        "primaryCustomer" in element
        or isinstance(element.get("threads"), list)
        or (isinstance(embedded, dict) and "threads" in embedded)
    )


def _record_of_conversation(location: Location, conversation: JsonObject, people: dict[str, JsonObject]) -> Record:
    number = as_id(conversation.get("id"), "id") or as_id(conversation.get("number"), "number")
    if number is None:
        raise UnusableError("has no id")
    embedded = conversation.get("_embedded")
    threads = embedded.get("threads") if isinstance(embedded, dict) else None
    if threads is None:
        threads = conversation.get("threads")
    if not isinstance(threads, list):
        # In lists of conversations without threads, this is the number of threads.
        raise UnusableError("has no threads: export the conversations with them")
    in_order = in_time_order(as_objects(threads, "threads"), "createdAt")
    messages = [thread for thread in in_order if _type(thread) not in _EVENTS]
    seen = [
        thread for thread in messages if _type(thread) != "note" and thread.get("state", "published") == "published"
    ]
    if messages and not seen:
        raise UnusableError("has no public comment")
    customer = _person(conversation.get("primaryCustomer")) or _person(conversation.get("customer"))
    turns: list[Turn] = []
    known: list[tuple[str, str | None]] = []
    for thread in seen:
        author = _person(thread.get("createdBy")) or _person(thread.get("author"))
        role = _role(thread, author)
        turns.append(Turn(role, plain_text(as_text(thread.get("body") or thread.get("text"), "thread"))))
        if role == "customer":
            customer = customer or author
            known.extend(_known(author))
        else:
            known.append((AGENT_NAME, _name(author)))
    email = as_text(customer.get("email"), "customer's e-mail").strip() or None
    subject = email or as_id(customer.get("id"), "customer's id")
    numbers = (distinctive_id(as_id(conversation.get(key), key)) for key in ("id", "number"))
    known = [*_known(customer), *((TICKET, number) for number in numbers), *known]
    return make_record(location, number, turns, subject, known, left_out=len(messages) - len(seen))


def _role(thread: JsonObject, author: JsonObject) -> Role:
    source = thread.get("source")
    if isinstance(source, dict) and source.get("type") in ("workflows", "notification"):
        return "automatic"
    role = _BY_AUTHOR.get(_type(author)) or _BY_TYPE.get(_type(thread))
    if role is None:
        raise UnusableError("has a thread without author")
    return role


def _type(element: JsonObject) -> str:
    return as_text(element.get("type"), "type")


def _known(customer: JsonObject) -> list[tuple[str, str | None]]:
    email, phone = as_text(customer.get("email"), "customer's e-mail"), as_id(customer.get("phone"), "customer's phone")
    return known_of_customer(_name(customer), email, phone, as_id(customer.get("id"), "customer's id"))


def _name(person: JsonObject) -> str:
    parts = [person.get("first") or person.get("firstName"), person.get("last") or person.get("lastName")]
    return " ".join(as_text(part, "person's name") for part in parts if part)


def _person(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


KIND = ExportKind(
    name="Help Scout conversations",
    list_key="conversations",
    is_record=_is_conversation,
    to_record=_record_of_conversation,
)
