"""Personal data in texts, replaced by the catalogue's placeholders: ``jane@example.org`` becomes ``{{Customer Email}}``.

Found are

- what the export's own fields say of a person (``known``): whole, and names in parts too;
- what the company's own patterns say (``company.yaml``), which go before every rule below but that for links;
- links that carry a token, an id or a query, whole;
- e-mail and IP addresses, IBANs and cards (with their checksums), phone numbers of the company's regions and of any country
  when written with +, by the recognisers of Presidio;
- numbers that a word announces ("order 4412345678", "Rechnung: 2024-0031"), every other number of nine digits and more, and
  codes of letters and six digits and more;
- lines of a postal address: a street with its number, a postcode with its town;
- names that a greeting, a signature, a title or a phrase announces ("Hi Jane,", "my name is Jane Doe", "I spoke to Jane").

Not found are names that stand free in a sentence and are in no field, names in lower case but after "my name is", addresses
without a number or a postcode, and what is spelt out ("jane at example dot org"): that would take a model of language.

Text is expected in the form that ``clean.regular_text`` gives it: an invisible character inside a value hides it.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cs_pipeline.text import personal_words as words
from cs_pipeline.text.known import KnownValue, find_known, known_placeholder
from cs_pipeline.text.personal_words import normal
from cs_pipeline.text.placeholders import Speaker


class PersonalData:
    """Replaces personal data. Making one takes a second or two: Presidio and spaCy are loaded.

    ``phone_regions`` are the countries whose national phone numbers are found ("DE"); ``patterns`` are the company's own:
    pairs of a placeholder and the regular expression whose matches it replaces.
    """

    def __init__(self, phone_regions: Sequence[str], patterns: Sequence[tuple[str, str]]) -> None:
        with _hidden("torch", "transformers"):
            from presidio_analyzer import Pattern
            from presidio_analyzer.predefined_recognizers import (
                CreditCardRecognizer,
                EmailRecognizer,
                IbanRecognizer,
                IpRecognizer,
                PhoneRecognizer,
            )

        class Email(EmailRecognizer):
            def validate_result(self, pattern_text: str) -> None:
                """No look at the list of public suffixes: an address of an inner network is personal too."""

        self._email = Email()
        self._card = CreditCardRecognizer(
            patterns=[Pattern("groups of a card", words.CARD, 0.3)], replacement_pairs=words.CARD_JOINTS
        )
        self._iban = IbanRecognizer()
        self._ip = IpRecognizer()
        self._phone = PhoneRecognizer(supported_regions=phone_regions)
        self._patterns = [(placeholder, re.compile(expression)) for placeholder, expression in patterns]

    def replace(
        self, text: str, known: Sequence[tuple[str, str]] = (), speaker: Speaker = "customer"
    ) -> tuple[str, Counter[str]]:
        """``text`` with placeholders for its personal data, and how many of each were put in.

        ``known`` are pairs of a placeholder and the value that it stands for, from the fields of the export. ``speaker``
        says whose text it is, which tells the customer's own address or number from the support desk's. Placeholders
        that stand in the text already stay as they are. Nothing is left to replace in what is returned.
        """
        met: Counter[str] = Counter()
        while found := self.find(text, speaker, known):
            met.update(placeholder for _, _, placeholder in found)
            pieces, end = [], 0
            for start, stop, placeholder in found:
                pieces += [text[end:start], "{{", placeholder, "}}"]
                end = stop
            text = "".join([*pieces, text[end:]])
        return text, met

    def find(self, text: str, speaker: Speaker, known: Sequence[tuple[str, str]] = ()) -> list[tuple[int, int, str]]:
        """Start, end and placeholder of what ``replace`` would take out of ``text`` at first, in their order."""
        known = tuple(known)
        reading = _Reading(text, speaker)
        if "/" in text:
            _find_links(reading)
        for placeholder, expression in self._patterns:
            for gap in re.finditer(r"[^\0]+", reading.left):
                for match in list(expression.finditer(reading.left, *gap.span())):
                    reading.take(*match.span(), placeholder)
        if "@" in text:
            self._find_emails(reading, known)
        for start, end, placeholder in find_known(reading.left, known):
            reading.take(start, end, placeholder)
        if words.DIGIT.search(text):
            self._find_ibans(reading)
            _find_addresses(reading)
            self._find_ips(reading)
            self._find_numbers(reading)
        _find_names(reading)
        return reading.spans()

    def _find_emails(self, reading: "_Reading", known: KnownValue) -> None:
        for at in re.finditer("@", reading.left):
            # The recogniser's time grows with the square of what it is given.
            first = max(0, at.start() - 130)
            for result in self._email.analyze(reading.left[first : at.end() + 256], []):
                start, end = first + result.start, first + result.end
                if start < at.start() < end:
                    whose = _whose(reading, start, reading.text[start : at.start()].lower() in words.DESK_ADDRESSES)
                    placeholder = "Customer Email" if whose == "customer" else "Customer Support Email"
                    reading.take(start, end, known_placeholder(reading.text[start:end], known) or placeholder)
                    break

    def _find_ibans(self, reading: "_Reading") -> None:
        for match in words.IBAN.finditer(reading.left):
            candidate = match[0].upper()
            # Words that follow look like groups of an IBAN.
            while len(candidate) >= 15:
                if results := self._iban.analyze(candidate, []):
                    reading.take(match.start(), match.start() + results[0].end, "IBAN")
                    break
                candidate = re.sub(r"[ -]?[A-Z0-9]+\Z", "", candidate)

    def _find_ips(self, reading: "_Reading") -> None:
        if not words.IP.search(reading.left):
            return
        for result in sorted(self._ip.analyze(reading.left, []), key=lambda result: result.start - result.end):
            value = reading.left[result.start : result.end]
            if words.DIGIT.search(value) and not words.VERSION.search(
                reading.left[max(0, result.start - 30) : result.start]
            ):
                reading.take(result.start, result.end, "IP Address")

    def _find_numbers(self, reading: "_Reading") -> None:
        if words.DIGITS[13].search(reading.left):
            for result in self._card.analyze(reading.left, []):
                reading.take(result.start, result.end, "Card Number")
        if not words.DIGITS[3].search(reading.left):
            return
        plain = words.DATE_OR_AMOUNT.sub(lambda found: " " * len(found[0]), reading.left)
        for match in words.ANNOUNCED.finditer(plain):
            digits, value = _digits(match["value"]), match["value"]
            if digits >= 5 or (digits >= 3 and match["label"]) or (digits >= 4 and digits < len(value)):
                reading.take(*match.span("value"), words.MEANING[normal(match["what"])])
        if words.DIGITS[5].search(plain):
            for match in words.NUMBER.finditer(plain):
                self._take_number(reading, *match.span())

    def _take_number(self, reading: "_Reading", start: int, end: int) -> None:
        value, digits = reading.left[start:end], _digits(reading.left[start:end])
        meaning, gap = _meaning(reading.left, start, end)
        if any(map(str.isalpha, value)):
            reading.take(start, end, "Reference Number" if meaning in ("", "Phone") else meaning)
        elif meaning not in ("", "Phone") and value[0] not in "+(":
            # A short number may be an amount of something, but for one right beside the word or one set apart.
            if digits >= 7 or gap <= 24 or reading.left[start - 1 : start] in ("(", "#"):
                reading.take(start, end, meaning)
        elif digits < 7:
            return
        elif digits <= 15 and (meaning == "Phone" or value[0] == "+"):
            reading.take(start, end, _phone_of(reading, start))
        elif phones := self._phone.analyze(value, []):
            for result in phones:
                reading.take(start + result.start, start + result.end, _phone_of(reading, start))
        elif digits >= 9:
            reading.take(start, end, "Reference Number")


@contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Presidio loads these where they are installed, five times its own time and memory, and does without."""
    absent: dict[str, Any] = {name: None for name in modules if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


class _Reading:
    """A text being read. What is found becomes NUL in ``left``, so that no rule finds it, or a part of it, again."""

    def __init__(self, text: str, speaker: Speaker) -> None:
        self.text, self.speaker = text, speaker
        self.left = words.PLACEHOLDER.sub(lambda match: "\0" * len(match[0]), text)
        self._found: list[tuple[int, int, str]] = []

    def take(self, start: int, end: int, placeholder: str) -> None:
        """Notes that ``placeholder`` is to stand for the characters from ``start`` to ``end``, if they are free."""
        if start < end and "\0" not in self.left[start:end]:
            self._found.append((start, end, placeholder))
            blank = "\0" * (end - start)
            self.left = f"{self.left[:start]}{blank}{self.left[end:]}"

    def spans(self) -> list[tuple[int, int, str]]:
        """What was found, in order; the parts of one address are one."""
        joined: list[tuple[int, int, str]] = []
        for start, end, placeholder in sorted(self._found):
            if joined and placeholder == joined[-1][2] == "Postal Address":
                before = joined[-1]
                if not self.text[before[1] : start].strip(" ,\n"):
                    joined[-1] = (before[0], end, placeholder)
                    continue
            joined.append((start, end, placeholder))
        return joined


def _find_links(reading: _Reading) -> None:
    for match in words.LINK.finditer(reading.left):
        link = match[0].rstrip(".,;:!?)]}'\"")
        if words.TOKEN.search(link):
            reading.take(match.start(), match.start() + len(link), "Personal Link")


def _find_addresses(reading: _Reading) -> None:
    for rare, expression in words.ADDRESSES:
        if rare.search(reading.left):
            for match in expression.finditer(reading.left):
                reading.take(*match.span(), "Postal Address")


def _find_names(reading: _Reading) -> None:
    said = words.said(reading.left)
    for phrases, expression, whose in words.NAMES:
        if not any(phrase <= said for phrase in phrases):
            continue
        for match in expression.finditer(reading.left):
            lower = whose == "own" and normal(match["said"]) in words.OWN_NAMES
            end, count = _name(match["name"], lower=lower)
            if not count:
                continue
            is_client = (whose == "own") == (reading.speaker == "customer") and whose != "other"
            if not is_client:
                placeholder = "Person Name"
            elif count > 1:
                placeholder = "Client Name"
            else:
                placeholder = "Client Last Name" if match["title"] else "Client First Name"
            reading.take(match.start("name"), match.start("name") + end, placeholder)


def _name(text: str, *, lower: bool) -> tuple[int, int]:
    """Where the name at the start of ``text`` ends, and how many words it has: 0 and 0 where it is none."""
    end = count = 0
    for match in words.WORD.finditer(text):
        if match[0].casefold() in words.NOT_NAMES or not (match[0][0].isupper() or (lower and count < 2)):
            break
        end, count = match.end(), count + 1
    return end, count


def _whose(reading: _Reading, start: int, is_desk: bool) -> Speaker:
    """Whether the address or number at ``start`` is the customer's own or the support desk's."""
    before = reading.left[max(0, start - 60) : start]
    if reading.speaker == "customer":
        return "agent" if is_desk or words.DESK_IS_MEANT.search(before) else "customer"
    return "customer" if words.CUSTOMER_IS_MEANT.search(before) and not is_desk else "agent"


def _phone_of(reading: _Reading, start: int) -> str:
    whose = _whose(reading, start, is_desk=False)
    return "Customer Phone Number" if whose == "customer" else "Customer Support Phone Number"


def _meaning(text: str, start: int, end: int) -> tuple[str, int]:
    """What the number between ``start`` and ``end`` is, by the nearest word that says so, and how far it is.

    Words stand before their number more often than after it: one that follows counts as twelve characters farther.
    """
    before = words.SENTENCE_END.split(text[max(0, start - 60) : start])[-1]
    after = words.SENTENCE_END.split(text[end : end + 40])[0]
    near: list[tuple[int, str]] = []
    if said := list(words.CUE.finditer(before)):
        near.append((len(before) - said[-1].end(), said[-1][0]))
    if follows := words.CUE.search(after):
        near.append((follows.start() + 12, follows[0]))
    # "It is about my order. 4412345678": bare digits are what the sentence before spoke of; joints say phone.
    if not near and end - start >= 7 and text[start:end].isdecimal():
        near = [(start - cue.end(), cue[0]) for cue in words.CUE.finditer(text, max(0, start - 120), start)]
    gap, word = min(near, default=(0, ""))
    return words.MEANING.get(normal(word), ""), gap


def _digits(text: str) -> int:
    return sum(map(str.isdecimal, text))
