"""Exports of conversations, read record by record: CSV, JSON Lines, Parquet, Zendesk, Help Scout, transcripts.

Whatever the bytes are, every record of a file is either read or is bad with a reason and its place, and none is both.
"""

from itertools import islice
from pathlib import Path, PurePath

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.ingest.exports.helpscout import is_conversation
from cs_pipeline.ingest.exports.layouts import Format, Layout, csv_header, is_document
from cs_pipeline.ingest.exports.parquet import parquet_columns
from cs_pipeline.ingest.exports.reading import first_objects, read
from cs_pipeline.ingest.exports.records import Bad, Record, Turn
from cs_pipeline.ingest.exports.redaction import redact
from cs_pipeline.ingest.exports.source import ExportBytes
from cs_pipeline.ingest.exports.tables import columns_of, columns_of_object, unknown_columns
from cs_pipeline.ingest.exports.zendesk import is_ticket

__all__ = ["Bad", "Format", "Record", "Turn", "format_of", "read", "recognise", "redact"]

_AT_FIRST = 1_000
"""Records that are looked at to say what a file is."""

_BY_SUFFIX = {
    ".csv": Layout.CSV,
    ".tsv": Layout.CSV,
    ".jsonl": Layout.LINES,
    ".ndjson": Layout.LINES,
    ".parquet": Layout.PARQUET,
    ".txt": Layout.TRANSCRIPT,
}


def format_of(name: str, path: Path) -> Format | None:
    """How the unpacked file at ``path``, delivered as ``name``, is read; None where the name's ending says nothing.

    It stays the same when records are redacted.
    """
    suffix = PurePath(name.lower().removesuffix(".gz")).suffix
    layout = _BY_SUFFIX.get(suffix)
    if suffix == ".json":
        layout = Layout.DOCUMENT if is_document(ExportBytes.of(path)) else Layout.LINES
    return None if layout is None else Format(layout, str(layout))


def recognise(name: str, path: Path, company: Company) -> Format | None:
    """As ``format_of``, and says what its first records are: tickets of Zendesk, conversations of Help Scout, rows.

    Raises PipelineError where they cannot be used, because nothing says which columns hold what or because they are no
    turns; the message says what to do.
    """
    format = format_of(name, path)
    if format is None or path.stat().st_size == 0:
        return format
    columns: list[str] | None
    if format.layout is Layout.TRANSCRIPT:
        if not any(isinstance(item, Record) for item in islice(read(format, path, company), _AT_FIRST)):
            raise PipelineError(
                f"{name} is no transcript: its first {_AT_FIRST:,} lines hold no turn of a conversation.",
                "Write one turn a line: speaker, text and conversation id between tabs or |, or "
                "'[conversation] Speaker: text'. Other formats are told by their endings, such as .csv and .jsonl.",
            )
        return format
    if format.layout is Layout.PARQUET:
        columns = parquet_columns(path)
        if columns is None:
            raise PipelineError(f"{name} is no sound Parquet file.", "Make this export again.")
    elif format.layout is Layout.CSV:
        columns, _ = csv_header(ExportBytes.of(path))
    else:
        element = next(first_objects(format, path, _AT_FIRST), None)
        if element is None:
            return format
        if is_ticket(element):
            return Format(format.layout, "Zendesk tickets")
        if is_conversation(element):
            return Format(format.layout, "Help Scout conversations")
        if columns_of_object(element, company) is None:
            raise unknown_columns(name, list(element), company)
        return format
    if columns_of(columns, company) is None:
        raise unknown_columns(name, columns, company)
    return format
