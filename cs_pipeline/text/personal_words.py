"""The words and patterns of ``personal.py``, compiled from ``personal.yaml``.

No pattern matches the NUL characters that replace spans found earlier. All patterns take linear time.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml


def normal(words: str) -> str:
    """``words`` with the spelling of personal.yaml: lower case, single spaces, straight apostrophes."""
    return " ".join(words.lower().replace("’", "'").split())


def word_set(text: str) -> frozenset[str]:
    """The distinct words of ``text`` in lower case."""
    return frozenset(text.lower().translate(_PUNCTUATION).split())


def _any(words: Iterable[str]) -> str:
    """A pattern that matches any of ``words``, longest first."""
    ordered = sorted(words, key=lambda word: (-len(word), word))
    return "|".join(re.escape(word).replace(r"\ ", r"[ \t]+").replace("'", "['’]") for word in ordered)


_PUNCTUATION = str.maketrans({"’": "'"} | dict.fromkeys(",.:;!?()–\n", " "))
_RULES = read_yaml(Path(__file__).with_name("personal.yaml"))

NUMBER_KIND: dict[str, str] = {word: kind for kind, words in _RULES["numbers"].items() for word in words}
"""For each word that introduces a number, the kind of the number: a placeholder, or "Phone"."""
DESK_ADDRESSES = frozenset(_RULES["desk_addresses"])
OWN_NAMES = frozenset(_RULES["own_names"])
NOT_NAMES = frozenset(word.lower() for key in ("not_names", "closings", "greetings", "titles") for word in _RULES[key])
NAME_WORDS = frozenset(_RULES["name_words"])

# Braces that contain a digit or an @ may not be a placeholder.
PLACEHOLDER = re.compile(r"\{\{[^{}\n@\d]*\}\}")
WORD = re.compile(r"[^\W\d_]{1,30}(?:['’-][^\W\d_]{1,30}){0,3}")
CUE = re.compile(rf"(?<!\w)(?:{_any(NUMBER_KIND)})(?!\w)", re.IGNORECASE)
DIGIT = re.compile(r"\d")
DIGITS = {count: re.compile(rf"\d(?:[^\d\0]{{0,3}}\d){{{count - 1}}}") for count in (3, 5, 13)}
CARD = (
    r"(?<![\w.-])(?:[2-6]\d{3}([ .-]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ .-]?)\d{6}\2\d{4,5}|[2-6]\d{12,18})"
    r"(?!\w|[.-]\d)"
)
"""Groups of 4-4-4-4, 4-4-4-4-3, 4-6-5 and 4-6-4 digits, and 13 to 19 digits without groups."""
CARD_SEPARATORS = [("-", ""), (" ", ""), (".", "")]
IBAN = re.compile(r"(?<![A-Za-z\d])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z\d]){11,30}(?![A-Za-z\d])")
IP = re.compile(r"\d\.\d{1,3}\.\d|:[\dA-Fa-f]{0,4}:")

_WORDS = {
    **_RULES["words"],
    **{name: _any(words) for name, words in _RULES["streets"].items()},
    "VERSIONS": _any(_RULES["versions"]),
    "LABELS": _any(_RULES["number_labels"]),
    "NUMBER_WORDS": _any(word for word, kind in NUMBER_KIND.items() if kind != "Phone"),
    "NAME": rf"(?:(?P<title>{_any(_RULES['titles'])})\b\.?[ \t]+)?"
    rf"(?P<name>{WORD.pattern}(?:[ \t]+(?:{WORD.pattern}|[^\W\d_]\.(?=[ \t]))){{0,2}})",
}
TOKEN, NUMBER = (any_of(_RULES["patterns"][name], _WORDS, re.NOFLAG) for name in ("TOKEN", "NUMBER"))
LINK, VERSION, INTRODUCED, DATE_OR_AMOUNT, SENTENCE_END, DESK_IS_MEANT, CUSTOMER_IS_MEANT = (
    any_of(_RULES["any_case_patterns"][name], _WORDS)
    for name in (
        "LINK",
        "VERSION",
        "INTRODUCED",
        "DATE_OR_AMOUNT",
        "SENTENCE_END",
        "DESK_IS_MEANT",
        "CUSTOMER_IS_MEANT",
    )
)
ADDRESSES = [(re.compile(fast), any_of(block, _WORDS, re.NOFLAG)) for fast, block in _RULES["addresses"]]
"""Pairs of a fast pattern and the pattern of an address line. The second can only match if the first does."""


def _name_pattern(phrases: list[str], block: str) -> re.Pattern[str]:
    return any_of(block, _WORDS | {"PHRASE": rf"(?P<phrase>(?i:{_any(phrases)}))"}, re.MULTILINE)


_NAME_RULES = [
    (owner, _RULES[phrases] if isinstance(phrases, str) else phrases, block)
    for owner, phrases, block in _RULES["names"]
]
NAMES = [
    ([word_set(phrase) for phrase in phrases], _name_pattern(phrases, block), owner)
    for owner, phrases, block in _NAME_RULES
]
"""For each rule of the file: the words of each of its phrases, the pattern of phrase and name, and whose name it is."""
