"""Finds the span of each record of a file, valid or not. A record is a line, a row of CSV, or an element of a JSON list.

The spans depend only on the file's bytes, not on company.yaml and not on the content of other records.
"""

import csv
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cs_pipeline.ingest.exports.records import ExportKind, JsonObject
from cs_pipeline.ingest.exports.source import MAX_RECORD_BYTES, TOO_LONG, ExportBytes

_UNMATCHED_QUOTES = "its quotes do not match"
_TRUNCATED = "the JSON breaks off here"
_AFTER_THE_END = "follows the end of the JSON"

# A complete string, a bracket, a comma, or the opening quote of a string that never ends.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)
_TABS = re.compile(rb"\t++[\r\n]*+")
_REDACTED_REST = re.compile(rb"[ \r\n]*+\t++[ \t\r\n]*+")


class Layout(StrEnum):
    """How a file stores its records. ``DOCUMENT`` is one JSON document with a list of records."""

    CSV = "CSV"
    LINES = "JSON Lines"
    DOCUMENT = "JSON"
    PARQUET = "Parquet"
    TRANSCRIPT = "transcript"


@dataclass(frozen=True)
class Format:
    """How to read a file. ``content`` describes it to users; ``kinds`` are the exports that JSON objects may belong to."""

    layout: Layout
    content: str
    kinds: tuple[ExportKind, ...] = ()

    def __str__(self) -> str:
        return self.content

    def kind_of(self, element: JsonObject) -> ExportKind | None:
        """The kind of export that the JSON object is a record of; None if it is a row of a table."""
        return next((kind for kind in self.kinds if kind.is_record(element)), None)


class Piece(NamedTuple):
    """The span of a record. ``problem`` says why the record is invalid; ``fields`` are the fields of a CSV row."""

    start: int
    end: int
    problem: str | None = None
    fields: list[str] | None = None


def pieces(format: Format, source: ExportBytes) -> Iterator[Piece]:
    """The records of a file that is not Parquet, in order. A record's index is its position in this sequence, from 0."""
    if format.layout is Layout.CSV:
        return csv_rows(source, csv_header(source)[1])
    return elements(source, format.kinds) if format.layout is Layout.DOCUMENT else _lines(source)


def _lines(source: ExportBytes) -> Iterator[Piece]:
    """Each line without its line break, including blank lines."""
    for start, end in source.lines(source.begin, len(source.data)):
        yield Piece(start, _without_line_break(source, start, end))


def csv_header(source: ExportBytes) -> tuple[list[str], str]:
    """The stripped fields of the first row, and the delimiter (comma, semicolon or tab) that gives the most fields."""
    best: tuple[list[str], str] = ([], ",")
    for delimiter in ",;\t":
        first = next(csv_rows(source, delimiter), None)
        if first is not None and first.fields and len(first.fields) > len(best[0]):
            best = [field.strip() for field in first.fields], delimiter
    return best


def csv_rows(source: ExportBytes, delimiter: str) -> Iterator[Piece]:
    """Each row of RFC 4180 without its line break, including the header and blank lines.

    If the quotes of a row do not match, its first line is a piece with a problem, and the next line begins another row. So
    every line is in exactly one piece, and a quote that is never closed affects only its own line.
    """
    # This limit is global to the process; the default is 128 KB.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    begin = source.begin
    while begin < len(source.data):
        feed = _LineFeeder(source, begin)
        for fields in _valid_rows(feed, delimiter):
            yield Piece(feed.start, _without_line_break(source, feed.start, feed.end), fields=fields)
            feed.start = feed.first_line_end = feed.end
        if feed.first_line_end == feed.start:
            return
        problem = TOO_LONG if feed.first_line_end - feed.start > MAX_RECORD_BYTES else _UNMATCHED_QUOTES
        yield Piece(feed.start, _without_line_break(source, feed.start, feed.first_line_end), problem)
        begin = feed.first_line_end


class _LineFeeder:
    """Feeds lines to csv.reader. The current row spans ``start`` to ``end``."""

    def __init__(self, source: ExportBytes, begin: int) -> None:
        self.source = source
        self.lines = source.lines(begin, len(source.data))
        self.start = self.first_line_end = self.end = begin

    def __iter__(self) -> "_LineFeeder":
        return self

    def __next__(self) -> str:
        start, end = next(self.lines)
        if self.first_line_end == self.start:
            self.first_line_end = end
        if end - self.start > MAX_RECORD_BYTES:
            raise _TooLongError
        self.end = end
        return self.source.data[start:end].decode(errors="surrogateescape")


class _TooLongError(Exception):
    pass


def _valid_rows(feed: _LineFeeder, delimiter: str) -> Iterator[list[str]]:
    """The rows before the first invalid row."""
    try:
        yield from csv.reader(feed, delimiter=delimiter, strict=True)
    except (csv.Error, _TooLongError):
        return


def is_document(source: ExportBytes, kinds: Sequence[ExportKind]) -> bool:
    """Whether JSON is one list, or one object with a list of records of one of ``kinds``. JSON Lines are neither."""
    return _first_list(source, _list_start(*(kind.list_key for kind in kinds))) is not None


def elements(source: ExportBytes, kinds: Sequence[ExportKind]) -> Iterator[Piece]:
    """Each element of a JSON document's lists of records.

    If the file is truncated or its brackets do not match, the rest of it is one piece.
    """
    list_start = _list_start(*(kind.list_key for kind in kinds))
    after = end = len(source.data)
    if (start := _first_list(source, list_start)) is not None:
        after = yield from _array(source, start)
        if source.data[source.skip_blanks(source.begin, end)] == ord("["):
            if not source.is_blank(after, end):
                yield Piece(source.skip_blanks(after, end), end, _AFTER_THE_END)
            return
    while (found := list_start.search(source.data, after)) is not None:
        after = yield from _array(source, found.end())


def people(source: ExportBytes, key: str) -> Iterator[Piece]:
    """Each element of the list of people under ``key``, which a JSON document may have beside its records."""
    start = source.skip_blanks(source.begin, len(source.data))
    if source.data[start : start + 1] == b"{" and (found := _list_start(key).search(source.data, start)) is not None:
        yield from _array(source, found.end())


def _list_start(*keys: str) -> re.Pattern[bytes]:
    """A pattern for the start of a list under one of ``keys``. It cannot match inside a string, where quotes are escaped."""
    return re.compile(rb'"(?:%s)"\s*+:\s*+\[' % b"|".join(re.escape(key.encode()) for key in keys))


def _first_list(source: ExportBytes, list_start: re.Pattern[bytes]) -> int | None:
    """The start of the content of a document's first list of records; None for JSON with one object per line."""
    start = source.skip_blanks(source.begin, len(source.data))
    if source.data[start : start + 1] == b"[":
        found = start + 1
    elif source.data[start : start + 1] == b"{" and (begin := _shallow_list(source, start, list_start)) is not None:
        found = begin
    else:
        return None
    # A line of tabs is a redacted line, so this file is JSON Lines and not a document.
    redacted = any(_TABS.fullmatch(source.data, *line) for line in source.lines(source.begin, found))
    return None if redacted else found


def _shallow_list(source: ExportBytes, start: int, list_start: re.Pattern[bytes]) -> int | None:
    """The start of a list of records in the object at ``start`` or in an object directly inside it."""
    depth = 0
    for token in _TOKEN.finditer(source.data, start):
        first = source.data[token.start()]
        if first in b"[{":
            depth += 1
        elif first == ord('"'):
            if depth <= 2 and (found := list_start.match(source.data, token.start())) is not None:
                return found.end()
        elif first in b"]}":
            depth -= 1
            if not depth:
                return None
    return None


def _array(source: ExportBytes, start: int) -> Generator[Piece, None, int]:
    """The elements of the list whose content begins at ``start``. Returns the end of the list."""
    depth = 0
    for token in _TOKEN.finditer(source.data, start):
        first = source.data[token.start()]
        if first == ord('"'):
            if token.end() - token.start() == 1:
                break
        elif first in b"[{":
            depth += 1
        elif first == ord(","):
            if not depth:
                yield Piece(*source.trimmed(start, token.start()))
                start = token.end()
        elif depth:
            # The element's own parser checks whether the bracket is the right one.
            depth -= 1
        elif first == ord("]"):
            yield Piece(*source.trimmed(start, token.start()))
            return token.end()
        else:
            break
    end = len(source.data)
    # If the rest is tabs, it was redacted, so the missing bracket does not mean that the file is truncated.
    redacted = _REDACTED_REST.fullmatch(source.data, start) is not None
    yield Piece(source.skip_blanks(start, end), end, None if redacted else _TRUNCATED)
    return end


def _without_line_break(source: ExportBytes, start: int, end: int) -> int:
    while end > start and source.data[end - 1] in b"\r\n":
        end -= 1
    return end
