"""What a model writes made fit for a customer, sentence by sentence while it is written."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cs_pipeline.llm.prompt import Context
from cs_pipeline.serve.desk.filling import filled, unfilled
from cs_pipeline.serve.desk.screening import Screening, is_fit, without_markup
from cs_pipeline.serve.desk.tone import Tone, address, put
from cs_pipeline.text.details import asked_for, narrowed, request, worth_asking


@dataclass(frozen=True)
class Manner:
    """How an answer is to be given.

    ``values`` fill its placeholders, by canonical name; ``said`` is every text that its personal data may be from.
    ``private``: only details that matter to the ``intent`` are asked for.
    """

    tone: Tone
    values: dict[str, str]
    said: str
    earlier: Context
    intent: str | None
    private: bool


class Composer:
    """Takes the pieces of a raw answer and gives back sentences that are final: screened, put in the tone, and filled.

    ``withheld`` becomes true at the first sentence that no customer may read; nothing is given back from there on.
    """

    def __init__(self, screening: Screening, manner: Manner) -> None:
        self.withheld = False
        self._screening = screening
        self._manner = manner
        self._sentences = SentenceSplitter()
        self._lacking: list[str] = []
        self._asked: set[str] = set()
        self._greets = not any(who == "agent" for who, _ in manner.earlier)
        self._ends_open = False
        self._left_out = False

    def feed(self, piece: str) -> Iterator[str]:
        """What ``piece`` completes."""
        for sentence in self._sentences.feed(piece):
            yield from self._final(sentence)

    def end(self, *, whole: bool) -> Iterator[str]:
        """What is left, and where the answer is ``whole`` a question for the details that it lacks."""
        yield from self._final(_BEGUN.sub("", self._sentences.rest()))
        manner = self._manner
        asked = self._asked.union(*(asked_for(said) for who, said in manner.earlier if who == "agent"))
        names = [name for name in dict.fromkeys(self._lacking) if name not in asked]
        wanted = worth_asking(names, manner.intent, private=manner.private)
        if wanted and whole and not self.withheld:
            yield f"{' ' if self._ends_open else ''}{put(request(wanted), manner.tone)}"

    def _final(self, raw: str) -> Iterator[str]:
        manner = self._manner
        if self.withheld or not raw:
            return
        sentence = self._screening.anonymous(without_markup(raw), manner.said)
        if manner.private:
            points_back = self._left_out and _POINTS_BACK.match(sentence)
            sentence = "" if points_back else narrowed(sentence, manner.intent, manner.values)
            self._left_out = not sentence
        final = without_markup(filled(put(sentence, manner.tone), manner.values))
        # As it came, too: markup may hide a control token. Whose data stands there has been looked after.
        self.withheld = not (is_fit(raw, raw) and is_fit(final, manner.said))
        if self.withheld or not final:
            return
        self._lacking += unfilled(sentence, manner.values)
        self._asked |= asked_for(sentence)
        self._ends_open = not final[-1].isspace()
        if self._greets:
            self._greets = False
            final = address(final, manner.tone, manner.values) + final
        yield final


_POINTS_BACK = re.compile(
    r"(?:this (?:will|would|information|way|helps|allows)|once (?:i|we) have|with (?:this|these|that))\b", re.I
)
"""The beginning of a sentence that makes no sense without the request before it."""

_BEGUN = re.compile(r"\{\{?[^{}]*\}?\Z")
"""A placeholder that was begun when the answer was cut off."""


MOST_CHARACTERS = 600
"""A text without an end for so long is cut at its last space: nobody waits longer, and no sentence of Bitext's is."""

_END = re.compile(r"[.!?][\"'”’)*]*\s+|\n+")
_OPEN = re.compile(r"\{\{(?:(?!\}\}).)*\Z", re.S)


class SentenceSplitter:
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
