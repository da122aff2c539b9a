"""Helpers for the tests of subjects."""

import json
import re
from collections.abc import Iterable

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import CONVERSATION
from cs_pipeline.prepare.company.pairs import pair
from cs_pipeline.prepare.subjects.discovery import Discovered, Ticket, discover
from cs_pipeline_tests.conftest import SHARED
from cs_pipeline_tests.prepare import conversations
from cs_pipeline_tests.support.grammar import FIRST_DAY

SHOP = SHARED / "cases" / "bicycle-shop.json"

INJECTION = 50012
"""A ticket of the bicycle shop that cleaning flags."""


def land_tickets(lake: DataLake, tickets: Iterable[Ticket]) -> None:
    """Writes the days of ``clean_interactions`` with these tickets, with an intent that a classifier may have predicted."""
    days: dict[str, list[dict[str, object]]] = {}
    for number, ticket in enumerate(tickets):
        row = {
            "row_id": ticket.row_id,
            "source": "company",
            "source_file_sha256": "f" * 64,
            "source_row": number,
            "delivered_on": ticket.day,
            "subject_id": ticket.customer,
            "conversation_id": ticket.conversation,
            "instruction": ticket.question,
            "response": ticket.answer,
            "label": ticket.label,
            "intent_confidence": 0.5,
        }
        days.setdefault(str(ticket.day), []).append(row)
    for day, rows in days.items():
        lake.write("prepare", f"clean_interactions/{day}", conversations(rows), CONVERSATION)


def discover_again(tickets: list[Ticket], before: Discovered | None = None) -> Discovered:
    """``discover``, with an unused id for each new subject."""
    found = discover(tickets, before)
    new = (subject for subject in found.rows_of if " " in subject)
    return found.renamed({subject: f"s{len(tickets)}_{number}" for number, subject in enumerate(new)})


def shop_tickets() -> tuple[list[Ticket], dict[str, str]]:
    """The usable tickets of a bicycle shop, and the subject line of each conversation, which is its true subject."""
    tickets, subjects = [], {}
    for ticket in json.loads(SHOP.read_text())["tickets"]:
        if ticket["id"] == INJECTION:
            continue
        number, customer = str(ticket["id"]), ticket["requester_id"]
        subjects[number] = ticket["subject"]
        public = [comment for comment in ticket["comments"] if comment["public"]]
        turns = [("customer" if turn["author_id"] == customer else "agent", turn["body"]) for turn in public]
        for place, found in enumerate(pair(turns).pairs):
            if found.reason is None and found.answer is not None:
                texts = [re.sub(r"ORD-\d+", "{{Order Number}}", turn.text) for turn in (found.question, found.answer)]
                texts = [re.sub(r"\S+@\S+|\+49[\d ]+", "{{Client Contact}}", text) for text in texts]
                tickets.append(Ticket(f"{number}-{place}", number, str(customer), FIRST_DAY, *texts))
    return tickets, subjects
