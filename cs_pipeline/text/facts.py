"""The facts that a text states: numbers, amounts, addresses, phones, dates, hours, durations and codes.

A fact is something that a customer could act on and that is right or wrong. By rule, these are none:

- placeholders; ``24/7``, "24 hours a day", "7 days a week", "365 days a year";
- the numbering of a list, at the beginning of a line or inside one, and what refers to it ("step 3", "steps 3-4",
  "option 2", "address line 1");
- how many steps, options, ways, questions … an answer is about to list ("in 3 easy steps");
- ratings ("5 stars", "on a scale of 1 to 10"), a key to press, lengths of what is typed ("16-digit", "8 characters",
  "the last 4 digits"), 100 %;
- names that hold one or two digits (2FA, 3D, MP3, Windows 11), Black Friday, Cyber Monday;
- numbers in words, but before a unit of time or money; "a week", "a few days", "one moment", "one day".
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple


class Fact(NamedTuple):
    """A fact in a text: its kind, where it stands, its words, and the ``values`` that somebody must have said before.

    Kinds: email, url, amount, date, time, duration, phone, code, number.
    """

    kind: str
    start: int
    end: int
    text: str
    values: frozenset[str]


def facts(text: str) -> list[Fact]:
    """The facts of ``text`` in the order they stand in."""
    if not _MAY_STATE.search(text):
        return []
    # The text keeps its length, so that places stay what they are.
    left = _NO_FACT.sub(lambda match: "\0" * len(match[0]), text)
    return list(_found(left)) if _MAY_STATE.search(left) else []


@lru_cache(maxsize=20_000)  # the questions, once for all systems
def values(text: str) -> frozenset[str]:
    """Everything in ``text`` that a fact may repeat: the values of its facts and all its numbers, in digits or words."""
    found = {value for fact in _found(text) for value in fact.values}
    found |= {_number(match[0]) for match in _NUMBER.finditer(text)}
    return frozenset(found | {_WORDS[word] for word in re.findall("[a-z]+", text.lower()) if word in _WORDS})


def is_known(fact: Fact, said: frozenset[str]) -> bool:
    """Whether all that ``fact`` states is among the ``values`` of what was said; a code may be said without its letters."""
    if fact.kind == "code":
        return any(code in said or re.sub(r"\D", "", code) in said for code in fact.values)
    return fact.values <= said


def _found(text: str) -> Iterator[Fact]:
    for match in _FACT.finditer(text):
        kind = match.lastgroup or ""
        if kind == "phone" and sum(map(str.isdecimal, match[0])) < _PHONE_DIGITS:
            kind = "number"
        start, words = match.start(), match[0].rstrip(".,;:!?)-")
        yield Fact(kind, start, start + len(words), words, _values(kind, words))


def _values(kind: str, words: str) -> frozenset[str]:
    lower = words.lower()
    if kind == "url":
        return frozenset({re.sub(r"^(?:https?://)?(?:www\.)?|/$", "", lower)})
    if kind == "email":
        return frozenset({lower})
    if kind == "phone":
        return frozenset({re.sub(r"\D", "", words)})
    if kind == "code":
        return frozenset({re.sub(r"[\W_]", "", lower)})
    names = {word[:3] for word in re.findall(r"[a-z]+", lower) if word[:3] in _CALENDAR} if kind == "date" else set()
    numbers = {_number(number) for number in _NUMBER.findall(words)}
    return frozenset(names | numbers | {_WORDS[word] for word in re.findall("[a-z]+", lower) if word in _WORDS})


def _number(text: str) -> str:
    """One spelling for equal numbers: 1,299.50 and 1299.5, 9:00 and 9, 05 and 5."""
    text = text.strip(".,:'")
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    text = text.replace(",", ".").replace(":", "h")
    text = re.sub(r"(?<=\d)(?:\.0+|h00)$|(?<=\.\d)0+$", "", text)
    return text.lstrip("0") or "0"


_PHONE_DIGITS = 7

_TO_NINETEEN = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_WORDS = {word: str(number) for number, word in enumerate(_TO_NINETEEN.split(), 1)} | {
    "twenty": "20",
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "sixty": "60",
    "ninety": "90",
    "hundred": "100",
}

_MONTHS_AND_DAYS = "jan feb mar apr may jun jul aug sep oct nov dec mon tue wed thu fri sat sun"
_CALENDAR = frozenset(_MONTHS_AND_DAYS.split())
_MONTH = "(?:january|february|march|april|may|june|july|august|september|october|november|december)"
_CERTAIN_MONTH = "(?:january|february|april|june|july|august|september|october|november|december)"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_SPELT = f"(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})"
_DIGITS = r"\d+(?:[.,]\d+)*"
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_CURRENCY = r"(?:dollars?|euros?|pounds?|cents?|rupees?|yen|francs?|usd|eur|gbp|inr|chf|cad|aud|jpy)\b"

_MAY_STATE = re.compile(
    rf"\d|@|www\.|\.[a-z]{{2,7}}\b|day\b|days\b|\b{_CERTAIN_MONTH}\b|\b{_SPELT}\b|\bnoon\b|\bmidnight\b", re.I
)

_NO_FACT = re.compile(
    r"\{\{[^{}\n]*\}\}"
    r"|\b24 ?[/x] ?7(?: ?/ ?365)?\b|\b24 hours (?:a|per|every) day\b"
    r"|\b(?:7|seven) days (?:a|per|every) week\b|\b365 days (?:a|per) year\b"
    r"|^[ \t]*(?:[-*•] *)?\**[(\[]?\d{1,2}[.)\]:](?!\d)"
    r"|(?<=[.:;!?…\"'”’*)}] )\**\(?\d{1,2}(?:\.\.\.|[.)](?=[\s*]|$))"
    r"|\b(?:steps?|options?|lines?|sections?|parts?|points?|levels?|tiers?|methods?|questions?|items?)"
    r" ?#?\d{1,2}(?:(?: ?[-–,] ?| to | and | or | through )\d{1,2})*\b"
    r"|\b\d{1,2}(?: \w+){0,2} (?:steps|options|ways|methods|things|questions|details|clicks|reasons|points|tips|taps)\b"
    r"|\b\d{1,2}(?: ?[-–] ?\d{1,2}| (?:to|or|out of) \d{1,2})?[- ]stars?\b|\bscale (?:of|from) \d+ ?(?:to|-|–) ?\d+"
    r"|\b\d{1,3} out of (?:5|10|100)\b"
    r"|\b(?:press|dial|key|enter) (?:the )?['\"‘“]?[\d#*]['\"’”]?(?!\d)"
    r"|\b\d{1,2}[- ](?:digits?|characters?|letters?)\b|\b(?:first|last) \d{1,2}\b"
    r"|\b100 ?(?:%|percent)"
    r"|\b(?!\d+(?:AM|PM|EUR|USD|GBP|GB|MB|KG|CM))(?-i:[A-Z]+\d{1,2}|\d{1,2}[A-Z]+)(?![\w-])"
    r"|\b(?:windows|android|ios|macos|office|version) \d+(?:\.\d+)*\b|\b(?:2|two|multi)-factor\b"
    r"|\bblack friday\b|\bcyber monday\b",
    re.I | re.M,
)

_SPAN = r"(?: ?[-‑–—] ?| (?:to|and|or) )"
_UNIT = r"(?:second|minute|hour|day|week|month|quarter|year)s?\b"
_KIND_OF_DAY = r"(?:business|working|calendar|consecutive)"
_TIME = r"(?:\d{1,2}(?::\d{2}){1,2}(?: ?[ap]\.?m\b\.?)?|\d{1,2} ?[ap]\.?m\b\.?)"

_FACT = re.compile(
    r"(?P<email>[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+)"
    r"|(?P<url>https?://[^\s<>\"'\0)\]]+|\bwww\.[^\s<>\"'\0)\]]+"
    r"|(?<![\w@.-])(?:[a-z\d-]{1,63}\.){1,4}(?-i:com|org|net|io|info|shop|store|app|eu|de|fr|co\.uk)\b"
    r"(?:/[^\s<>\"'\0)\]]*)?)"
    rf"|(?P<amount>[$€£¥₹] ?{_DIGITS}(?:{_SPAN}[$€£¥₹]? ?{_DIGITS})?"
    rf"|(?<![\w.,]){_DIGITS}(?:{_SPAN}{_DIGITS})? ?(?:[€£¥₹%$]|percent\b|per cent\b|{_CURRENCY})"
    rf"|\b{_SPELT}(?:[ -]{_SPELT})? (?:percent\b|per cent\b|{_CURRENCY}))"
    r"|(?P<date>(?<![\w./-])(?:\d{4}([-./])\d{1,2}\5\d{1,2}|\d{1,2}([-./])\d{1,2}\6\d{2,4})(?![\w/-]|\.\d)"
    rf"|\b{_DAY} (?:of )?{_MONTH}\b(?:,? \d{{4}})?|\b{_MONTH} {_DAY}\b(?:,? \d{{4}})?|\b{_MONTH},? \d{{4}}\b"
    rf"|\b{_CERTAIN_MONTH}\b|\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b)"
    rf"|(?P<time>(?<![\w.,:]){_TIME}(?:{_SPAN}{_TIME})?|\b(?:noon|midnight)\b)"
    rf"|(?P<duration>(?<![\w.,-])\d+(?:[.,]\d+)?(?:{_SPAN}\d+)?[ -](?:{_KIND_OF_DAY}[ -])?{_UNIT}"
    rf"|\b(?!one (?:day|minute|second)s?\b){_SPELT}(?:{_SPAN}{_SPELT})?[ -](?:{_KIND_OF_DAY}[ -])?{_UNIT})"
    r"|(?P<code>(?<![\w-])#?(?=[^\s\0]{0,40}\d)(?=[^\s\0]{0,40}[A-Za-z])(?=(?:[^\s\d\0]{0,12}\d){3})"
    r"[A-Za-z\d]+(?:[-_/][A-Za-z\d]+)*(?![\w-])|#\d+)"
    r"|(?P<phone>(?<![\w.,])(?:\+|\(\d{1,5}\)[ -]?)?\d{1,5}(?:[ .()/-]{1,2}\d{2,5}){0,5}[ .()/-]{1,2}\d{2,10}(?!\w))"
    r"|(?P<number>(?<![\w.,])\d+(?:[.,]\d+)*(?![\w]))",
    re.I,
)
