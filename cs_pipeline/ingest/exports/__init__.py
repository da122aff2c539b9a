"""Reads exports of conversations record by record: tables, transcripts, and the JSON of the help desks in ``KINDS``.

A file may contain any bytes. Each of its records is read, or reported as unusable with its position and the reason.
"""

from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path, PurePath

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.ingest.exports.layouts import Format, Layout, csv_header, is_document
from cs_pipeline.ingest.exports.parquet import parquet_columns
from cs_pipeline.ingest.exports.reading import first_objects, read
from cs_pipeline.ingest.exports.records import BadRecord, ExportKind, Record, Turn
from cs_pipeline.ingest.exports.redaction import redact
from cs_pipeline.ingest.exports.source import ExportBytes
from cs_pipeline.ingest.exports.tables import columns_of, columns_of_object, unknown_columns

__all__ = ["KINDS", "BadRecord", "ExportKind", "Format", "Record", "Turn", "format_of", "read", "recognise", "redact"]

KINDS: tuple[ExportKind, ...] = tuple(
    import_module(f"{__name__}.{module}").KIND
    for module in (
        "zendesk",
        "helpscout",
    )
)
"""The help desks whose JSON is read, in the order in which they are tried. To add one, add a module and its name above."""

_RECORDS_TO_INSPECT = 1_000
"""The number of records at the start of a file that ``recognise`` looks at."""

_LAYOUT_BY_SUFFIX = {
    ".csv": Layout.CSV,
    ".tsv": Layout.CSV,
    ".jsonl": Layout.LINES,
    ".ndjson": Layout.LINES,
    ".parquet": Layout.PARQUET,
    ".txt": Layout.TRANSCRIPT,
}


def format_of(name: str, path: Path) -> Format | None:
    """The format of the unpacked file at ``path``, which was delivered as ``name``; None if its suffix is unknown.

    The format stays the same when records are redacted.
    """
    suffix = PurePath(name.lower().removesuffix(".gz")).suffix
    layout = _LAYOUT_BY_SUFFIX.get(suffix)
    if suffix == ".json":
        layout = Layout.DOCUMENT if is_document(ExportBytes.of(path), KINDS) else Layout.LINES
    return None if layout is None else Format(layout, str(layout), KINDS)


def recognise(name: str, path: Path, company: Company) -> Format | None:
    """Like ``format_of``, but ``content`` also describes the first records, for example "Zendesk tickets".

    Raises PipelineError if the file cannot be used: its columns are unknown, it contains no turns of conversations, or it is
    not readable Parquet.
    """
    format = format_of(name, path)
    if format is None or path.stat().st_size == 0:
        return format
    columns: list[str] | None
    if format.layout is Layout.TRANSCRIPT:
        if not any(isinstance(item, Record) for item in islice(read(format, path, company), _RECORDS_TO_INSPECT)):
            raise PipelineError(
                f"{name} is not a transcript: its first {_RECORDS_TO_INSPECT:,} lines hold no turn of a conversation.",
                "Write one turn per line: speaker, text and conversation id between tabs or |, or "
                "'[conversation] Speaker: text'. Other formats need their own suffix, such as .csv or .jsonl.",
            )
        return format
    if format.layout is Layout.PARQUET:
        columns = parquet_columns(path)
        if columns is None:
            raise PipelineError(f"{name} is not a valid Parquet file.", "Export it again.")
    elif format.layout is Layout.CSV:
        columns, _ = csv_header(ExportBytes.of(path))
    else:
        element = next(first_objects(format, path, _RECORDS_TO_INSPECT), None)
        if element is None:
            return format
        if (kind := format.kind_of(element)) is not None:
            return replace(format, content=kind.name)
        if columns_of_object(element, company) is None:
            raise unknown_columns(name, list(element), company)
        return format
    if columns_of(columns, company) is None:
        raise unknown_columns(name, columns, company)
    return format
