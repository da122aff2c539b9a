"""A text that arrives in pieces, cut into sentences: what is judged, put and filled one by one while the rest is written."""

import re
from collections.abc import Iterator

MOST_CHARACTERS = 600
"""A text without an end for so long is cut at its last space: nobody waits longer, and no sentence of Bitext's is."""

_END = re.compile(r"[.!?][\"'”’)*]*\s+|\n+")
_OPEN = re.compile(r"\{\{(?:(?!\}\}).)*\Z", re.S)


class Sentences:
    """Collects pieces and gives them back as sentences, each with the white space behind it: joined, they are the text."""

    def __init__(self) -> None:
        self._left = ""

    def feed(self, piece: str) -> Iterator[str]:
        """The sentences that ``piece`` completes: their end has been seen, and no placeholder in them is open."""
        self._left += piece
        while end := self._end():
            yield self._left[:end]
            self._left = self._left[end:]

    def rest(self) -> str:
        """What is left when no more comes."""
        left, self._left = self._left, ""
        return left

    def _end(self) -> int:
        for match in _END.finditer(self._left):
            # White space may go on in the next piece, and a placeholder may hold a full stop.
            if match.end() < len(self._left) and not _OPEN.search(self._left, 0, match.end()):
                return match.end()
        if len(self._left) > MOST_CHARACTERS:
            return self._left.rfind(" ", 0, MOST_CHARACTERS) + 1 or MOST_CHARACTERS
        return 0
