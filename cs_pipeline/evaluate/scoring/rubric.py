"""A rubric for one answer: what the team leader of a support desk would tick, each part by an explicit rule.

The rules see the question and the answer, no reference and no model; ``rubric.yaml`` holds their words. Each of RUBRIC_PARTS
scores 0 to 1, and the rubric is their weighted sum. Beside it stands the heuristic of published notebooks, so that
scores can be compared (published: 1.21 of 3 for a base model, 2.84 when tuned).

The rubric judges how an answer is written, not whether it is right: an answer to another question scores as well.
Accuracy of each rule, before any adjustment, on hand-labelled answers that were not used to write it
(``cs_pipeline_tests/evaluate/scoring/rubric.yaml``; rules and labels are by the same author, so it is an upper bound):
greeting 20 of 20, empathy 19 of 20, solution 19 of 20, tone 19 of 20, readability 12 of 12, closing 20 of 20, language
20 of 20. Bitext's 1,207 real test answers score 0.90 of 1, and 2.65 of 3 by the heuristic.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from cs_pipeline.core.yaml_file import any_of, read_yaml

_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))
_GREETING, _EMPATHY, _CARE, _TROUBLE, _DONE, _PROMISE, _RUDE, _POLITE, _CLOSING = (
    any_of(rf"\b<{name}>\b", _FILE)
    for name in ("GREETING", "EMPATHY", "CARE", "TROUBLE", "DONE", "PROMISE", "RUDE", "POLITE", "CLOSING")
)
_DIRECTION = any_of(_FILE["DIRECTION"], _FILE)
_LIST_ITEM = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|[-*•])\s+\S", re.M)
_SHOUTING = re.compile(r"(?:\b[A-Z]{3,}\b[ ,!']*){4,}|!{2,}|\?{2,}|\?!")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_EASY_READING = 40.0
_ENGLISH = frozenset(_FILE["ENGLISH"].split())
_OTHER_LANGUAGES = frozenset(_FILE["OTHER_LANGUAGES"].split()) - frozenset({"a", "an", "is", "u"})


@dataclass(frozen=True)
class RubricPart:
    """One part of the rubric: its weight, its rule in words, and the rule itself: (question, answer) → 0 to 1."""

    weight: float
    rule: str
    score: Callable[[str, str], float]


def rubric(questions: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
    """One row per answer: a column for each of RUBRIC_PARTS, ``rubric`` (0 to 1) and ``heuristic`` (0 to 3)."""
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        parts = [part.score(question, answer) for part in RUBRIC_PARTS.values()]
        whole = sum(part.weight * score for part, score in zip(RUBRIC_PARTS.values(), parts, strict=True))
        rows.append((*parts, whole, heuristic(answer)))
    return pd.DataFrame(rows, columns=[*RUBRIC_PARTS, "rubric", "heuristic"])


def heuristic(answer: str) -> int:
    """The published score, 0 to 3: a point each for 30 characters, for "please", "sorry" or "happy to help", and for
    "provide", "account", "order" or "details"; substrings, ignoring case."""
    lower = answer.lower()
    courteous = any(words in lower for words in ("please", "sorry", "happy to help"))
    concrete = any(word in lower for word in ("provide", "account", "order", "details"))
    return (len(answer) >= 30) + courteous + concrete


def _greeting(_: str, answer: str) -> float:
    first = " ".join(_sentences(answer)[:2])
    return float(bool(_GREETING.search(first)))


def _empathy(question: str, answer: str) -> float:
    if _EMPATHY.search(answer):
        return 1.0
    cares = bool(_CARE.search(answer))
    return 0.5 * cares if _TROUBLE.search(question) else float(cares)


def _solution(_: str, answer: str) -> float:
    if len(_LIST_ITEM.findall(answer)) >= 2 or _DIRECTION.search(answer) or _DONE.search(answer):
        return 1.0
    return 0.5 if _PROMISE.search(answer) else 0.0


def _tone(_: str, answer: str) -> float:
    if _RUDE.search(answer) or _SHOUTING.search(answer):
        return 0.0
    return 1.0 if _POLITE.search(answer) else 0.5


def _readability(_: str, answer: str) -> float:
    """Flesch's reading ease (1948): 206.835 - 1.015 words per sentence - 84.6 syllables per word; 1 from 40, 0 below 0."""
    sentences = [words for words in map(_WORD.findall, _sentences(answer)) if words]
    words = [word for sentence in sentences for word in sentence]
    if not words:
        return 0.0
    ease = 206.835 - 1.015 * len(words) / len(sentences) - 84.6 * sum(map(_syllables, words)) / len(words)
    return min(max(ease / _EASY_READING, 0.0), 1.0)


def _closing(_: str, answer: str) -> float:
    sentences = _sentences(answer)
    return float(len(sentences) > 1 and bool(_CLOSING.search(" ".join(sentences[-2:]))))


def _language(_: str, answer: str) -> float:
    """Whether the answer is English: 1 when at least a quarter of its words are common English words, 0 when at most a
    tenth are; common words of other languages count against it."""
    words = [word.lower() for word in _WORD.findall(answer)]
    if not words:
        return 0.0
    share = (sum(word in _ENGLISH for word in words) - sum(word in _OTHER_LANGUAGES for word in words)) / len(words)
    return min(max((share - 0.1) / 0.15, 0.0), 1.0)


RUBRIC_PARTS = {
    "greeting": RubricPart(
        0.1, "the first two sentences greet, thank or acknowledge what the customer said", _greeting
    ),
    "empathy": RubricPart(
        0.15,
        "apologises or shows understanding; an offer of help is as good if the question reports no problem, else half",
        _empathy,
    ),
    "solution": RubricPart(
        0.3,
        "steps, what to do or where to find it, or what has been done; half for asking for details or a promise",
        _solution,
    ),
    "tone": RubricPart(
        0.15, "a polite word, and no blame, sarcasm, abuse or shouting; half without the polite word", _tone
    ),
    "readability": RubricPart(0.1, "Flesch's reading ease, from 0 (scores 0) to 40 and above (scores 1)", _readability),
    "closing": RubricPart(0.1, "one of the last two sentences offers more help, gives thanks or good wishes", _closing),
    "language": RubricPart(0.1, "English, by its share of common English words", _language),
}
"""The parts by name. The weights sum to 1; solving the customer's problem weighs most."""


@lru_cache(maxsize=1)  # all parts split the same answer in turn
def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])[\"'”’)*]*\s+|\n+", text.strip()) if part]


@lru_cache(maxsize=100_000)
def _syllables(word: str) -> int:
    """Groups of vowels except a silent e: "please" 1, "table" 2, "requested" 3."""
    word = word.lower()
    groups = len(re.findall(r"[aeiouy]+", word))
    silent = re.search(r"[^aeiouyl]e$|[^td]ed$|[^aeiouysxzcg]es$", word) is not None
    return max(groups - silent, 1)
