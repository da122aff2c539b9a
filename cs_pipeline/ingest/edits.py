"""What agents sent in place of a draft lands like an export: a file of tickets, each edit in one of them, exactly once."""

import json
from datetime import datetime, timedelta

from cs_pipeline.company import Company
from cs_pipeline.core.lake import PRIVATE, DataLake
from cs_pipeline.feedback import AgentEdit, Feedback
from cs_pipeline.ingest.landing import land_files
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.ingest.place import landing_place

TOGETHER = timedelta(minutes=10)
"""So long an edit waits for others: a day is read anew for each file that lands."""


def land_edits(lake: DataLake, company: Company, now: datetime) -> int:
    """Puts the edits that wait into the landing place, as one JSON Lines file of tickets; returns how many.

    Whenever it is interrupted, the next call puts the same file there again, which content and name show to be the same
    delivery. Files of earlier calls that were taken are removed, and texts of edits that were landed more than
    ``company.retention_days`` ago deleted. Raises PipelineError when the place or the store cannot be written.
    """
    place = landing_place(lake, company)
    with Feedback(lake) as feedback:
        feedback.expire_edits(now - timedelta(days=company.retention_days))
        ours = {_name(batch) for batch in feedback.landed_batches()}
        with Ledger(lake) as ledger:
            for entry in place.entries():
                if entry.name in ours and ledger.content_of(entry.name) is not None:
                    place.remove(entry.name)
        if (found := feedback.next_batch(now - TOGETHER)) is None:
            return 0
        batch, edits = found
        path = lake.path("serve", _name(batch))
        path.touch(PRIVATE)
        path.write_text("".join(f"{json.dumps(_ticket(edit))}\n" for edit in edits))
        land_files([path], lake, company)
        path.unlink()
        feedback.mark_landed(batch, now)
    return len(edits)


def _name(batch: int) -> str:
    return f"agent_edits_{batch:06}.jsonl"


def _ticket(edit: AgentEdit) -> dict[str, object]:
    """The edit in Zendesk's layout, which says who speaks whatever company.yaml calls its columns and agents."""
    # One requester for all whom nobody named would be a customer who floods the desk.
    requester = {"id": edit.customer or f"customer of {edit.id}", "role": "end-user"}
    requester |= {"email": edit.customer} if "@" in edit.customer else {}
    agent = {"id": "agent", "role": "agent"}
    comments = [{"author": who, "plain_body": text} for who, text in ((requester, edit.ticket), (agent, edit.sent))]
    return {"id": edit.id, "requester": requester, "comments": comments}
