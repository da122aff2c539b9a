"""Tests of exports, and helpers that read a file."""

from pathlib import Path

from cs_pipeline.company import Company
from cs_pipeline.ingest.exports import BadRecord, Record, format_of, read


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read_all(path: Path, company: Company | None = None) -> list[Record | BadRecord]:
    return list(read(format_of(path.name, path), path, company or Company()))


def records(path: Path, company: Company | None = None) -> list[Record]:
    return [item for item in read_all(path, company) if isinstance(item, Record)]


def bad_records(path: Path, company: Company | None = None) -> list[BadRecord]:
    return [item for item in read_all(path, company) if isinstance(item, BadRecord)]
