"""Turns the pieces of a file into records."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from cs_pipeline.company import Company
from cs_pipeline.ingest.exports.layouts import Format, Layout, Piece, csv_header, people, pieces
from cs_pipeline.ingest.exports.parquet import read_parquet
from cs_pipeline.ingest.exports.records import BadRecord, ExportKind, JsonObject, Location, Record, UnusableError, as_id
from cs_pipeline.ingest.exports.source import ExportBytes
from cs_pipeline.ingest.exports.tables import (
    UNKNOWN_COLUMNS,
    columns_of,
    columns_of_object,
    record_of_line,
    record_of_row,
)

KEPT_HEADER_CHARACTERS = ',;\t"\r\n '
"""Redaction keeps these characters of a table's first row, so that the delimiter can still be recognised."""

_Interpreter = Callable[[Location, Piece], Record | None]
"""Turns a piece into a record, or None if it contains none. Raises UnusableError."""


def read(format: Format | None, path: Path, company: Company) -> Iterator[Record | BadRecord]:
    """Streams the records of the unpacked file at ``path``, in order. If ``format`` is None, the file is one BadRecord.

    Blank lines, JSON nulls, rows of nulls and redacted records are skipped, but they count in the indices of the others.
    """
    source = ExportBytes.of(path)
    if source.size == 0:
        yield BadRecord(0, 0, "is empty", "")
    elif format is None:
        yield from _records(source, [Piece(source.begin, len(source.data))], _refuse)
    elif format.layout is Layout.PARQUET:
        yield from read_parquet(path, company)
    else:
        if format.layout is Layout.CSV:
            interpret = _row_interpreter(source, company)
        elif format.layout is Layout.TRANSCRIPT:
            interpret = _line_interpreter(source, company)
        else:
            interpret = _object_interpreter(format, source, company)
        yield from _records(source, pieces(format, source), interpret)


def first_objects(format: Format, path: Path, limit: int) -> Iterator[dict[str, Any]]:
    """The JSON objects among the first ``limit`` pieces of a file."""
    source = ExportBytes.of(path)
    for piece in islice(pieces(format, source), limit):
        if (element := valid_object(source, piece)) is not None:
            yield element


def valid_object(source: ExportBytes, piece: Piece) -> dict[str, Any] | None:
    """The JSON object of a piece; None if it is null or invalid."""
    try:
        return _object(source, piece)
    except UnusableError:
        return None


def id_in(
    source: ExportBytes,
    piece: Piece,
    id_of: Callable[[JsonObject], str | None] = lambda element: as_id(element.get("id"), "id"),
) -> str | None:
    """The id in the JSON object of a piece, or None if it has no valid id."""
    element = valid_object(source, piece)
    try:
        return None if element is None else id_of(element)
    except UnusableError:
        return None


def _records(source: ExportBytes, found: Iterable[Piece], interpret: _Interpreter) -> Iterator[Record | BadRecord]:
    for index, piece in enumerate(found):
        if piece.problem is None and source.is_blank(piece.start, piece.end):
            continue
        offset, length = source.offset_and_length(piece.start, piece.end)
        try:
            if piece.problem is not None:
                raise UnusableError(piece.problem)
            record = interpret((index, offset, length), piece)
        except UnusableError as error:
            yield BadRecord(index, offset, str(error), source.excerpt(piece.start, piece.end))
        else:
            if record is not None:
                yield record


def _refuse(location: Location, piece: Piece) -> Record | None:
    raise UnusableError("its suffix does not belong to a known format")


def _row_interpreter(source: ExportBytes, company: Company) -> _Interpreter:
    header, _ = csv_header(source)
    columns = columns_of(header, company)

    def interpret(location: Location, piece: Piece) -> Record | None:
        is_first = location[0] == 0
        if columns is not None and is_first:
            return None
        text = source.text(piece.start, piece.end)  # raises UnusableError for invalid text
        fields = piece.fields or []
        # Skip a redacted row, which may be blanks in quotes (see redaction._filler).
        if len(fields) == 1 and not fields[0].strip():
            return None
        if columns is None:
            if is_first and not text.strip(KEPT_HEADER_CHARACTERS):
                return None
            raise UnusableError(UNKNOWN_COLUMNS)
        if len(fields) != len(header):
            raise UnusableError(f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header")
        return record_of_row(location, dict(zip(header, fields, strict=True)), columns, company)

    return interpret


def _line_interpreter(source: ExportBytes, company: Company) -> _Interpreter:
    return lambda location, piece: record_of_line(location, source.text(piece.start, piece.end), company)


def _object_interpreter(format: Format, source: ExportBytes, company: Company) -> _Interpreter:
    people_of = {kind.name: _people_by_id(format, source, kind) for kind in format.kinds}

    def interpret(location: Location, piece: Piece) -> Record | None:
        element = _object(source, piece)
        if element is None:
            return None
        if (kind := format.kind_of(element)) is not None:
            record = kind.to_record(location, element, people_of[kind.name])
            return replace(record, label=kind.label_of(element, company.subjects))
        columns = columns_of_object(element, company)
        if columns is None:
            raise UnusableError(UNKNOWN_COLUMNS)
        return record_of_row(location, element, columns, company)

    return interpret


def _people_by_id(format: Format, source: ExportBytes, kind: ExportKind) -> dict[str, JsonObject]:
    found: dict[str, JsonObject] = {}
    if kind.people_key is not None and format.layout is Layout.DOCUMENT:
        for piece in people(source, kind.people_key):
            person = valid_object(source, piece)
            if person is not None and (id := id_in(source, piece)) is not None:
                found[id] = person
    return found


def _object(source: ExportBytes, piece: Piece) -> dict[str, Any] | None:
    """The JSON object of a piece; None for null. Raises UnusableError."""
    try:
        # Deep nesting raises RecursionError; a number with thousands of digits raises ValueError.
        value = json.loads(source.text(piece.start, piece.end), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        raise UnusableError("is not JSON") from None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UnusableError("is not a JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # If a key is repeated, some parsers keep its first value and others its last.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnusableError("a key is repeated in one of its objects")
    return found
