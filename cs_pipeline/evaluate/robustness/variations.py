"""Questions as other customers would write them: the same request with typing errors, in capitals, as a telegram, in
another structure, in other words. Each rule takes a question and a random generator; a rule that has nothing to
change returns it.

Placeholders, and words with a digit or an @, stay as they are.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path

from cs_pipeline.core.yaml_file import read_yaml

_KEPT = r"\{\{[^{}\n]*\}\}|\S*[\d@]\S*"
_TOKEN = re.compile(rf"({_KEPT})")


def _between(text: str, change: Callable[[str], str]) -> str:
    """``text`` with ``change`` made to everything but what is kept."""
    return "".join(part if place % 2 else change(part) for place, part in enumerate(_TOKEN.split(text)))


_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_TYPED_WRONG = 0.3


def _typos(text: str, rng: random.Random) -> str:
    """Three of ten words of four letters and more, and at least one, with neighbours swapped, or a letter lost, doubled or
    hit beside its key."""
    words = [
        (start + at, start + end)
        for start, stop in _outside(text)
        for at, end in (match.span() for match in re.finditer(r"[A-Za-z]{4,}", text[start:stop]))
    ]
    if not words:
        return text
    chosen = {span for span in words if rng.random() < _TYPED_WRONG} or {rng.choice(words)}
    for start, end in sorted(chosen, reverse=True):
        text = text[:start] + _mistyped(text[start:end], rng) + text[end:]
    return text


def _outside(text: str) -> list[tuple[int, int]]:
    """Where ``text`` is free to be changed."""
    spans, start = [], 0
    for kept in re.finditer(_KEPT, text):
        spans.append((start, kept.start()))
        start = kept.end()
    return [*spans, (start, len(text))]


def _mistyped(word: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("swap", "lose", "double", "beside"))
    if kind == "swap" and word[place] != word[place + 1]:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == "double":
        return word[:place] + word[place] + word[place:]
    if kind == "beside":
        row = next((row for row in _KEYS if word[place].lower() in row), "")
        near = row[max(0, row.find(word[place].lower()) - 1) :][:3].replace(word[place].lower(), "") if row else ""
        if near:
            return word[:place] + rng.choice(near) + word[place + 1 :]
    return word[:place] + word[place + 1 :]


def _capitals(text: str, _: random.Random) -> str:
    return _between(text, str.upper)


_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))
_LITTLE = frozenset(_FILE["little_words"].split())


def _telegram(text: str, _: random.Random) -> str:
    """The words that carry the meaning, in lower case, without punctuation; a negation stays."""

    def short(part: str) -> str:
        words = [word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", part.lower()) if word not in _LITTLE]
        return f" {' '.join(words)} " if words else " "

    shortened = " ".join(_between(text, short).split())
    return shortened if " " in shortened else text


_ABLE = r"(?:can|could|do|should|may|might|will|must)"
_OPENINGS = tuple(
    (re.compile(pattern, re.I), said)
    for pattern, said in (
        (rf"(?:i (?:do not|don'?t) know )?how {_ABLE} i (?P<rest>.+)", "{rest}: how is that done?"),
        (r"(?:i (?:do not|don'?t) know )?how to (?P<rest>.+)", "{rest}: how is that done?"),
        (rf"where {_ABLE} i (?P<rest>.+)", "{rest}: where is that possible?"),
        (rf"{_ABLE} i (?P<rest>.+)", "{rest}: is that possible?"),
        (
            rf"{_ABLE} (?:you|u|ya) (?:please )?help me (?:to |with )?(?P<rest>.+)",
            "{rest}: that is what I need your help with.",
        ),
        (
            r"(?:i )?(?:need|want|would like|'d like|require|have|have got|wanna)(?: to|na)? (?:some )?(?:help"
            r"|assistance)(?: to| with)?"
            r" (?P<rest>.+)",
            "{rest}: that is what I need your help with.",
        ),
        (
            r"(?:i )?(?:want to|wanna|need to|would like to|have to|have got to|'d like to|am trying to"
            r"|must) (?P<rest>.+)",
            "{rest}: that is what I am here for.",
        ),
        (r"(?:help|assistance) (?:me )?(?:to |with )?(?P<rest>.+)", "{rest}: that is what I need your help with."),
    )
)
_FRAMES = (
    "{text} That is my question, the rest you know.",
    "Before I forget it: {text}",
    "One thing I have wondered about since this morning. {text}",
    "I hope I am right here. {text}",
)


def _structure(text: str, rng: random.Random) -> str:
    """The request first and what is wanted of it after, where the sentence begins as most do; else among other words."""
    bare = text.strip().rstrip("?.! ")
    for pattern, said in _OPENINGS:
        if match := pattern.fullmatch(bare):
            rest = match["rest"]
            return said.format(rest=rest[0].upper() + rest[1:])
    return rng.choice(_FRAMES).format(text=text.strip())


_MEANS: dict[str, str] = _FILE["other_words"]
_MEANT = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, _MEANS), key=len, reverse=True))})\b", re.I)


def _other_words(text: str, _: random.Random) -> str:
    """Every word that the table knows another for, replaced by it."""
    return _between(text, lambda part: _MEANT.sub(lambda match: _MEANS[match[0].lower()], part))


RULES: dict[str, Callable[[str, random.Random], str]] = {
    "typing errors": _typos,
    "capitals": _capitals,
    "telegram": _telegram,
    "other structure": _structure,
    "other words": _other_words,
}
"""The rules by the group of cases that they make."""
