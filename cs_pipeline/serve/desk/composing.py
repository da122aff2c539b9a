"""Turns a model's raw output into sentences for the customer while it is being generated."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cs_pipeline.llm.prompt import Context
from cs_pipeline.serve.desk.filling import fill_placeholders, missing_placeholders
from cs_pipeline.serve.desk.screening import Screening, is_fit_for_customers, strip_markup
from cs_pipeline.serve.desk.tone import Tone, apply_tone, salutation
from cs_pipeline.text.details import narrowed, private_details, request, worth_asking

_MAX_SENTENCE_CHARACTERS = 600
"""A longer text without a sentence end is cut at its last space, to avoid a long wait. Bitext has none this long."""


@dataclass(frozen=True)
class AnswerContext:
    """The inputs of an answer besides the model's output.

    ``values`` fill its placeholders, by canonical name. Its personal data may only come from ``known_text``. It may ask
    for the private details ``needed`` and no others; if that is None, for any.
    """

    tone: Tone
    values: dict[str, str]
    known_text: str
    earlier: Context
    needed: Collection[str] | None


class Composer:
    """Takes pieces of a raw answer and returns final sentences: screened, in the right tone, and filled.

    ``withheld`` becomes true at the first sentence that no customer may read. No sentence is returned from there on.
    """

    def __init__(self, screening: Screening, context: AnswerContext) -> None:
        self.withheld = False
        self._screening = screening
        self._context = context
        self._sentences = SentenceSplitter()
        self._missing: list[str] = []
        self._asked: set[str] = set()
        self._greets = not any(speaker == "agent" for speaker, _ in context.earlier)
        self._ends_without_space = False
        self._dropped_last = False

    def feed(self, piece: str) -> Iterator[str]:
        """The sentences that ``piece`` completes."""
        for sentence in self._sentences.feed(piece):
            yield from self._compose(sentence)

    def end(self, *, complete: bool) -> Iterator[str]:
        """The last sentence and, if the answer is ``complete``, a question for details that it lacks."""
        yield from self._compose(_CUT_PLACEHOLDER.sub("", self._sentences.rest()))
        context = self._context
        asked = self._asked.union(
            *(private_details(message) for speaker, message in context.earlier if speaker == "agent")
        )
        names = [name for name in dict.fromkeys(self._missing) if name not in asked]
        wanted = worth_asking(names, context.needed)
        if wanted and complete and not self.withheld:
            yield f"{' ' if self._ends_without_space else ''}{apply_tone(request(wanted), context.tone)}"

    def _compose(self, raw: str) -> Iterator[str]:
        context = self._context
        if self.withheld or not raw:
            return
        sentence = self._screening.mask_unknown(strip_markup(raw), context.known_text)
        if context.needed is not None:
            dangling = self._dropped_last and _REFERS_BACK.match(sentence)
            sentence = "" if dangling else narrowed(sentence, context.needed, context.values)
            self._dropped_last = not sentence
        final = strip_markup(fill_placeholders(apply_tone(sentence, context.tone), context.values))
        # The raw text is checked too, because markup can hide a control token. Its personal data was masked above.
        self.withheld = not (is_fit_for_customers(raw, raw) and is_fit_for_customers(final, context.known_text))
        if self.withheld or not final:
            return
        self._missing += missing_placeholders(sentence, context.values)
        self._asked |= private_details(sentence)
        self._ends_without_space = not final[-1].isspace()
        if self._greets:
            self._greets = False
            final = salutation(final, context.tone, context.values) + final
        yield final


class SentenceSplitter:
    """Collects pieces and returns sentences, each with the white space after it. Joined, they are the text."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, piece: str) -> Iterator[str]:
        """The sentences that ``piece`` completes: their end is certain, and no placeholder in them is open."""
        self._pending += piece
        while end := self._sentence_end():
            yield self._pending[:end]
            self._pending = self._pending[end:]

    def rest(self) -> str:
        """The text after the last complete sentence. Call it when no more pieces come."""
        rest, self._pending = self._pending, ""
        return rest

    def _sentence_end(self) -> int:
        """The length of the first sentence in the pending text, or 0 if its end is not certain yet."""
        for match in _SENTENCE_END.finditer(self._pending):
            # The white space may continue in the next piece, and a placeholder may contain a full stop.
            if match.end() < len(self._pending) and not _OPEN_PLACEHOLDER.search(self._pending, 0, match.end()):
                return match.end()
        if len(self._pending) > _MAX_SENTENCE_CHARACTERS:
            return self._pending.rfind(" ", 0, _MAX_SENTENCE_CHARACTERS) + 1 or _MAX_SENTENCE_CHARACTERS
        return 0


_SENTENCE_END = re.compile(r"[.!?][\"'”’)*]*\s+|\n+")
_OPEN_PLACEHOLDER = re.compile(r"\{\{(?:(?!\}\}).)*\Z", re.S)

_CUT_PLACEHOLDER = re.compile(r"\{\{?[^{}]*\}?\Z")
"""An incomplete placeholder at the end of an answer that was cut off."""

_REFERS_BACK = re.compile(
    r"(?:this (?:will|would|information|way|helps|allows)|once (?:i|we) have|with (?:this|these|that))\b", re.I
)
"""The beginning of a sentence that makes no sense without the dropped request before it."""
