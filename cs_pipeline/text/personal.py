"""Replaces personal data in texts with placeholders: ``jane@example.org`` becomes ``{{Customer Email}}``.

It finds

- values from the fields of the export (``known``), and the first and last name of a known full name;
- matches of the company's own patterns (``company.yaml``), which take precedence over all other rules except links;
- links with a token, an id or a query, as a whole;
- with Presidio's recognisers: e-mail and IP addresses, IBANs and card numbers (by their checksums), and phone numbers, in
  the national format of the company's regions or with + for any country;
- numbers that a word introduces ("order 4412345678", "Rechnung: 2024-0031"), all other numbers of at least nine digits, and
  codes of letters and at least six digits;
- lines of a postal address: a street with a number, a postcode with a town;
- names introduced by a greeting, a signature, a title or a phrase ("Hi Jane,", "my name is Jane Doe", "I spoke to Jane").

It does not find unknown names elsewhere in a sentence, names in lower case except after "my name is", addresses without a
number or a postcode, or values that are spelt out ("jane at example dot org"). Finding these would need a language model.

Its input must be normalised by ``clean.normalize_text``. A value with an invisible character in it would not be found.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cs_pipeline.text import personal_words as words
from cs_pipeline.text.known import KnownValues, find_known, known_placeholder
from cs_pipeline.text.personal_words import normal
from cs_pipeline.text.placeholders import Speaker


class PersonalData:
    """Replaces personal data. The constructor takes a second or two, because it loads Presidio and spaCy.

    ``phone_regions`` are the countries ("DE") whose national phone numbers are found. ``patterns`` are the company's own:
    pairs of a placeholder and the regular expression whose matches it replaces.
    """

    def __init__(self, phone_regions: Sequence[str], patterns: Sequence[tuple[str, str]]) -> None:
        with _hidden_modules("torch", "transformers"):
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
                """Does not check the public suffix list, because an address in an internal network is personal too."""

        self._email = Email()
        self._card = CreditCardRecognizer(
            patterns=[Pattern("groups of a card", words.CARD, 0.3)], replacement_pairs=words.CARD_SEPARATORS
        )
        self._iban = IbanRecognizer()
        self._ip = IpRecognizer()
        self._phone = PhoneRecognizer(supported_regions=phone_regions)
        self._patterns = [(placeholder, re.compile(expression)) for placeholder, expression in patterns]

    def replace(
        self, text: str, known: Sequence[tuple[str, str]] = (), speaker: Speaker = "customer"
    ) -> tuple[str, Counter[str]]:
        """``text`` with placeholders for its personal data, and the number of each placeholder inserted.

        ``known`` are pairs of a placeholder and the value that it replaces, from the fields of the export. ``speaker`` is
        the author of the text. It decides whether an address or number is the customer's or the support desk's.
        Placeholders in the text are not changed. A second call on the result replaces nothing.
        """
        counts: Counter[str] = Counter()
        while found := self.find(text, speaker, known):
            counts.update(placeholder for _, _, placeholder in found)
            pieces, end = [], 0
            for start, stop, placeholder in found:
                pieces += [text[end:start], "{{", placeholder, "}}"]
                end = stop
            text = "".join([*pieces, text[end:]])
        return text, counts

    def find(self, text: str, speaker: Speaker, known: Sequence[tuple[str, str]] = ()) -> list[tuple[int, int, str]]:
        """Start, end and placeholder of each span that the first pass of ``replace`` would replace, in order."""
        known = tuple(known)
        scan = _Scan(text, speaker)
        if "/" in text:
            _find_links(scan)
        for placeholder, expression in self._patterns:
            for untaken in re.finditer(r"[^\0]+", scan.rest):
                for match in list(expression.finditer(scan.rest, *untaken.span())):
                    scan.take(*match.span(), placeholder)
        if "@" in text:
            self._find_emails(scan, known)
        for start, end, placeholder in find_known(scan.rest, known):
            scan.take(start, end, placeholder)
        if words.DIGIT.search(text):
            self._find_ibans(scan)
            _find_addresses(scan)
            self._find_ips(scan)
            self._find_numbers(scan)
        _find_names(scan)
        return scan.spans()

    def _find_emails(self, scan: "_Scan", known: KnownValues) -> None:
        for at_sign in re.finditer("@", scan.rest):
            # The recogniser's time is quadratic in the length of its input.
            first = max(0, at_sign.start() - 130)
            for result in self._email.analyze(scan.rest[first : at_sign.end() + 256], []):
                start, end = first + result.start, first + result.end
                if start < at_sign.start() < end:
                    owner = _owner(scan, start, scan.text[start : at_sign.start()].lower() in words.DESK_ADDRESSES)
                    placeholder = "Customer Email" if owner == "customer" else "Customer Support Email"
                    scan.take(start, end, known_placeholder(scan.text[start:end], known) or placeholder)
                    break

    def _find_ibans(self, scan: "_Scan") -> None:
        for match in words.IBAN.finditer(scan.rest):
            candidate = match[0].upper()
            # A word after an IBAN looks like another group, so remove groups from the end.
            while len(candidate) >= 15:
                if results := self._iban.analyze(candidate, []):
                    scan.take(match.start(), match.start() + results[0].end, "IBAN")
                    break
                candidate = re.sub(r"[ -]?[A-Z0-9]+\Z", "", candidate)

    def _find_ips(self, scan: "_Scan") -> None:
        if not words.IP.search(scan.rest):
            return
        for result in sorted(self._ip.analyze(scan.rest, []), key=lambda result: result.start - result.end):
            value = scan.rest[result.start : result.end]
            if words.DIGIT.search(value) and not words.VERSION.search(
                scan.rest[max(0, result.start - 30) : result.start]
            ):
                scan.take(result.start, result.end, "IP Address")

    def _find_numbers(self, scan: "_Scan") -> None:
        if words.DIGITS[13].search(scan.rest):
            for result in self._card.analyze(scan.rest, []):
                scan.take(result.start, result.end, "Card Number")
        if not words.DIGITS[3].search(scan.rest):
            return
        without_dates = words.DATE_OR_AMOUNT.sub(lambda found: " " * len(found[0]), scan.rest)
        for match in words.INTRODUCED.finditer(without_dates):
            digits, value = _digits(match["value"]), match["value"]
            if digits >= 5 or (digits >= 3 and match["label"]) or (digits >= 4 and digits < len(value)):
                scan.take(*match.span("value"), words.NUMBER_KIND[normal(match["what"])])
        if words.DIGITS[5].search(without_dates):
            for match in words.NUMBER.finditer(without_dates):
                self._take_number(scan, *match.span())

    def _take_number(self, scan: "_Scan", start: int, end: int) -> None:
        value, digits = scan.rest[start:end], _digits(scan.rest[start:end])
        kind, distance = _number_kind(scan.rest, start, end)
        if any(map(str.isalpha, value)):
            scan.take(start, end, "Reference Number" if kind in ("", "Phone") else kind)
        elif kind not in ("", "Phone") and value[0] not in "+(":
            # A short number may be a quantity, unless it is close to its cue word, or follows "(" or "#".
            if digits >= 7 or distance <= 24 or scan.rest[start - 1 : start] in ("(", "#"):
                scan.take(start, end, kind)
        elif digits < 7:
            return
        elif digits <= 15 and (kind == "Phone" or value[0] == "+"):
            scan.take(start, end, _phone_of(scan, start))
        elif phones := self._phone.analyze(value, []):
            for result in phones:
                scan.take(start + result.start, start + result.end, _phone_of(scan, start))
        elif digits >= 9:
            scan.take(start, end, "Reference Number")


@contextmanager
def _hidden_modules(*modules: str) -> Iterator[None]:
    """Hides ``modules`` from imports. Presidio imports these if they are installed, but does not need them.

    Without these modules, loading Presidio takes a fifth of the time and memory.
    """
    absent: dict[str, Any] = {name: None for name in modules if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


class _Scan:
    """A text that is searched. ``rest`` has NUL characters in place of spans already found, so no rule finds them again."""

    def __init__(self, text: str, speaker: Speaker) -> None:
        self.text, self.speaker = text, speaker
        self.rest = words.PLACEHOLDER.sub(lambda match: "\0" * len(match[0]), text)
        self._found: list[tuple[int, int, str]] = []

    def take(self, start: int, end: int, placeholder: str) -> None:
        """Records that ``placeholder`` replaces the characters from ``start`` to ``end``, unless some were found before."""
        if start < end and "\0" not in self.rest[start:end]:
            self._found.append((start, end, placeholder))
            blank = "\0" * (end - start)
            self.rest = f"{self.rest[:start]}{blank}{self.rest[end:]}"

    def spans(self) -> list[tuple[int, int, str]]:
        """The spans found, in order; adjacent parts of an address are joined."""
        joined: list[tuple[int, int, str]] = []
        for start, end, placeholder in sorted(self._found):
            if joined and placeholder == joined[-1][2] == "Postal Address":
                before = joined[-1]
                if not self.text[before[1] : start].strip(" ,\n"):
                    joined[-1] = (before[0], end, placeholder)
                    continue
            joined.append((start, end, placeholder))
        return joined


def _find_links(scan: _Scan) -> None:
    for match in words.LINK.finditer(scan.rest):
        link = match[0].rstrip(".,;:!?)]}'\"")
        if words.TOKEN.search(link):
            scan.take(match.start(), match.start() + len(link), "Personal Link")


def _find_addresses(scan: _Scan) -> None:
    for fast_pattern, pattern in words.ADDRESSES:
        if fast_pattern.search(scan.rest):
            for match in pattern.finditer(scan.rest):
                scan.take(*match.span(), "Postal Address")


def _find_names(scan: _Scan) -> None:
    present = words.word_set(scan.rest)
    for phrases, expression, owner in words.NAMES:
        if not any(phrase <= present for phrase in phrases):
            continue
        for match in expression.finditer(scan.rest):
            lower = owner == "own" and normal(match["phrase"]) in words.OWN_NAMES
            end, count = _leading_name(match["name"], lower=lower)
            if not count:
                continue
            is_client = (owner == "own") == (scan.speaker == "customer") and owner != "other"
            if not is_client:
                placeholder = "Person Name"
            elif count > 1:
                placeholder = "Client Name"
            else:
                placeholder = "Client Last Name" if match["title"] else "Client First Name"
            scan.take(match.start("name"), match.start("name") + end, placeholder)


def _leading_name(text: str, *, lower: bool) -> tuple[int, int]:
    """The end of the name at the start of ``text``, and the name's number of words; 0 and 0 if there is no name.

    With ``lower``, the first two words may be in lower case.
    """
    end = count = 0
    for match in words.WORD.finditer(text):
        if match[0].casefold() in words.NOT_NAMES or not (match[0][0].isupper() or (lower and count < 2)):
            break
        end, count = match.end(), count + 1
    return end, count


def _owner(scan: _Scan, start: int, is_desk: bool) -> Speaker:
    """Whether the address or number at ``start`` belongs to the customer or to the support desk."""
    before = scan.rest[max(0, start - 60) : start]
    if scan.speaker == "customer":
        return "agent" if is_desk or words.DESK_IS_MEANT.search(before) else "customer"
    return "customer" if words.CUSTOMER_IS_MEANT.search(before) and not is_desk else "agent"


def _phone_of(scan: _Scan, start: int) -> str:
    owner = _owner(scan, start, is_desk=False)
    return "Customer Phone Number" if owner == "customer" else "Customer Support Phone Number"


def _number_kind(text: str, start: int, end: int) -> tuple[str, int]:
    """The kind of the number between ``start`` and ``end`` according to the nearest cue word, and that word's distance.

    A cue word usually precedes its number, so twelve characters are added to the distance of a word that follows. If there
    is no cue word, the kind is empty.
    """
    before = words.SENTENCE_END.split(text[max(0, start - 60) : start])[-1]
    after = words.SENTENCE_END.split(text[end : end + 40])[0]
    cues: list[tuple[int, str]] = []
    if precede := list(words.CUE.finditer(before)):
        cues.append((len(before) - precede[-1].end(), precede[-1][0]))
    if follows := words.CUE.search(after):
        cues.append((follows.start() + 12, follows[0]))
    # Digits without separators may belong to the sentence before: "It is about my order. 4412345678".
    if not cues and end - start >= 7 and text[start:end].isdecimal():
        cues = [(start - cue.end(), cue[0]) for cue in words.CUE.finditer(text, max(0, start - 120), start)]
    distance, word = min(cues, default=(0, ""))
    return words.NUMBER_KIND.get(normal(word), ""), distance


def _digits(text: str) -> int:
    return sum(map(str.isdecimal, text))
