"""How much of an answer comes from the texts retrieved for its question.

Words are copied if they are part of at least COPIED_RUN consecutive words of one retrieved text. Facts are placeholders and
what ``text/facts.py`` finds. A fact is grounded if the question, its earlier turns or a retrieved text contains it. It is
sourced if a retrieved text contains it: that text is then shown as the answer's source.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.scoring.fidelity import placeholder_names
from cs_pipeline.evaluate.scoring.statistics import sampled_sums
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.text.facts import facts, is_known, values

COPIED_RUN = 8
"""This many consecutive words count as copied. Two answers to one intent rarely share that many, except in stock phrases."""

GROUNDEDNESS_COLUMNS = {
    "words": "words of the answer",
    "copied": "words copied from a retrieved text",
    "facts": "facts and placeholders of the answer",
    "grounded": "facts found in the question, its earlier turns or a retrieved text",
    "sourced": "facts found in a retrieved text",
    "answers": "always 1, so that sums count the answers",
    "whole": "1 if all facts are grounded",
}

_SHARES = {
    "copied": ("copied", "words"),
    "grounded": ("grounded", "facts"),
    "sourced": ("sourced", "facts"),
    "whole": ("whole", "answers"),
}
"""The two columns of each share, which is the sum of the first divided by the sum of the second."""

_MOSTLY_COPIED = 0.5


def groundedness(
    questions: Sequence[str], answers: Sequence[str], retrieved: Sequence[Sequence[RetrievedText]]
) -> pd.DataFrame:
    """GROUNDEDNESS_COLUMNS, one row per answer; ``questions`` include their earlier turns."""
    rows = []
    for question, answer, texts in zip(questions, answers, retrieved, strict=True):
        sources = [text.text for text in texts]
        copied = _copied(answer, sources)
        by_source = [_facts_found(answer, source) for source in sources]
        sourced = np.any(by_source, axis=0) if by_source else np.zeros(len(_facts_found(answer, "")), bool)
        grounded = sourced | _facts_found(answer, question)
        fully_grounded = int(grounded.all())
        rows.append((len(copied), copied.sum(), len(grounded), grounded.sum(), sourced.sum(), 1, fully_grounded))
    return pd.DataFrame(rows, columns=list(GROUNDEDNESS_COLUMNS), dtype="int64")


def mostly_copied(answers: Sequence[str], sources: Sequence[str]) -> np.ndarray:
    """Which of ``answers`` have at least half of their words copied from ``sources``: [answers]."""
    copied = [_copied(answer, sources) for answer in answers]
    return np.array([words.any() and words.mean() >= _MOSTLY_COPIED for words in copied], bool)


def seen_share(answers: Sequence[str], training_answers: Sequence[str]) -> float | None:
    """The median over ``answers`` of the share of their runs of COPIED_RUN words that are in any training answer, 0 to 1.

    A high share means that the answers are made of stock phrases, so that copying is a strong baseline. None if no answer
    has that many words.
    """
    runs = [_runs(_words(answer)) for answer in answers]
    wanted = set().union(*runs)
    seen = set()
    for answer in training_answers:
        seen |= wanted & _runs(_words(answer))
    shares = [len(own & seen) / len(own) for own in runs if own]
    return float(np.median(shares)) if shares else None


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of COPIED_RUN consecutive ``words``."""
    return {tuple(words[start : start + COPIED_RUN]) for start in range(len(words) - COPIED_RUN + 1)}


def _copied(answer: str, sources: Sequence[str]) -> np.ndarray:
    """Which words of ``answer`` are copied from one of ``sources``: [words]."""
    words = _words(answer)
    copied = np.zeros(len(words), bool)
    for source in sources:
        copied |= _in_runs(words, _words(source))
    return copied


def groundedness_shares(
    rows: pd.DataFrame, clusters: Sequence[str], samples: int = 1000
) -> dict[str, dict[str, float] | None]:
    """The shares ``copied``, ``grounded``, ``sourced`` and ``whole`` in percent, each with the 95 % interval of a bootstrap
    over clusters. ``rows`` is a table that ``groundedness`` returned.

    A share is None if all rows, or a bootstrap sample of them, have no words or facts at all.
    """
    drawn = pd.DataFrame(sampled_sums(rows.to_numpy(float), clusters, samples), columns=list(rows))
    figures: dict[str, dict[str, float] | None] = {}
    for name, (part, total) in _SHARES.items():
        if not drawn[total].all():
            figures[name] = None
            continue
        low, high = np.percentile(100 * drawn[part] / drawn[total], [2.5, 97.5]).tolist()
        figures[name] = {"score": 100 * float(rows[part].sum() / rows[total].sum()), "low": low, "high": high}
    return figures


def _words(text: str) -> list[str]:
    return re.findall(r"\{\{[^{}\n]*\}\}|\w+", text.lower())


def _in_runs(words: list[str], source: list[str]) -> np.ndarray:
    """Which of ``words`` are part of COPIED_RUN consecutive words of ``source``: [words]."""
    runs = _runs(source)
    inside = np.zeros(len(words), bool)
    for start in range(len(words) - COPIED_RUN + 1):
        if tuple(words[start : start + COPIED_RUN]) in runs:
            inside[start : start + COPIED_RUN] = True
    return inside


def _facts_found(answer: str, text: str) -> np.ndarray:
    """Which facts and placeholders of ``answer``, in that order, are in ``text``: [facts and placeholders]."""
    known, names = values(text), placeholder_names(text)
    found: list[Any] = [is_known(fact, known) for fact in facts(answer)]
    return np.array([*found, *(name in names for name in sorted(placeholder_names(answer)))], bool)
