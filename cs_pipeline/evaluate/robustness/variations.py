"""Questions as other customers would write them: the same request with typing errors, in capitals, in telegram style, in
another sentence structure, in other words. Each rule takes a question and a random generator and returns the question
unchanged if it does not apply. ``variations.yaml`` holds the words and sentences.

Placeholders, and words with a digit or an @, are never changed.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml

_KEPT = r"\{\{[^{}\n]*\}\}|\S*[\d@]\S*"
_TOKEN = re.compile(rf"({_KEPT})")
_KEPT_OR_WORD = re.compile(rf"{_KEPT}|([A-Za-z]{{4,}})")


def _between(text: str, change: Callable[[str], str]) -> str:
    """``text`` with ``change`` applied to everything that may be changed."""
    return "".join(part if place % 2 else change(part) for place, part in enumerate(_TOKEN.split(text)))


_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_TYPO_SHARE = 0.3


def _typos(text: str, rng: random.Random) -> str:
    """Typing errors in three of ten words of four letters or more, at least in one: neighbouring letters swapped, or a
    letter lost, doubled or replaced by that of a neighbouring key."""
    words = [match.span(1) for match in _KEPT_OR_WORD.finditer(text) if match[1]]
    if not words:
        return text
    chosen = {span for span in words if rng.random() < _TYPO_SHARE} or {rng.choice(words)}
    for start, end in sorted(chosen, reverse=True):
        text = text[:start] + _mistyped(text[start:end], rng) + text[end:]
    return text


def _mistyped(word: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("swap", "lose", "double", "neighbour"))
    if kind == "swap" and word[place] != word[place + 1]:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == "double":
        return word[:place] + word[place] + word[place:]
    if kind == "neighbour":
        row = next((row for row in _KEYBOARD_ROWS if word[place].lower() in row), "")
        near = row[max(0, row.find(word[place].lower()) - 1) :][:3].replace(word[place].lower(), "") if row else ""
        if near:
            return word[:place] + rng.choice(near) + word[place + 1 :]
    return word[:place] + word[place + 1 :]


def _capitals(text: str, _: random.Random) -> str:
    return _between(text, str.upper)


_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))
_FUNCTION_WORDS = frozenset(_FILE["function_words"].split())


def _telegram(text: str, _: random.Random) -> str:
    """Content words in lower case, without punctuation; negations stay."""

    def short(part: str) -> str:
        words = [word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", part.lower()) if word not in _FUNCTION_WORDS]
        return f" {' '.join(words)} " if words else " "

    shortened = " ".join(_between(text, short).split())
    return shortened if " " in shortened else text


_OPENINGS = [(any_of(opening, _FILE), template) for opening, template in _FILE["openings"]]


def _structure(text: str, rng: random.Random) -> str:
    """The request before the question about it, if the sentence has a common opening; else within other sentences."""
    bare = text.strip().rstrip("?.! ")
    for pattern, template in _OPENINGS:
        if match := pattern.fullmatch(bare):
            rest = match["rest"]
            return template.format(rest=rest[0].upper() + rest[1:])
    return rng.choice(_FILE["frames"]).format(text=text.strip())


_SYNONYMS: dict[str, str] = _FILE["other_words"]
_REPLACED = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, _SYNONYMS), key=len, reverse=True))})\b", re.I)


def _other_words(text: str, _: random.Random) -> str:
    """Every word that has a synonym, replaced by it."""
    return _between(text, lambda part: _REPLACED.sub(lambda match: _SYNONYMS[match[0].lower()], part))


VARIATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "typing errors": _typos,
    "capitals": _capitals,
    "telegram": _telegram,
    "other structure": _structure,
    "other words": _other_words,
}
"""The rules, by the group of cases that they make."""

REQUEST_PAIRS: list[str] = _FILE["request_pairs"]
"""How a customer makes two requests in one text."""
