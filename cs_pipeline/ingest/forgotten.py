"""Which records of a delivery are of a customer or a conversation that is to be forgotten."""

from collections.abc import Iterator, Set

from cs_pipeline.company import Company
from cs_pipeline.ingest.exports import Record, format_of, read
from cs_pipeline.ingest.exports.records import CUSTOMER_EMAIL, CUSTOMER_ID
from cs_pipeline.ingest.landing import kept_copy
from cs_pipeline.ingest.ledger import Delivery, Ledger
from cs_pipeline.lake import DataLake


def places_of(
    lake: DataLake,
    company: Company,
    ledger: Ledger,
    delivery: Delivery,
    subjects: Set[str],
    conversations: Set[str],
    spelt: str = "",
) -> set[int]:
    """The places of the records of ``delivery`` that belong to a conversation of ``subjects`` or to ``conversations``.

    Both are hashes of the ledger. A whole conversation goes with its customer: the agent's turns speak of nobody else.
    ``spelt`` is the customer's id as it stands in a file: records that could not be read are told by it.
    """
    path = kept_copy(lake, delivery.sha256)
    format = format_of(delivery.name, path)
    theirs = set()
    for item in read(format, path, company):
        if isinstance(item, Record) and item.conversation_id not in theirs:
            hashed = {ledger.subject(name) for name in names(item)} if subjects else set()
            if hashed & subjects or (conversations and ledger.row(item.conversation_id) in conversations):
                theirs.add(item.conversation_id)
    spelt = spelt.strip().casefold()
    return {
        item.place
        for item in read(format, path, company)
        if (
            item.conversation_id in theirs
            if isinstance(item, Record)
            else bool(spelt) and spelt in item.record.casefold()
        )
    }


def names(record: Record) -> Iterator[str]:
    """All that the record's customer may be called who asks to be forgotten."""
    if record.subject is not None:
        yield record.subject
    yield from (value for placeholder, value in record.known if placeholder in (CUSTOMER_EMAIL, CUSTOMER_ID))
