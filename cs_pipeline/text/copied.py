"""Words that a text has in common with others because it was copied from them, or because both have stock phrases.

Words are copied if they are part of at least COPIED_RUN consecutive words of one other text. Case and punctuation are
ignored, and a placeholder is one word.
"""

import re
from collections.abc import Sequence

import numpy as np

COPIED_RUN = 8
"""This many consecutive words count as copied. Two answers to one intent rarely share that many, except in stock phrases."""

_MOSTLY_COPIED = 0.5


def copied_words(text: str, sources: Sequence[str]) -> np.ndarray:
    """Which words of ``text`` are copied from one of ``sources``: [words]."""
    words = _words(text)
    copied = np.zeros(len(words), bool)
    for source in sources:
        copied |= _in_runs(words, _words(source))
    return copied


def mostly_copied(texts: Sequence[str], sources: Sequence[str]) -> np.ndarray:
    """Which of ``texts`` have at least half of their words copied from ``sources``: [texts]."""
    copied = [copied_words(text, sources) for text in texts]
    return np.array([words.any() and words.mean() >= _MOSTLY_COPIED for words in copied], bool)


def seen_shares(texts: Sequence[str], known: Sequence[str]) -> list[float]:
    """For each of ``texts``, the share of its runs of COPIED_RUN words that are in any of the ``known`` texts, 0 to 1.

    Texts with fewer words are left out. A high share means that the texts are made of phrases that are known.
    """
    runs = [_runs(_words(text)) for text in texts]
    wanted = set().union(*runs)
    seen = set()
    for text in known:
        seen |= wanted & _runs(_words(text))
    return [len(own & seen) / len(own) for own in runs if own]


def _words(text: str) -> list[str]:
    return re.findall(r"\{\{[^{}\n]*\}\}|\w+", text.lower())


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of COPIED_RUN consecutive ``words``."""
    return {tuple(words[start : start + COPIED_RUN]) for start in range(len(words) - COPIED_RUN + 1)}


def _in_runs(words: list[str], source: list[str]) -> np.ndarray:
    """Which of ``words`` are part of COPIED_RUN consecutive words of ``source``: [words]."""
    runs = _runs(source)
    inside = np.zeros(len(words), bool)
    for start in range(len(words) - COPIED_RUN + 1):
        if tuple(words[start : start + COPIED_RUN]) in runs:
            inside[start : start + COPIED_RUN] = True
    return inside
