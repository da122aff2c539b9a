"""Records taken out of an unpacked file for good, without moving any other."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cs_pipeline.core.lake import PRIVATE, atomic_file
from cs_pipeline.ingest.exports.layouts import Format, Layout, Piece, elements, pieces, users
from cs_pipeline.ingest.exports.parquet import redact_parquet
from cs_pipeline.ingest.exports.reading import REDACTED_HEADER, is_readable
from cs_pipeline.ingest.exports.records import UnusableError
from cs_pipeline.ingest.exports.source import ExportBytes
from cs_pipeline.ingest.exports.zendesk import requester_of, user_id

_CHUNK = 2**20


def redact(format: Format | None, path: Path, places: set[int]) -> None:
    """Takes the records at ``places`` out of the unpacked file at ``path``, which is replaced as a whole (mode 0600).

    Nothing of their text is left, they read as nothing, and every other record keeps its place and offset. Users beside
    Zendesk's tickets go too when only redacted tickets are theirs. In Parquet, rows that cannot be read become null.
    """
    if format is not None and format.layout is Layout.PARQUET:
        redact_parquet(path, places)
        return
    source = ExportBytes.of(path)
    if format is None:
        gone = [Piece(source.begin, len(source.data))]
    else:
        gone = [piece for place, piece in enumerate(pieces(format.layout, source)) if place in places]
    if format is not None and format.layout is Layout.DOCUMENT:
        gone.extend(_their_users(source, places))
    with atomic_file(path, PRIVATE) as temporary, path.open("rb") as old, temporary.open("wb") as new:
        for piece in sorted(gone, key=lambda piece: piece.start):
            offset, length = source.span(piece.start, piece.end)
            _copy(old, new, offset - old.tell())
            new.write(_blanks(format, source, piece, length))
            old.seek(length, 1)
        _copy(old, new, source.size - old.tell())


def _blanks(format: Format | None, source: ExportBytes, piece: Piece, length: int) -> bytes:
    """What is written over a record of ``length`` bytes, so that all others are read as before."""
    layout = None if format is None else format.layout
    width = len(" ".encode(source.encoding))
    characters = length // width
    text = " " * characters
    if layout is Layout.CSV and piece.start == source.begin and piece.problem is None:
        # The first row tells what stands between fields.
        raw = source.raw(piece.start, piece.end)
        kept = {character.encode(source.encoding) for character in REDACTED_HEADER}
        units = (raw[start : start + width] for start in range(0, len(raw), width))
        blanks = b"".join(unit if unit in kept else " ".encode(source.encoding) for unit in units)
        return blanks[: characters * width].ljust(length)
    if layout is Layout.CSV and characters > 2 and source.data.find(b'"', piece.start, piece.end) >= 0:
        # A quote left open before this row still meets one that does not match, and so ends where it did.
        text = f'"{text[2:]}"'
    elif layout is Layout.LINES or (layout is Layout.DOCUMENT and piece.end == len(source.data)):
        # Tabs tell a redacted line, and a redacted rest of a list that was cut off, from one that is blank by itself.
        text = "\t" * characters
    elif layout is Layout.DOCUMENT and characters >= len("null"):
        text = "null".ljust(characters)
    return text.encode(source.encoding).ljust(length)


def _their_users(source: ExportBytes, places: set[int]) -> Iterator[Piece]:
    """The users who asked for redacted tickets alone."""
    theirs: dict[bool, set[str | None]] = {True: set(), False: set()}
    for place, piece in enumerate(elements(source)):
        theirs[place in places].add(_id(source, piece, requester_of))
    for piece in users(source):
        if _id(source, piece, user_id) in theirs[True] - theirs[False] - {None}:
            yield piece


def _id(source: ExportBytes, piece: Piece, id_of: Callable[[dict[str, Any]], str | None]) -> str | None:
    element = is_readable(source, piece)
    try:
        return None if element is None else id_of(element)
    except UnusableError:
        return None


def _copy(old: BinaryIO, new: BinaryIO, length: int) -> None:
    while length > 0:
        length -= new.write(old.read(min(length, _CHUNK)))
