"""Finds the facts in a text: numbers, amounts, e-mail and web addresses, phone numbers, dates, times, durations and codes.

A fact can be right or wrong, and a customer could rely on it. The patterns are in ``facts.yaml``. These are not facts:

- placeholders; ``24/7``, "24 hours a day", "7 days a week", "365 days a year";
- the numbers of a list, at the start of a line or inside one, and references to them ("step 3", "steps 3-4", "option 2",
  "address line 1");
- numbers of things that the text lists, such as steps, options or questions ("in 3 easy steps");
- ratings ("5 stars", "on a scale of 1 to 10"), a key to press, lengths of input ("16-digit", "8 characters", "the last 4
  digits"), 100 %;
- names that contain one or two digits (2FA, 3D, MP3, Windows 11), Black Friday, Cyber Monday;
- numbers in words, except before a unit of time or money; "a week", "a few days", "one moment", "one day".
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cs_pipeline.core.yaml_file import any_of, read_yaml

_RULES = read_yaml(Path(__file__).with_suffix(".yaml"))
_NUMBER_WORDS = {word: str(number) for word, number in _RULES["number_words"].items()}
_WORDS = _RULES["words"] | {"NUMBER_WORD": "|".join(sorted(_NUMBER_WORDS, key=len, reverse=True))}
_HINT, _NOT_FACT = (any_of(_RULES[key], _WORDS) for key in ("hints", "not_facts"))
_FACT = any_of(
    "\n".join(f"(?P<{kind}><_{kind.upper()}>)" for kind in _RULES["facts"]),
    _WORDS | {f"_{kind.upper()}": block for kind, block in _RULES["facts"].items()},
)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_MONTHS_AND_DAYS = frozenset(_RULES["months_and_days"])
_MIN_PHONE_DIGITS = 7


class Fact(NamedTuple):
    """A fact in a text, with its position and its words. It is grounded if all its ``values`` are known (see ``is_known``).

    The kinds are email, url, amount, date, time, duration, phone, code and number.
    """

    kind: str
    start: int
    end: int
    text: str
    values: frozenset[str]


def facts(text: str) -> list[Fact]:
    """The facts of ``text``, in order."""
    if not _HINT.search(text):
        return []
    # Replacing by NUL characters keeps the positions of the rest.
    rest = _NOT_FACT.sub(lambda match: "\0" * len(match[0]), text)
    return list(_found(rest)) if _HINT.search(rest) else []


@lru_cache(maxsize=20_000)  # all systems answer the same questions
def values(text: str) -> frozenset[str]:
    """All values in ``text`` that a fact may repeat: the values of its own facts, and all numbers in digits or words."""
    return frozenset(value for fact in _found(text) for value in fact.values) | _numbers(text)


def is_known(fact: Fact, known: frozenset[str]) -> bool:
    """Whether all values of ``fact`` are ``known``. For a code, its digits are enough."""
    if fact.kind == "code":
        return any(code in known or re.sub(r"\D", "", code) in known for code in fact.values)
    return fact.values <= known


def _found(text: str) -> Iterator[Fact]:
    for match in _FACT.finditer(text):
        kind = match.lastgroup or ""
        if kind == "phone" and sum(map(str.isdecimal, match[0])) < _MIN_PHONE_DIGITS:
            kind = "number"
        start, words = match.start(), match[0].rstrip(".,;:!?)-")
        yield Fact(kind, start, start + len(words), words, _values(kind, words))


def _values(kind: str, words: str) -> frozenset[str]:
    lower = words.lower()
    match kind:
        case "url":
            return frozenset({re.sub(r"^(?:https?://)?(?:www\.)?|/$", "", lower)})
        case "email":
            return frozenset({lower})
        case "phone":
            return frozenset({re.sub(r"\D", "", words)})
        case "code":
            return frozenset({re.sub(r"[\W_]", "", lower)})
        case "date":
            return _numbers(words) | {word[:3] for word in re.findall("[a-z]+", lower)} & _MONTHS_AND_DAYS
    return _numbers(words)


def _numbers(text: str) -> frozenset[str]:
    in_words = {_NUMBER_WORDS[word] for word in re.findall("[a-z]+", text.lower()) if word in _NUMBER_WORDS}
    return frozenset(in_words.union(map(_normal_number, _NUMBER.findall(text))))


def _normal_number(text: str) -> str:
    """``text`` in a spelling that equal numbers share, such as 1,299.50 and 1299.5, 9:00 and 9, or 05 and 5."""
    text = text.strip(".,:'")
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    text = text.replace(",", ".").replace(":", "h")
    text = re.sub(r"(?<=\d)(?:\.0+|h00)$|(?<=\.\d)0+$", "", text)
    return text.lstrip("0") or "0"
