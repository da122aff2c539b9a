"""The content of a file as UTF-8: its lines and texts, and their offsets in the file."""

import codecs
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from cs_pipeline.ingest.exports.records import UnusableError

MAX_RECORD_BYTES = 4 * 2**20

TOO_LONG = "is longer than 4 MB"

EXCERPT_LENGTH = 500
"""How many characters of an unusable record are stored."""

_LINE = re.compile(rb"[^\r\n]*+(?:\r\n|\r|\n|\Z)")
_BLANK = re.compile(rb"[ \t\r\n]*+")
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class ExportBytes:
    """A file's content. UTF-8 is memory-mapped; UTF-16, recognised by its byte order mark, is converted in memory.

    ``data`` is UTF-8, except where the file is invalid. Its text starts at ``begin``, after the byte order mark if there
    is one. Spans (start, end) are positions in ``data``.
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
        # The position in data that was looked up last, and its offset in the file.
        self._last = (0, 0 if self.encoding == "utf-8" else 2)

    @classmethod
    def of(cls, path: Path) -> "ExportBytes":
        """The content of the file at ``path``."""
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            if not file.read(1):
                return cls(b"")
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def offset_and_length(self, start: int, end: int) -> tuple[int, int]:
        """The offset and length of the span in the file, in bytes. Spans in ascending order are fastest."""
        if self.encoding == "utf-8":
            return start, end - start
        position, offset = self._last if self._last[0] <= start else (0, 2)
        offset += len(self.raw(position, start))
        self._last = (start, offset)
        # An incomplete character at the end of the file belongs to its last record.
        return offset, self.size - offset if end == len(self.data) else len(self.raw(start, end))

    def raw(self, start: int, end: int) -> bytes:
        """The bytes of the span in the file's own encoding."""
        if self.encoding == "utf-8":
            return bytes(self.data[start:end])
        return self.data[start:end].decode("utf-8", "surrogatepass").encode(self.encoding, "surrogatepass")

    def text(self, start: int, end: int) -> str:
        """The span's text. Raises UnusableError if it is too long, not UTF-8, or holds a NUL character."""
        if end - start > MAX_RECORD_BYTES:
            raise UnusableError(TOO_LONG)
        try:
            text = self.data[start:end].decode()
        except UnicodeDecodeError:
            raise UnusableError("is not UTF-8") from None
        if "\0" in text:
            raise UnusableError("holds a NUL character")
        return text

    def excerpt(self, start: int, end: int) -> str:
        """The first characters of the span, with invalid bytes replaced."""
        return self.data[start : min(end, start + 4 * EXCERPT_LENGTH)].decode(errors="replace")[:EXCERPT_LENGTH]

    def lines(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The spans of the lines between the two positions, including line breaks (CR, LF or both)."""
        for match in _LINE.finditer(self.data, start, end):
            if match.end() > match.start():
                yield match.span()

    def is_blank(self, start: int, end: int) -> bool:
        return self.skip_blanks(start, end) == end

    def skip_blanks(self, start: int, end: int) -> int:
        match = _BLANK.match(self.data, start, end)
        return match.end() if match else start

    def trimmed(self, start: int, end: int) -> tuple[int, int]:
        """The span without surrounding blanks."""
        start = self.skip_blanks(start, end)
        while end > start:
            tail = self.data[max(start, end - EXCERPT_LENGTH) : end]
            length = len(tail.rstrip(b" \t\r\n"))
            end -= len(tail) - length
            if length:
                break
        return start, end


def _as_utf8(data: bytes | mmap.mmap, encoding: str) -> bytearray:
    # A lone surrogate becomes bytes that are not valid UTF-8. Its record is later reported as not UTF-8.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    text = bytearray()
    for start in range(2, len(data), 2**20):
        text += decoder.decode(data[start : start + 2**20]).encode("utf-8", "surrogatepass")
    # An incomplete character at the end becomes invalid too. A single space byte is dropped: redaction writes it as filler.
    if decoder.getstate()[0] not in (b"", b" "):
        text += "\ud800".encode("utf-8", "surrogatepass")
    return text
