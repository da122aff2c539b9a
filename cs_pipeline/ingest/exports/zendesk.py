"""Tickets of Zendesk: the account's JSON export (a ticket a line) or answers of its Ticketing API with the comments.

Read are ``id``, ``requester`` or ``requester_id``, ``submitter``, ``assignee``, ``collaborators`` (users with id, name,
email, phone and role, or their ids alone), and of each of ``comments``: ``author`` or ``author_id``, ``public``,
``plain_body``, else ``body``, else ``html_body``, ``created_at``, ``via.channel``. A list ``users`` beside the tickets
says who is who. https://developer.zendesk.com/api-reference/ticketing/tickets/ticket_comments/
"""

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Set
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

User = Mapping[str, Any]

_AUTOMATIC_CHANNELS = frozenset({"rule", "system", "answer_bot", "answer_bot_for_web_widget", "bot"})
_SYSTEM = "-1"
"""The author of what Zendesk says by itself."""


def is_ticket(element: Mapping[str, object]) -> bool:
    """Whether it is a ticket, by the keys that only tickets have."""
    return "requester_id" in element or isinstance(element.get("comments"), list)


def record_of_ticket(where: Where, ticket: Mapping[str, Any], users: dict[str, User]) -> Record:
    """The record of a ticket; ``users`` by their ids. Raises UnusableError when it has no public comment or a wrong type.

    The requester is the customer. Others are what their role says, and without one agents, but for those in copy.
    """
    number = as_id(ticket.get("id"), "id")
    if number is None:
        raise UnusableError("has no id")
    if "comments" not in ticket:
        raise UnusableError("has no comments: export the tickets with them")
    people = ChainMap({}, users)
    for key in ("requester", "submitter", "assignee"):
        _meet(people, ticket.get(key))
    copied = objects(ticket.get("collaborators"), "collaborators")
    for person in copied:
        _meet(people, person)
    comments = in_time_order(objects(ticket["comments"], "comments"), "created_at")
    for comment in comments:
        _meet(people, comment.get("author"))
    requester = _id_of(ticket, "requester")
    in_copy = {as_id(person.get("id"), "user's id") for person in copied} | _ids(
        ticket, "collaborator_ids", "email_cc_ids"
    )
    turns: list[Turn] = []
    authors: dict[str, Role] = {}
    for comment in comments:
        if comment.get("public") is not False:
            author = _id_of(comment, "author")
            role = _role(comment, author, requester, in_copy, people)
            turns.append(Turn(role, _text(comment)))
            if author is not None:
                authors[author] = role
    if not turns and comments:
        raise UnusableError("has no public comment")
    customer = people.get(requester or "", {})
    email = as_text(customer.get("email"), "requester's e-mail").strip() or None
    known: list[tuple[str, str | None]] = [
        (CUSTOMER_NAME, as_text(customer.get("name"), "requester's name")),
        (CUSTOMER_EMAIL, email),
        (CUSTOMER_PHONE, as_id(customer.get("phone"), "requester's phone")),
        (CUSTOMER_ID, known_id(requester)),
        (TICKET, known_id(number)),
    ]
    for author, role in authors.items():
        user = people.get(author, {})
        known.append((CUSTOMER_NAME if role == "customer" else AGENT_NAME, as_text(user.get("name"), "author's name")))
        if role == "customer":
            known.append((CUSTOMER_EMAIL, as_text(user.get("email"), "author's e-mail")))
    return make_record(where, number, turns, email or requester, known, left_out=len(comments) - len(turns))


def requester_of(ticket: Mapping[str, Any]) -> str | None:
    """The id of the customer."""
    return _id_of(ticket, "requester")


def user_id(user: User) -> str | None:
    """The id of an element of the list of users."""
    return as_id(user.get("id"), "user's id")


def _role(
    comment: Mapping[str, Any],
    author: str | None,
    requester: str | None,
    in_copy: Set[str | None],
    people: Mapping[str, User],
) -> Role:
    via = comment.get("via")
    channel = as_text(via.get("channel") if isinstance(via, dict) else via, "channel")
    if author == _SYSTEM or channel in _AUTOMATIC_CHANNELS:
        return "automatic"
    if author is None:
        raise UnusableError("has a comment without author")
    if author == requester:
        return "customer"
    said = people.get(author, {}).get("role")
    if said in ("end-user", "agent", "admin"):
        return "customer" if said == "end-user" else "agent"
    return "customer" if author in in_copy else "agent"


def _text(comment: Mapping[str, Any]) -> str:
    # Zendesk writes no-break spaces of its plain bodies as in HTML.
    body = as_text(comment.get("plain_body"), "comment") or as_text(comment.get("body"), "comment")
    return body.replace("&nbsp;", " ") or plain_text(as_text(comment.get("html_body"), "comment"))


def _meet(people: MutableMapping[str, User], person: object) -> None:
    if isinstance(person, dict) and (key := user_id(person)) is not None:
        people[key] = {**people.get(key, {}), **{name: value for name, value in person.items() if value is not None}}


def _id_of(element: Mapping[str, Any], role: str) -> str | None:
    """The id that an export names either alone or as the whole user."""
    person = element.get(role)
    found = person.get("id") if isinstance(person, dict) else None
    return as_id(found if found is not None else element.get(f"{role}_id"), f"{role}'s id")


def _ids(ticket: Mapping[str, Any], *keys: str) -> set[str | None]:
    lists = [ticket.get(key) for key in keys]
    return {as_id(item, "collaborator's id") for found in lists if isinstance(found, list) for item in found}
