"""Help Scout conversations, as returned by its Inbox API and sent by its webhooks.

The keys used are ``id``, ``number``, ``primaryCustomer`` or ``customer`` (id, email, first or firstName, last or
lastName), and for each of ``threads`` or ``_embedded.threads``: ``type``, ``state``, ``body`` or ``text`` (HTML),
``createdBy`` or ``author`` (a person with the same keys and ``type``), ``createdAt``, ``source.type``. The subject of a
conversation may be in ``tags`` (text or an object with ``tag``) or ``customFields`` (id or fieldId, name, text or value).
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
    objects_in,
    texts_in,
)

_THREAD_ROLES: Mapping[str, Role] = {"customer": "customer", "message": "agent", "reply": "agent"}
_AUTHOR_ROLES: Mapping[str, Role] = {"customer": "customer", "user": "agent", "team": "agent", "system": "automatic"}
_EVENTS = frozenset({"lineitem", "forwardparent"})
"""Types of threads that record an event. Such threads are not messages."""


def _is_conversation(element: JsonObject) -> bool:
    embedded = element.get("_embedded")
    return (
        "primaryCustomer" in element
        or isinstance(element.get("threads"), list)
        or (isinstance(embedded, dict) and "threads" in embedded)
    )


def _record_of_conversation(location: Location, conversation: JsonObject, people: dict[str, JsonObject]) -> Record:
    conversation_id = as_id(conversation.get("id"), "id") or as_id(conversation.get("number"), "number")
    if conversation_id is None:
        raise UnusableError("has no id")
    embedded = conversation.get("_embedded")
    threads = embedded.get("threads") if isinstance(embedded, dict) else None
    if threads is None:
        threads = conversation.get("threads")
    if not isinstance(threads, list):
        # If the API leaves out the threads, ``threads`` is their number.
        raise UnusableError("has no threads: export the conversations with them")
    ordered = in_time_order(as_objects(threads, "threads"), "createdAt")
    messages = [thread for thread in ordered if _type(thread) not in _EVENTS]
    public = [
        thread for thread in messages if _type(thread) != "note" and thread.get("state", "published") == "published"
    ]
    if messages and not public:
        raise UnusableError("has no public comment")
    customer = _as_person(conversation.get("primaryCustomer")) or _as_person(conversation.get("customer"))
    turns: list[Turn] = []
    known: list[tuple[str, str | None]] = []
    for thread in public:
        author = _as_person(thread.get("createdBy")) or _as_person(thread.get("author"))
        role = _role(thread, author)
        turns.append(Turn(role, plain_text(as_text(thread.get("body") or thread.get("text"), "thread"))))
        if role == "customer":
            customer = customer or author
            known.extend(_known_values(author))
        else:
            known.append((AGENT_NAME, _name(author)))
    email = as_text(customer.get("email"), "customer's e-mail").strip() or None
    subject = email or as_id(customer.get("id"), "customer's id")
    ids = (distinctive_id(as_id(conversation.get(key), key)) for key in ("id", "number"))
    known = [*_known_values(customer), *((TICKET, id) for id in ids), *known]
    return make_record(location, conversation_id, turns, subject, known, left_out=len(messages) - len(public))


def _role(thread: JsonObject, author: JsonObject) -> Role:
    source = thread.get("source")
    if isinstance(source, dict) and source.get("type") in ("workflows", "notification"):
        return "automatic"
    role = _AUTHOR_ROLES.get(_type(author)) or _THREAD_ROLES.get(_type(thread))
    if role is None:
        raise UnusableError("has a thread without author")
    return role


def _type(element: JsonObject) -> str:
    return as_text(element.get("type"), "type")


def _known_values(customer: JsonObject) -> list[tuple[str, str | None]]:
    email, phone = as_text(customer.get("email"), "customer's e-mail"), as_id(customer.get("phone"), "customer's phone")
    return known_of_customer(_name(customer), email, phone, as_id(customer.get("id"), "customer's id"))


def _name(person: JsonObject) -> str:
    parts = [person.get("first") or person.get("firstName"), person.get("last") or person.get("lastName")]
    return " ".join(as_text(part, "person's name") for part in parts if part)


def _as_person(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _fields(conversation: JsonObject) -> dict[str, object]:
    """The values of the custom fields by id and by name. In a drop-down field, ``text`` is the option, ``value`` its id."""
    return {
        str(field[key]): field.get("text") or field.get("value")
        for field in objects_in(conversation.get("customFields"))
        for key in ("id", "fieldId", "name")
        if key in field
    }


KIND = ExportKind(
    name="Help Scout conversations",
    list_key="conversations",
    is_record=_is_conversation,
    to_record=_record_of_conversation,
    tags=lambda conversation: texts_in(conversation.get("tags"), "tag"),
    fields=_fields,
)
