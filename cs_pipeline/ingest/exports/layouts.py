"""How a file holds its records: lines, rows of CSV, elements of JSON lists. Each is found with its span, sound or not.

Where the records begin and end depends on the bytes alone, never on company.yaml, and on no other record's content.
"""

import csv
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cs_pipeline.ingest.exports.source import LONGEST, TOO_LONG, ExportBytes

QUOTES = "its quotes do not match"
BREAKS_OFF = "the JSON breaks off here"
AFTER_THE_END = "stands after the end of the JSON"

# A string as a whole; a quote alone is one that never ends.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)
# Where a list of an export begins. Inside of a text its quotes would have backslashes before them.
_LIST = re.compile(rb'"(?:tickets|conversations)"\s*+:\s*+\[')
_USERS = re.compile(rb'"users"\s*+:\s*+\[')
_TABS = re.compile(rb"\t++[\r\n]*+")
_REDACTED_REST = re.compile(rb"[ \r\n]*+\t++[ \t\r\n]*+")


class Layout(StrEnum):
    """How a file holds its records; JSON is a document with a list of them."""

    CSV = "CSV"
    LINES = "JSON Lines"
    DOCUMENT = "JSON"
    PARQUET = "Parquet"
    TRANSCRIPT = "transcript"


@dataclass(frozen=True)
class Format:
    """How a file is read; ``content`` says what it is, for people."""

    layout: Layout
    content: str

    def __str__(self) -> str:
        return self.content


class Piece(NamedTuple):
    """A record's span, what is wrong with it, and the fields of a row of CSV."""

    start: int
    end: int
    problem: str | None = None
    fields: list[str] | None = None


def pieces(layout: Layout, source: ExportBytes) -> Iterator[Piece]:
    """The records of any layout but Parquet, in order; a record's place is its number in this sequence, from 0."""
    if layout is Layout.CSV:
        return csv_rows(source, csv_header(source)[1])
    return elements(source) if layout is Layout.DOCUMENT else lines(source)


def lines(source: ExportBytes) -> Iterator[Piece]:
    """A piece for each line, without its end; blank ones too."""
    for start, end in source.lines(source.begin, len(source.data)):
        yield Piece(start, _without_end(source, start, end))


def csv_header(source: ExportBytes) -> tuple[list[str], str]:
    """The fields of the first row, stripped, and the delimiter (comma, semicolon or tab) that gives the most."""
    best: tuple[list[str], str] = ([], ",")
    for delimiter in ",;\t":
        first = next(csv_rows(source, delimiter), None)
        if first is not None and first.fields and len(first.fields) > len(best[0]):
            best = [field.strip() for field in first.fields], delimiter
    return best


def csv_rows(source: ExportBytes, delimiter: str) -> Iterator[Piece]:
    """A piece for each row of RFC 4180, the header and blank lines too, without its end.

    Where quotes do not match, the line that the row begins on is a piece with a problem, and the next line begins another
    row. So every line is in one piece, and a quote that is never closed costs its own line.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # for the whole process; 128 KB without
    begin = source.begin
    while begin < len(source.data):
        feed = _Feed(source, begin)
        for fields in _sound_rows(feed, delimiter):
            yield Piece(feed.start, _without_end(source, feed.start, feed.end), fields=fields)
            feed.start = feed.first = feed.end
        if feed.first == feed.start:
            return
        problem = TOO_LONG if feed.first - feed.start > LONGEST else QUOTES
        yield Piece(feed.start, _without_end(source, feed.start, feed.first), problem)
        begin = feed.first


class _Feed:
    """Gives lines to csv.reader; between ``start`` and ``end`` stands what the present row took, ``first`` its line."""

    def __init__(self, source: ExportBytes, begin: int) -> None:
        self.source = source
        self.lines = source.lines(begin, len(source.data))
        self.start = self.first = self.end = begin

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        start, end = next(self.lines)
        if self.first == self.start:
            self.first = end
        if end - self.start > LONGEST:
            raise _TooLongError
        self.end = end
        return self.source.data[start:end].decode(errors="surrogateescape")


class _TooLongError(Exception):
    pass


def _sound_rows(feed: _Feed, delimiter: str) -> Iterator[list[str]]:
    """Rows up to the end of the file or the first row that is not sound."""
    try:
        yield from csv.reader(feed, delimiter=delimiter, strict=True)
    except (csv.Error, _TooLongError):
        return


def is_document(source: ExportBytes) -> bool:
    """Whether JSON is one list, or an object with a list of tickets or conversations; else it is an object a line."""
    return _first_list(source) is not None


def elements(source: ExportBytes) -> Iterator[Piece]:
    """A piece for each element of the lists of a JSON document.

    From where its structure breaks, by a cut or by brackets that are too few or too many, the rest is one piece.
    """
    after = end = len(source.data)
    if (start := _first_list(source)) is not None:
        after = yield from _array(source, start)
        if source.data[source.after_blanks(source.begin, end)] == ord("["):
            if not source.is_blank(after, end):
                yield Piece(source.after_blanks(after, end), end, AFTER_THE_END)
            return
    while (found := _LIST.search(source.data, after)) is not None:
        after = yield from _array(source, found.end())


def _first_list(source: ExportBytes) -> int | None:
    """Where the content of a document's first list of records begins; None for JSON that is an object a line."""
    start = source.after_blanks(source.begin, len(source.data))
    if source.data[start : start + 1] == b"[":
        found = start + 1
    elif source.data[start : start + 1] == b"{" and (place := _key_of_list(source, start)) is not None:
        found = place
    else:
        return None
    # Lines of tabs stand for lines that were redacted: the file is what it was before.
    redacted = any(_TABS.fullmatch(source.data, *line) for line in source.lines(source.begin, found))
    return None if redacted else found


def _key_of_list(source: ExportBytes, start: int) -> int | None:
    """Where the list begins that the object at ``start``, or an object in it, has under the key of an export."""
    depth = 0
    for token in _TOKEN.finditer(source.data, start):
        first = source.data[token.start()]
        if first in b"[{":
            depth += 1
        elif first == ord('"'):
            if depth <= 2 and (found := _LIST.match(source.data, token.start())) is not None:
                return found.end()
        elif first in b"]}":
            depth -= 1
            if not depth:
                return None
    return None


def users(source: ExportBytes) -> Iterator[Piece]:
    """A piece for each element of the list of users that a JSON document may carry beside its tickets."""
    start = source.after_blanks(source.begin, len(source.data))
    if source.data[start : start + 1] == b"{" and (found := _USERS.search(source.data, start)) is not None:
        yield from _array(source, found.end())


def _array(source: ExportBytes, start: int) -> Generator[Piece, None, int]:
    """The elements of the list whose content begins at ``start``; returns where it ends."""
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
            # Whether it is the right bracket, the element's own parser will say.
            depth -= 1
        elif first == ord("]"):
            yield Piece(*source.trimmed(start, token.start()))
            return token.end()
        else:
            break
    end = len(source.data)
    # Tabs stand for a rest that was redacted: brackets to close the list might not fit in its place.
    redacted = _REDACTED_REST.fullmatch(source.data, start) is not None
    yield Piece(source.after_blanks(start, end), end, None if redacted else BREAKS_OFF)
    return end


def _without_end(source: ExportBytes, start: int, end: int) -> int:
    while end > start and source.data[end - 1] in b"\r\n":
        end -= 1
    return end
