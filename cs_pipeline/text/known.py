"""Finds values from the fields of an export (people's names, addresses and numbers) in the texts of its conversations."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from cs_pipeline.text.personal_words import NAME_WORDS, NOT_NAMES

KnownValues = tuple[tuple[str, str], ...]
"""Pairs of a placeholder of the catalogue and the value that it replaces."""

_PARTS = {
    "Client Name": ("Client First Name", "Client Last Name", "Customer Email"),
    "Person Name": ("Person Name", "Person Name", "Customer Support Email"),
}
"""For each placeholder of a full name, those of the first name, the last name and an e-mail address in the name field."""


def find_known(text: str, known: KnownValues) -> Iterator[tuple[int, int, str]]:
    """Start, end and placeholder of each ``known`` value that occurs in ``text`` as whole words. Longest values come first.

    Case and accents are ignored. Parts of names are found too. Matches overlap if one value contains another.
    """
    folded = _folded(text) if known else ""
    for placeholder, value, spelling in _search_values(known):
        end = 0
        while (start := folded.find(value, end)) >= 0:
            end = start + len(value)
            if _is_whole(text, start, end) and (spelling is None or _is_name_here(text, start, end, spelling)):
                yield start, end, placeholder


def known_placeholder(value: str, known: KnownValues) -> str | None:
    """The placeholder for ``value``, None if it is not a known value."""
    folded = _folded(value)
    return next((placeholder for placeholder, wanted, _ in _search_values(known) if wanted == folded), None)


@lru_cache(maxsize=1024)
def _search_values(known: KnownValues) -> tuple[tuple[str, str, str | None], ...]:
    """The values to search for, longest first: placeholder, value as in ``_folded``, and required spelling (None: any).

    Leaves out values that a text may contain by chance: single characters, numbers of fewer than four digits, and entries
    of a name field that are not names ("Customer", "n/a").
    """
    values: dict[str, tuple[str, str | None]] = {}
    for placeholder, raw in known:
        value = unicodedata.normalize("NFC", " ".join(raw.split()))
        if len(value) < 2 or (value.isdecimal() and len(value) < 4) or _is_not_a_name(value):
            continue
        if placeholder not in _PARTS:
            values.setdefault(_folded(value), (placeholder, None))
            continue
        first_name, last_name, email = _PARTS[placeholder]
        if "@" in value:
            values.setdefault(_folded(value), (email, None))
            continue
        last, _, first = value.rpartition(",")
        names = [name for name in f"{first} {last}".split() if not _is_not_a_name(name)]
        if not names:
            continue
        full_name = placeholder if len(names) > 1 else first_name
        for name in (value, " ".join(names)):
            values.setdefault(_folded(name), (full_name, name if _is_also_a_word(name) else None))
        for index, word in enumerate(names):
            part = last_name if 0 < index == len(names) - 1 else first_name
            for piece in (word.strip(".,"), *re.findall(r"[^\W\d_]+", word)):
                if len(piece) >= 3 and not _is_not_a_name(piece):
                    values.setdefault(_folded(piece), (part, piece if _is_also_a_word(piece) else None))
    ordered = sorted(values.items(), key=lambda item: (-len(item[0]), item[0]))
    return tuple((placeholder, value, spelling) for value, (placeholder, spelling) in ordered)


def _is_not_a_name(name: str) -> bool:
    """Whether ``name`` is a title, an entry such as "Customer", or an ordinary word in lower case."""
    word = name.strip(".,-").casefold()
    return not word or (name.islower() if word in NAME_WORDS else word in NOT_NAMES)


def _is_also_a_word(name: str) -> bool:
    return len(name) < 3 or name.casefold() in NAME_WORDS


def _is_name_here(text: str, start: int, end: int, name: str) -> bool:
    """Whether an ambiguous word is a name here: it has the spelling and case of ``name`` and does not start a sentence."""
    return text[start:end] == name and text[:start].rstrip(" ")[-1:] not in ("", *".!?\n")


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether the span is not part of a longer word or e-mail address."""
    before, after = text[start - 1 : start], text[end : end + 2]
    if before.isalnum() or before == "_" or after[:1].isalnum() or after[:1] == "_":
        return False
    return "@" not in text[start:end] or not (before in (".", "+", "%", "-") or re.match(r"[.-]\w", after))


def _folded(text: str) -> str:
    """``text`` in lower case without accents; positions stay the same."""
    return text.lower() if text.isascii() else "".join(map(_fold, text))


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    base = unicodedata.normalize("NFD", character)[0].lower()
    return base if len(base) == 1 else character
