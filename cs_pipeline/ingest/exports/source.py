"""A kept copy as bytes of UTF-8 that are looked at in place: spans, lines, text, and where they are in the file."""

import codecs
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from cs_pipeline.ingest.exports.records import UnusableError

LONGEST = 4 * 2**20
"""Bytes of the longest record that is read."""

TOO_LONG = "is longer than 4 MB"

SAMPLE = 500
"""Characters of a record that are kept to look at when it cannot be used."""

_LINE = re.compile(rb"[^\r\n]*+(?:\r\n|\r|\n|\Z)")
_BLANK = re.compile(rb"[ \t\r\n]*+")
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class ExportBytes:
    """A file's content. UTF-8 is mapped, not read; UTF-16, told by its mark, is turned into UTF-8 in memory.

    ``data`` is UTF-8 as far as the file is sound, from ``begin`` on; spans (start, end) are places in it.
    """

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.size = len(data)
        self.encoding = _UTF16.get(data[:2], "utf-8")
        self.begin = 0
        self.data: bytes | bytearray | mmap.mmap = data
        if self.encoding != "utf-8":
            self.data = _as_utf8(data, self.encoding)
        elif data[:3] == codecs.BOM_UTF8:
            self.begin = 3
        # The place in data up to which bytes of the file were counted, and their number.
        self._counted = (0, 0 if self.encoding == "utf-8" else 2)

    @classmethod
    def of(cls, path: Path) -> "ExportBytes":
        """The source that a file is."""
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            if not file.read(1):
                return cls(b"")
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Offset and length of the span in the file, in bytes."""
        if self.encoding == "utf-8":
            return start, end - start
        place, offset = self._counted if self._counted[0] <= start else (0, 2)
        offset += len(self.raw(place, start))
        self._counted = (start, offset)
        # Half a character at the end of the file belongs to its last record.
        return offset, self.size - offset if end == len(self.data) else len(self.raw(start, end))

    def raw(self, start: int, end: int) -> bytes:
        """The bytes of the span as the file has them."""
        if self.encoding == "utf-8":
            return bytes(self.data[start:end])
        return self.data[start:end].decode("utf-8", "surrogatepass").encode(self.encoding, "surrogatepass")

    def text(self, start: int, end: int) -> str:
        """The span's text. Raises UnusableError where it is not sound, or too long."""
        if end - start > LONGEST:
            raise UnusableError(TOO_LONG)
        try:
            text = self.data[start:end].decode()
        except UnicodeDecodeError:
            raise UnusableError("is not UTF-8") from None
        if "\0" in text:
            raise UnusableError("holds a NUL character")
        return text

    def sample(self, start: int, end: int) -> str:
        """The first characters of the span, whatever they are."""
        return self.data[start : min(end, start + 4 * SAMPLE)].decode(errors="replace")[:SAMPLE]

    def lines(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The spans of the lines between the two places, their ends (CR, LF or both) included."""
        for match in _LINE.finditer(self.data, start, end):
            if match.end() > match.start():
                yield match.span()

    def is_blank(self, start: int, end: int) -> bool:
        return self.after_blanks(start, end) == end

    def after_blanks(self, start: int, end: int) -> int:
        match = _BLANK.match(self.data, start, end)
        return match.end() if match else start

    def trimmed(self, start: int, end: int) -> tuple[int, int]:
        """The span without blanks around it."""
        start = self.after_blanks(start, end)
        while end > start:
            left = self.data[max(start, end - SAMPLE) : end]
            kept = len(left.rstrip(b" \t\r\n"))
            end -= len(left) - kept
            if kept:
                break
        return start, end


def _as_utf8(data: bytes | mmap.mmap, encoding: str) -> bytearray:
    # Half a pair of surrogates becomes bytes that are not UTF-8, and so is found as such with its record.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    text = bytearray()
    for start in range(2, len(data), 2**20):
        text += decoder.decode(data[start : start + 2**20]).encode("utf-8", "surrogatepass")
    # So does half a character at the end; a space is what redaction leaves of one.
    if decoder.getstate()[0] not in (b"", b" "):
        text += "\ud800".encode("utf-8", "surrogatepass")
    return text
