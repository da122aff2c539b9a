"""Conversations of Help Scout, as its Inbox API and its webhooks give them.

Read are ``id``, ``number``, ``primaryCustomer`` or ``customer`` (id, email, first or firstName, last or lastName), and of
each of ``threads`` or ``_embedded.threads``: ``type``, ``state``, ``body`` or ``text`` (HTML), ``createdBy`` or ``author``
(the same with type customer or user), ``createdAt``, ``source.type``.
https://developer.helpscout.com/mailbox-api/endpoints/conversations/threads/list/
"""

from collections.abc import Mapping
from typing import Any

from cs_pipeline.ingest.exports.markup import plain_text
from cs_pipeline.ingest.exports.records import (
    AGENT_NAME,
    CUSTOMER_EMAIL,
    CUSTOMER_ID,
    CUSTOMER_NAME,
    CUSTOMER_PHONE,
    TICKET,
    Record,
    Role,
    Turn,
    UnusableError,
    Where,
    as_id,
    as_text,
    in_time_order,
    known_id,
    make_record,
    objects,
)

_BY_TYPE: Mapping[str, Role] = {"customer": "customer", "message": "agent", "reply": "agent"}
_BY_AUTHOR: Mapping[str, Role] = {"customer": "customer", "user": "agent", "team": "agent", "system": "automatic"}
_NO_MESSAGES = frozenset({"lineitem", "forwardparent"})
"""What happened to the conversation, not what was said in it."""


def is_conversation(element: Mapping[str, object]) -> bool:
    """Whether it is a conversation of Help Scout, by the keys that only they have."""
    embedded = element.get("_embedded")
    return (
        "primaryCustomer" in element
        or isinstance(element.get("threads"), list)
        or (isinstance(embedded, dict) and "threads" in embedded)
    )


def record_of_conversation(where: Where, conversation: Mapping[str, Any]) -> Record:
    """The record of a conversation. Raises UnusableError when nothing was published in it or a type is wrong."""
    number = as_id(conversation.get("id"), "id") or as_id(conversation.get("number"), "number")
    if number is None:
        raise UnusableError("has no id")
    embedded = conversation.get("_embedded")
    threads = embedded.get("threads") if isinstance(embedded, dict) else None
    if threads is None:
        threads = conversation.get("threads")
    if not isinstance(threads, list):
        # Lists of conversations without their threads hold the number of them.
        raise UnusableError("has no threads: export the conversations with them")
    in_order = in_time_order(objects(threads, "threads"), "createdAt")
    said = [thread for thread in in_order if _type(thread) not in _NO_MESSAGES]
    seen = [thread for thread in said if _type(thread) != "note" and thread.get("state", "published") == "published"]
    if said and not seen:
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
            known.extend(_known_customer(author))
        else:
            known.append((AGENT_NAME, _name(author)))
    email = as_text(customer.get("email"), "customer's e-mail").strip() or None
    subject = email or as_id(customer.get("id"), "customer's id")
    numbers = (known_id(as_id(conversation.get(key), key)) for key in ("id", "number"))
    known = [*_known_customer(customer), *((TICKET, number) for number in numbers), *known]
    return make_record(where, number, turns, subject, known, left_out=len(said) - len(seen))


def _role(thread: Mapping[str, Any], author: Mapping[str, Any]) -> Role:
    source = thread.get("source")
    if isinstance(source, dict) and source.get("type") in ("workflows", "notification"):
        return "automatic"
    role = _BY_AUTHOR.get(_type(author)) or _BY_TYPE.get(_type(thread))
    if role is None:
        raise UnusableError("has a thread without author")
    return role


def _type(element: Mapping[str, Any]) -> str:
    return as_text(element.get("type"), "type")


def _known_customer(person: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return [
        (CUSTOMER_NAME, _name(person)),
        (CUSTOMER_EMAIL, as_text(person.get("email"), "customer's e-mail")),
        (CUSTOMER_PHONE, as_id(person.get("phone"), "customer's phone")),
        (CUSTOMER_ID, known_id(as_id(person.get("id"), "customer's id"))),
    ]


def _name(person: Mapping[str, Any]) -> str:
    parts = [person.get("first") or person.get("firstName"), person.get("last") or person.get("lastName")]
    return " ".join(as_text(part, "person's name") for part in parts if part)


def _person(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
