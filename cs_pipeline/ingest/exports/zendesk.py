"""Zendesk tickets: an account's JSON export (one ticket per line), or responses of the Ticketing API with the comments.

The keys used are ``id``, ``requester`` or ``requester_id``, ``submitter``, ``assignee``, ``collaborators`` (users with id,
name, email, phone and role, or only their ids), and for each of ``comments``: ``author`` or ``author_id``, ``public``,
``plain_body``, else ``body``, else ``html_body``, ``created_at``, ``via.channel``. A list ``users`` beside the tickets
describes the people. The subject of a ticket may be in ``tags``, ``type`` or ``custom_fields`` (id, value).
https://developer.zendesk.com/api-reference/ticketing/tickets/ticket_comments/
"""

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Set

from cs_pipeline.ingest.exports.markup import plain_text
from cs_pipeline.ingest.exports.records import (
    AGENT_NAME,
    CUSTOMER_EMAIL,
    CUSTOMER_NAME,
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

_AUTOMATIC_CHANNELS = frozenset({"rule", "system", "answer_bot", "answer_bot_for_web_widget", "bot"})
_SYSTEM_ID = "-1"
"""The author id of Zendesk's own messages."""


def _is_ticket(element: JsonObject) -> bool:
    return "requester_id" in element or isinstance(element.get("comments"), list)


def _record_of_ticket(location: Location, ticket: JsonObject, users: dict[str, JsonObject]) -> Record:
    """The record of a ticket. The requester is the customer. Other users have the role that the export states.

    A user without a stated role is a customer if the ticket names them in CC, else an agent.
    """
    ticket_id = as_id(ticket.get("id"), "id")
    if ticket_id is None:
        raise UnusableError("has no id")
    if "comments" not in ticket:
        raise UnusableError("has no comments: export the tickets with them")
    people = ChainMap({}, users)
    for key in ("requester", "submitter", "assignee"):
        _add_person(people, ticket.get(key))
    collaborators = as_objects(ticket.get("collaborators"), "collaborators")
    for person in collaborators:
        _add_person(people, person)
    comments = in_time_order(as_objects(ticket["comments"], "comments"), "created_at")
    for comment in comments:
        _add_person(people, comment.get("author"))
    requester = _id_of(ticket, "requester")
    cc_ids = {as_id(person.get("id"), "user's id") for person in collaborators}
    cc_ids |= _ids(ticket, "collaborator_ids", "email_cc_ids")
    turns: list[Turn] = []
    authors: dict[str, Role] = {}
    for comment in comments:
        if comment.get("public") is not False:
            author = _id_of(comment, "author")
            role = _role(comment, author, requester, cc_ids, people)
            turns.append(Turn(role, _text(comment)))
            if author is not None:
                authors[author] = role
    if not turns and comments:
        raise UnusableError("has no public comment")
    customer = people.get(requester or "", {})
    email = as_text(customer.get("email"), "requester's e-mail").strip() or None
    name, phone = as_text(customer.get("name"), "requester's name"), as_id(customer.get("phone"), "requester's phone")
    known = [*known_of_customer(name, email, phone, requester), (TICKET, distinctive_id(ticket_id))]
    for author, role in authors.items():
        user = people.get(author, {})
        known.append((CUSTOMER_NAME if role == "customer" else AGENT_NAME, as_text(user.get("name"), "author's name")))
        if role == "customer":
            known.append((CUSTOMER_EMAIL, as_text(user.get("email"), "author's e-mail")))
    return make_record(location, ticket_id, turns, email or requester, known, left_out=len(comments) - len(turns))


def _role(
    comment: JsonObject,
    author: str | None,
    requester: str | None,
    cc_ids: Set[str | None],
    people: Mapping[str, JsonObject],
) -> Role:
    via = comment.get("via")
    channel = as_text(via.get("channel") if isinstance(via, dict) else via, "channel")
    if author == _SYSTEM_ID or channel in _AUTOMATIC_CHANNELS:
        return "automatic"
    if author is None:
        raise UnusableError("has a comment without author")
    if author == requester:
        return "customer"
    zendesk_role = people.get(author, {}).get("role")
    if zendesk_role in ("end-user", "agent", "admin"):
        return "customer" if zendesk_role == "end-user" else "agent"
    return "customer" if author in cc_ids else "agent"


def _text(comment: JsonObject) -> str:
    # Zendesk writes no-break spaces as HTML entities even in plain bodies.
    body = as_text(comment.get("plain_body"), "comment") or as_text(comment.get("body"), "comment")
    return body.replace("&nbsp;", " ") or plain_text(as_text(comment.get("html_body"), "comment"))


def _add_person(people: MutableMapping[str, JsonObject], person: object) -> None:
    if isinstance(person, dict) and (key := as_id(person.get("id"), "user's id")) is not None:
        people[key] = {**people.get(key, {}), **{name: value for name, value in person.items() if value is not None}}


def _id_of(element: JsonObject, role: str) -> str | None:
    """The id of the user in that role. Exports contain either the whole user or only the id."""
    person = element.get(role)
    found = person.get("id") if isinstance(person, dict) else None
    return as_id(found if found is not None else element.get(f"{role}_id"), f"{role}'s id")


def _ids(ticket: JsonObject, *keys: str) -> set[str | None]:
    lists = [ticket.get(key) for key in keys]
    return {as_id(item, "collaborator's id") for found in lists if isinstance(found, list) for item in found}


def _fields(ticket: JsonObject) -> dict[str, object]:
    """The values of the custom fields by id, and the ticket's type. In a drop-down field, the value is the option's tag."""
    values = {str(field.get("id")): field.get("value") for field in objects_in(ticket.get("custom_fields"))}
    return values | {"type": ticket.get("type")}


KIND = ExportKind(
    name="Zendesk tickets",
    list_key="tickets",
    is_record=_is_ticket,
    to_record=_record_of_ticket,
    people_key="users",
    customer_id=lambda ticket: _id_of(ticket, "requester"),
    tags=lambda ticket: texts_in(ticket.get("tags")),
    fields=_fields,
)
