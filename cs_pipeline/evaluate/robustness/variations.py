"""Rewrites a question without changing the request: typing errors, capitals, telegraphic style, another sentence
structure, synonyms.

Each rule takes a question and a random generator. It returns the question unchanged if it does not apply.
``variations.yaml`` holds the words and sentences. The rules that change words leave placeholders and words with a digit or
an @ as they are.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml

_PROTECTED = r"\{\{[^{}\n]*\}\}|\S*[\d@]\S*"
_PROTECTED_PART = re.compile(rf"({_PROTECTED})")
_PROTECTED_OR_WORD = re.compile(rf"{_PROTECTED}|([A-Za-z]{{4,}})")


def _change_unprotected(text: str, change: Callable[[str], str]) -> str:
    """``text`` with ``change`` applied to all parts but placeholders and words with a digit or an @."""
    return "".join(part if index % 2 else change(part) for index, part in enumerate(_PROTECTED_PART.split(text)))


_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_TYPO_SHARE = 0.3


def _typos(text: str, rng: random.Random) -> str:
    """Typing errors in about 30 % of the words with four letters or more, and in at least one word.

    An error swaps two neighbouring letters, or drops a letter, doubles it or replaces it by one on a neighbouring key.
    """
    words = [match.span(1) for match in _PROTECTED_OR_WORD.finditer(text) if match[1]]
    if not words:
        return text
    chosen = {span for span in words if rng.random() < _TYPO_SHARE} or {rng.choice(words)}
    for start, end in sorted(chosen, reverse=True):
        text = text[:start] + _mistyped(text[start:end], rng) + text[end:]
    return text


def _mistyped(word: str, rng: random.Random) -> str:
    index = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("swap", "drop", "double", "neighbour"))
    if kind == "swap" and word[index] != word[index + 1]:
        return word[:index] + word[index + 1] + word[index] + word[index + 2 :]
    if kind == "double":
        return word[:index] + word[index] + word[index:]
    if kind == "neighbour":
        row = next((row for row in _KEYBOARD_ROWS if word[index].lower() in row), "")
        near = row[max(0, row.find(word[index].lower()) - 1) :][:3].replace(word[index].lower(), "") if row else ""
        if near:
            return word[:index] + rng.choice(near) + word[index + 1 :]
    return word[:index] + word[index + 1 :]


def _capitals(text: str, _: random.Random) -> str:
    return _change_unprotected(text, str.upper)


_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))
_FUNCTION_WORDS = frozenset(_FILE["function_words"].split())


def _telegram(text: str, _: random.Random) -> str:
    """Only the content words and negations, in lower case and without punctuation."""

    def shorten(part: str) -> str:
        words = [word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", part.lower()) if word not in _FUNCTION_WORDS]
        return f" {' '.join(words)} " if words else " "

    shortened = " ".join(_change_unprotected(text, shorten).split())
    return shortened if " " in shortened else text


_OPENINGS = [(any_of(opening, _FILE), template) for opening, template in _FILE["openings"]]


def _other_structure(text: str, rng: random.Random) -> str:
    """Puts the request first if the question has a common opening, such as "how do I". Else adds a sentence to it."""
    stripped = text.strip().rstrip("?.! ")
    for pattern, template in _OPENINGS:
        if match := pattern.fullmatch(stripped):
            rest = match["rest"]
            return template.format(rest=rest[0].upper() + rest[1:])
    return rng.choice(_FILE["frames"]).format(text=text.strip())


_SYNONYMS: dict[str, str] = _FILE["other_words"]
_REPLACED = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, _SYNONYMS), key=len, reverse=True))})\b", re.I)


def _other_words(text: str, _: random.Random) -> str:
    """Replaces every word or phrase that has a synonym in ``variations.yaml``."""
    return _change_unprotected(text, lambda part: _REPLACED.sub(lambda match: _SYNONYMS[match[0].lower()], part))


VARIATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "typing errors": _typos,
    "capitals": _capitals,
    "telegram": _telegram,
    "other structure": _other_structure,
    "other words": _other_words,
}
"""The rules by name. The name is also the group of the cases that the rule makes."""

REQUEST_PAIRS: list[str] = _FILE["request_pairs"]
"""Templates that join two requests into one text."""
