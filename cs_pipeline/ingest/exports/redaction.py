"""Permanently removes records from an unpacked file, without moving any other record."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cs_pipeline.core.lake import PRIVATE, atomic_file
from cs_pipeline.ingest.exports.layouts import Format, Layout, Piece, people, pieces
from cs_pipeline.ingest.exports.parquet import redact_parquet
from cs_pipeline.ingest.exports.reading import KEPT_HEADER_CHARACTERS, id_in
from cs_pipeline.ingest.exports.source import ExportBytes

_CHUNK = 2**20


def redact(format: Format | None, path: Path, indices: set[int]) -> None:
    """Removes the records at ``indices`` from the unpacked file at ``path``, which is replaced atomically (mode 0600).

    Their text is overwritten, and ``read`` skips them from then on. All other records keep their index and offset. A
    person in a list beside the records is removed too if all records that have this person as customer are redacted. In
    Parquet, rows that cannot be read become null.
    """
    if format is not None and format.layout is Layout.PARQUET:
        redact_parquet(path, indices)
        return
    source = ExportBytes.of(path)
    if format is None:
        redacted = [Piece(source.begin, len(source.data))]
    else:
        redacted = [piece for index, piece in enumerate(pieces(format, source)) if index in indices]
        redacted.extend(_people_of_redacted(format, source, indices))
    with atomic_file(path, PRIVATE) as temporary, path.open("rb") as old, temporary.open("wb") as new:
        for piece in sorted(redacted, key=lambda piece: piece.start):
            offset, length = source.offset_and_length(piece.start, piece.end)
            _copy(old, new, offset - old.tell())
            new.write(_filler(format, source, piece, length))
            old.seek(length, 1)
        _copy(old, new, source.size - old.tell())


def _filler(format: Format | None, source: ExportBytes, piece: Piece, length: int) -> bytes:
    """The ``length`` bytes that overwrite a record. They do not change how the other records are read."""
    layout = None if format is None else format.layout
    width = len(" ".encode(source.encoding))
    characters = length // width
    text = " " * characters
    if layout is Layout.CSV and piece.start == source.begin and piece.problem is None:
        # Keep the delimiters of the first row, by which the delimiter is recognised.
        raw = source.raw(piece.start, piece.end)
        characters_kept = {character.encode(source.encoding) for character in KEPT_HEADER_CHARACTERS}
        units = (raw[start : start + width] for start in range(0, len(raw), width))
        filler = b"".join(unit if unit in characters_kept else " ".encode(source.encoding) for unit in units)
        return filler[: characters * width].ljust(length)
    if layout is Layout.CSV and characters > 2 and source.data.find(b'"', piece.start, piece.end) >= 0:
        # Without these quotes, an unmatched quote before this row could match one after it and join all rows between them.
        text = f'"{text[2:]}"'
    elif layout is Layout.LINES or (layout is Layout.DOCUMENT and piece.end == len(source.data)):
        # Tabs mark a redacted line, or the redacted rest of a truncated list. Spaces could be from the original file.
        text = "\t" * characters
    elif layout is Layout.DOCUMENT and characters >= len("null"):
        text = "null".ljust(characters)
    return text.encode(source.encoding).ljust(length)


def _people_of_redacted(format: Format, source: ExportBytes, indices: set[int]) -> Iterator[Piece]:
    """The people in the lists beside the records who are customers of redacted records only."""
    if format.layout is not Layout.DOCUMENT:
        return
    for kind in format.kinds:
        if kind.people_key is None:
            continue
        customers_redacted: set[str | None] = set()
        customers_kept: set[str | None] = {None}
        for index, piece in enumerate(pieces(format, source)):
            customers = customers_redacted if index in indices else customers_kept
            customers.add(id_in(source, piece, kind.customer_id))
        for piece in people(source, kind.people_key):
            if id_in(source, piece) in customers_redacted - customers_kept:
                yield piece


def _copy(old: BinaryIO, new: BinaryIO, length: int) -> None:
    while length > 0:
        length -= new.write(old.read(min(length, _CHUNK)))
