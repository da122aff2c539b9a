"""From the pieces of a file to records."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cs_pipeline.company import Company
from cs_pipeline.ingest.exports.helpscout import is_conversation, record_of_conversation
from cs_pipeline.ingest.exports.layouts import Format, Layout, Piece, csv_header, pieces, users
from cs_pipeline.ingest.exports.parquet import read_parquet
from cs_pipeline.ingest.exports.records import Bad, Record, UnusableError, Where
from cs_pipeline.ingest.exports.source import ExportBytes
from cs_pipeline.ingest.exports.tables import UNKNOWN_COLUMNS, columns_of, columns_of_object, record_of_row
from cs_pipeline.ingest.exports.transcript import is_head, record_of_line
from cs_pipeline.ingest.exports.zendesk import is_ticket, record_of_ticket, user_id

REDACTED_HEADER = ',;\t"\r\n '
"""What is left of a first row that was redacted: it still tells what stands between fields."""

UNKNOWN_KIND = "its name's ending is of no known kind"

Interpreter = Callable[[Where, Piece], Record | None]
"""Makes the record of a piece, None for what is none. Raises UnusableError."""


def read(format: Format | None, path: Path, company: Company) -> Iterator[Record | Bad]:
    """The records of the unpacked file at ``path``, in its order, as a stream; ``format`` None: all of it is bad.

    Blank lines, JSON's null, rows of nulls and what was redacted are no records, but have their place.
    """
    source = ExportBytes.of(path)
    if source.size == 0:
        yield Bad(0, 0, "is empty", "")
    elif format is None:
        whole = Piece(source.begin, len(source.data))
        yield from _items(source, [whole], _none_of_it)
    elif format.layout is Layout.PARQUET:
        yield from read_parquet(path, company)
    else:
        if format.layout is Layout.CSV:
            interpret = _rows(source, company)
        elif format.layout is Layout.TRANSCRIPT:
            interpret = _turns(source, company)
        else:
            interpret = _objects(source, company, users(source) if format.layout is Layout.DOCUMENT else ())
        yield from _items(source, pieces(format.layout, source), interpret)


def first_objects(format: Format, path: Path, most: int) -> Iterator[dict[str, Any]]:
    """The JSON objects among the first ``most`` pieces of a file."""
    source = ExportBytes.of(path)
    for piece in islice(pieces(format.layout, source), most):
        if (element := is_readable(source, piece)) is not None:
            yield element


def is_readable(source: ExportBytes, piece: Piece) -> dict[str, Any] | None:
    """The JSON object that a piece is, None where it is none or not sound."""
    try:
        return _object(source, piece)
    except UnusableError:
        return None


def _items(source: ExportBytes, found: Iterable[Piece], interpret: Interpreter) -> Iterator[Record | Bad]:
    for place, piece in enumerate(found):
        if piece.problem is None and source.is_blank(piece.start, piece.end):
            continue
        offset, length = source.span(piece.start, piece.end)
        try:
            if piece.problem is not None:
                raise UnusableError(piece.problem)
            record = interpret((place, offset, length), piece)
        except UnusableError as error:
            yield Bad(place, offset, str(error), source.sample(piece.start, piece.end))
        else:
            if record is not None:
                yield record


def _none_of_it(where: Where, piece: Piece) -> Record | None:
    raise UnusableError(UNKNOWN_KIND)


def _rows(source: ExportBytes, company: Company) -> Interpreter:
    header, _ = csv_header(source)
    columns = columns_of(header, company)

    def interpret(where: Where, piece: Piece) -> Record | None:
        if columns is not None and where[0] == 0:
            return None
        text = source.text(piece.start, piece.end)  # raises where it is not sound
        fields = piece.fields or []
        # Redacted rows, which have quotes where they had any so that those before them still end where they did.
        if len(fields) == 1 and not fields[0].strip():
            return None
        if columns is None:
            if where[0] == 0 and not text.strip(REDACTED_HEADER):
                return None
            raise UnusableError(UNKNOWN_COLUMNS)
        if len(fields) != len(header):
            raise UnusableError(f"has {'more' if len(fields) > len(header) else 'fewer'} fields than the header")
        return record_of_row(where, dict(zip(header, fields, strict=True)), columns, company)

    return interpret


def _turns(source: ExportBytes, company: Company) -> Interpreter:
    def interpret(where: Where, piece: Piece) -> Record | None:
        line = source.text(piece.start, piece.end)
        return None if where[0] == 0 and is_head(line) else record_of_line(where, line, company)

    return interpret


def _objects(source: ExportBytes, company: Company, known_users: Iterable[Piece]) -> Interpreter:
    people: dict[str, Mapping[str, Any]] = {}
    for piece in known_users:
        user = is_readable(source, piece)
        # Who cannot be read is nobody: his comments get their role from what the ticket says.
        if user is not None and isinstance(user.get("id"), int | str) and (key := user_id(user)) is not None:
            people[key] = user

    def interpret(where: Where, piece: Piece) -> Record | None:
        element = _object(source, piece)
        if element is None:
            return None
        if is_ticket(element):
            return record_of_ticket(where, element, people)
        if is_conversation(element):
            return record_of_conversation(where, element)
        columns = columns_of_object(element, company)
        if columns is None:
            raise UnusableError(UNKNOWN_COLUMNS)
        return record_of_row(where, element, columns, company)

    return interpret


def _object(source: ExportBytes, piece: Piece) -> dict[str, Any] | None:
    """The JSON object that a piece is; None for null. Raises UnusableError."""
    try:
        # Deep nesting is a RecursionError, a number of thousands of digits a ValueError.
        value = json.loads(source.text(piece.start, piece.end), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError):
        raise UnusableError("is not JSON") from None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UnusableError("is not a JSON object")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Programs differ in which of two values they take.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnusableError("a key stands twice in one of its objects")
    return found
