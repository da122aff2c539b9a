"""How much of an answer comes from the texts retrieved for its question.

``text/copied.py`` decides which words are copied. Facts are placeholders and what ``text/facts.py`` finds. A fact is
grounded if the question, its earlier turns or a retrieved text contains it. It is sourced if a retrieved text contains it:
that text is then shown as the answer's source.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.scoring.fidelity import placeholder_names
from cs_pipeline.evaluate.scoring.statistics import sampled_sums
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.text.copied import copied_words, seen_shares
from cs_pipeline.text.facts import facts, is_known, values

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


def groundedness(
    questions: Sequence[str], answers: Sequence[str], retrieved: Sequence[Sequence[RetrievedText]]
) -> pd.DataFrame:
    """GROUNDEDNESS_COLUMNS, one row per answer; ``questions`` include their earlier turns."""
    rows = []
    for question, answer, texts in zip(questions, answers, retrieved, strict=True):
        sources = [text.text for text in texts]
        copied = copied_words(answer, sources)
        by_source = [_facts_found(answer, source) for source in sources]
        sourced = np.any(by_source, axis=0) if by_source else np.zeros(len(_facts_found(answer, "")), bool)
        grounded = sourced | _facts_found(answer, question)
        fully_grounded = int(grounded.all())
        rows.append((len(copied), copied.sum(), len(grounded), grounded.sum(), sourced.sum(), 1, fully_grounded))
    return pd.DataFrame(rows, columns=list(GROUNDEDNESS_COLUMNS), dtype="int64")


def seen_share(answers: Sequence[str], training_answers: Sequence[str]) -> float | None:
    """The median of the ``seen_shares`` of ``answers`` in training answers, 0 to 1; None if all answers are too short.

    A high share means that the answers are made of stock phrases, so that copying is a strong baseline.
    """
    shares = seen_shares(answers, training_answers)
    return float(np.median(shares)) if shares else None


def groundedness_shares(
    rows: pd.DataFrame, clusters: Sequence[str], samples: int = 1000
) -> dict[str, dict[str, float] | None]:
    """The shares ``copied``, ``grounded``, ``sourced`` and ``whole`` in percent, each with the 95 % interval of a bootstrap
    over clusters. ``rows`` is a table that ``groundedness`` returned.

    A share is None if there are no words or no facts to divide by, in all rows or in a bootstrap sample of them.
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


def _facts_found(answer: str, text: str) -> np.ndarray:
    """Which facts and placeholders of ``answer``, in that order, are in ``text``: [facts and placeholders]."""
    known, names = values(text), placeholder_names(text)
    found: list[Any] = [is_known(fact, known) for fact in facts(answer)]
    return np.array([*found, *(name in names for name in sorted(placeholder_names(answer)))], bool)
