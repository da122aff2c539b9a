"""How much of an answer comes from the texts that were found for its question.

Copied are the words that stand in runs of at least COPIED_RUN words in one found text. A fact is what ``facts.py`` calls one, or a
placeholder: it is grounded where it stands in the question, its earlier turns or a found text, and sourced where a found
text holds it, which is what a page shows as the answer's source.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.statistics import sampled_sums
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.text.facts import facts, is_known, values
from cs_pipeline.text.placeholders import catalogue, find

COPIED_RUN = 8
"""Words in a row that two answers to one intent share by chance only where both hold the same stock phrase."""

GROUNDEDNESS_COLUMNS = {
    "words": "words of the answer",
    "copied": "those in runs of COPIED_RUN words and more that stand in one found text",
    "facts": "facts and placeholders of the answer",
    "grounded": "those that stand in the question, its earlier turns or a found text",
    "sourced": "those that stand in a found text",
    "answers": "1",
    "whole": "1 where all facts are grounded",
}

_SHARES = {
    "copied": ("copied", "words"),
    "grounded": ("grounded", "facts"),
    "sourced": ("sourced", "facts"),
    "whole": ("whole", "answers"),
}
"""The figures, each the quotient of two sums."""


def groundedness(
    asked: Sequence[str], answers: Sequence[str], found: Sequence[Sequence[RetrievedText]]
) -> pd.DataFrame:
    """A row an answer with the columns of GROUNDEDNESS_COLUMNS; ``asked`` is each question with its earlier turns."""
    rows = []
    for question, answer, texts in zip(asked, answers, found, strict=True):
        sources = [one.text for one in texts]
        copied = _copied(answer, sources)
        held = [_holds(answer, source) for source in sources]
        sourced = np.any(held, axis=0) if held else np.zeros(len(_holds(answer, "")), bool)
        grounded = sourced | _holds(answer, question)
        whole = int(grounded.all())
        rows.append((len(copied), copied.sum(), len(grounded), grounded.sum(), sourced.sum(), 1, whole))
    return pd.DataFrame(rows, columns=list(GROUNDEDNESS_COLUMNS), dtype="int64")


_MOSTLY_COPIED = 0.5
"""Share of copied words from which on an answer is another one, retold."""


def mostly_copied(answers: Sequence[str], sources: Sequence[str]) -> np.ndarray:
    """Which of ``answers`` retell one of ``sources``: [answers]."""
    copied = [_copied(answer, sources) for answer in answers]
    return np.array([words.any() and words.mean() >= _MOSTLY_COPIED for words in copied], bool)


def _copied(answer: str, sources: Sequence[str]) -> np.ndarray:
    """Which words of ``answer`` stand in a run of COPIED_RUN in one of ``sources``: [words]."""
    words = _words(answer)
    copied = np.zeros(len(words), bool)
    for source in sources:
        copied |= _in_runs(words, _words(source))
    return copied


def groundedness_shares(
    rows: pd.DataFrame, clusters: Sequence[str], samples: int = 1000
) -> dict[str, dict[str, float] | None]:
    """_SHARES of these rows of ``grounding`` in percent, each with the 95 % interval of the bootstrap over clusters.

    None where there is nothing to share, in all rows or in a sample.
    """
    drawn = pd.DataFrame(sampled_sums(rows.to_numpy(float), clusters, samples), columns=list(rows))
    figures: dict[str, dict[str, float] | None] = {}
    for name, (part, whole) in _SHARES.items():
        if not drawn[whole].all():
            figures[name] = None
            continue
        low, high = np.percentile(100 * drawn[part] / drawn[whole], [2.5, 97.5]).tolist()
        figures[name] = {"score": 100 * float(rows[part].sum() / rows[whole].sum()), "low": low, "high": high}
    return figures


def _words(text: str) -> list[str]:
    return re.findall(r"\{\{[^{}\n]*\}\}|\w+", text.lower())


def _in_runs(words: list[str], source: list[str]) -> np.ndarray:
    """Which of ``words`` stand in ``source`` with their neighbours, COPIED_RUN in a row: [words]."""
    runs = {tuple(source[start : start + COPIED_RUN]) for start in range(len(source) - COPIED_RUN + 1)}
    inside = np.zeros(len(words), bool)
    for start in range(len(words) - COPIED_RUN + 1):
        if tuple(words[start : start + COPIED_RUN]) in runs:
            inside[start : start + COPIED_RUN] = True
    return inside


def _holds(answer: str, text: str) -> np.ndarray:
    """Which facts and placeholders of ``answer``, in that order, stand in ``text``: [facts and placeholders]."""
    said, names = values(text), _names(text)
    stated: list[Any] = [is_known(fact, said) for fact in facts(answer)]
    return np.array([*stated, *(name in names for name in sorted(_names(answer)))], bool)


def _names(text: str) -> set[str]:
    return {catalogue().name_of(spelling) or spelling for spelling in find(text)}
