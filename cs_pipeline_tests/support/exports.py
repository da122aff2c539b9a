"""Exports of a help desk, generated from the project's own grammar."""

import csv
from pathlib import Path

from cs_pipeline.ingest.sample import sample_rows


def export(path: Path, rows: int, seed: int) -> Path:
    """Questions and answers with personal data in both, as a help desk exports them."""
    sample = sample_rows(2_000).sample(rows, random_state=seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "email"])
        for number, row in enumerate(sample.itertuples()):
            email = f"customer{seed}x{number}@example.net"
            question = f"{row.instruction} I wrote from {email} about case {seed}{number}."
            writer.writerow([question, row.response, email])
    return path
