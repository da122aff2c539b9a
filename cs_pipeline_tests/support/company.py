"""A company's rows in a lake: how they are delivered and ingested, and where they are found."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from cs_pipeline.company import load_company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.interactions import ingest_day
from cs_pipeline.ingest.landing import scan_landing
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.prepare.company.interactions import clean_day
from cs_pipeline.retrieval.index import retrieval_folder

SETTINGS = "columns: {question: question, answer: answer, customer_email: email}\nretrain: {new_rows: 40}\n"
"""``company.yaml`` for the exports of ``export``; 40 new rows make a retraining due."""


def ingest(lake: DataLake) -> None:
    """Takes and ingests landed files, like the sensor and its job."""
    company = load_company(lake)
    scan_landing(lake, company, datetime.now(UTC))
    with Ledger(lake) as ledger:
        days = {delivery.day for delivery in ledger.deliveries() if delivery.ingested_at is None}
        for day in days:
            facts = ingest_day(lake, company, day)
            clean_day(lake, company, day)
            ledger.mark_ingested(day, [file.sha256 for file in facts], "a run")


def files_with(lake: DataLake, text: bytes) -> list[Path]:
    """The files of the lake that contain ``text``, except in the landing folder."""
    files = (path for path in lake.root.rglob("*") if path.is_file() and "landing" not in path.parts)
    return [path for path in files if text in path.read_bytes()]


def known_rows(lake: DataLake) -> set[str]:
    """The rows in the retrieval index."""
    return set(pq.read_table(retrieval_folder(lake) / "answers.parquet").column("row_id").to_pylist())
