"""Questions that no known subject covers and that customers ask again and again: candidates for a new subject.

They are read from the queue of handovers. A question counts until its handover is removed: by whoever processes the queue,
or when the retention time of delivered handovers is over. Personal data is masked before a question is used.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from cs_pipeline.core.lake import DataLake
from cs_pipeline.retrieval.index import SENTENCE_WEIGHTS, index_embedder
from cs_pipeline.retrieval.vectors import CharacterVectors, MixedVectors, Vectors
from cs_pipeline.serve.desk.handover import HandoverReason
from cs_pipeline.text.placeholders import PlaceholderMode, apply, without_placeholders

MIN_CONVERSATIONS = 3
"""Groups of questions from fewer conversations are not reported."""

MIN_SIMILARITY_OF_GROUPS = 0.35
"""Two groups are joined as long as the mean similarity of their questions is at least this.

It was measured on 73 questions to an invented bicycle shop: 28 tickets, 30 questions in other words, and 15 about other
matters. With a sentence-embedding model, 45 are in groups of three or more, and 44 of these have the subject of most of
their group. By characters alone, the numbers are 6 and 5. Of 200 of Bitext's training questions, they are 170 and 118 with
the model, and 125 and 95 without it.
"""

_MAX_QUESTIONS = 2000
"""Only the latest questions are grouped, because the time grows quadratically with their number."""

_EXAMPLES = 3
_WEEK = timedelta(days=7)


@dataclass(frozen=True)
class RecurringQuestion:
    """Similar questions that nobody could answer.

    ``keywords`` are the words most typical of them. ``examples`` are up to three of the questions, the most central first,
    without personal data. ``conversations`` is the number of conversations, ``this_week`` that of the last seven days.
    """

    keywords: tuple[str, ...]
    examples: tuple[str, ...]
    conversations: int
    this_week: int


@dataclass(frozen=True)
class _Asked:
    """A masked question, the day on which it was handed over, and the reference of its conversation's first handover."""

    question: str
    day: date
    conversation: str


def recurring_questions(lake: DataLake, mask: Callable[[str], str], today: date) -> list[RecurringQuestion]:
    """Groups of similar questions from at least MIN_CONVERSATIONS conversations, the most frequent of this week first.

    ``mask`` replaces the personal data in a question with placeholders.
    """
    from sklearn.cluster import AgglomerativeClustering

    asked = sorted(_unknown_questions(lake, mask), key=lambda one: (one.day, one.question))[-_MAX_QUESTIONS:]
    if len(asked) < MIN_CONVERSATIONS:
        return []
    similarities = _similarities([without_placeholders(one.question) for one in asked], lake)
    grouping = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - MIN_SIMILARITY_OF_GROUPS
    ).fit_predict(np.clip(1 - similarities, 0, None))
    words = Counter(word for one in asked for word in _words(one.question))
    groups = (np.flatnonzero(grouping == number) for number in range(grouping.max() + 1))
    found = [
        _described([asked[row] for row in rows], similarities[np.ix_(rows, rows)], words, today) for rows in groups
    ]
    kept = [group for group in found if group.conversations >= MIN_CONVERSATIONS]
    return sorted(kept, key=lambda group: (-group.this_week, -group.conversations, group.keywords))


def _unknown_questions(lake: DataLake, mask: Callable[[str], str]) -> Iterator[_Asked]:
    """The masked questions that were handed over because no known answer or subject covers them."""
    records = {}
    for path in lake.path("serve", "handovers").rglob("H-*.json"):
        with suppress(FileNotFoundError):  # it was delivered or removed in the meantime
            records[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    for reference, record in records.items():
        if record["reason"] != HandoverReason.UNCLEAR.value:
            continue
        text = next((text for speaker, text in reversed(record["conversation"]) if speaker == "customer"), "")
        question = apply(mask(text), PlaceholderMode.KEEP, "customer", "")
        yield _Asked(question, date.fromisoformat(record["at"][:10]), record["follows"] or reference)


def _similarities(questions: list[str], lake: DataLake) -> np.ndarray:
    """The similarity of each question to each other, computed as in the retrieval index: [questions, questions]."""
    embedder = index_embedder(lake)
    vectors: Vectors = (
        MixedVectors.of(questions, embedder, SENTENCE_WEIGHTS["answers"])
        if embedder
        else CharacterVectors.of(questions)
    )
    queries = vectors.queries(questions)
    rows = np.stack([vectors.similarities(queries[number]) for number in range(len(questions))])
    symmetric = (rows + rows.T) / 2
    np.fill_diagonal(symmetric, 1)
    return symmetric


def _described(
    group: Sequence[_Asked], similarities: np.ndarray, words: Counter[str], today: date
) -> RecurringQuestion:
    latest: dict[str, date] = {}
    for one in group:
        latest[one.conversation] = max(one.day, latest.get(one.conversation, one.day))
    central = np.argsort(-similarities.mean(axis=1), kind="stable")
    texts = (apply(group[row].question, PlaceholderMode.GENERIC, "customer", "") for row in central)
    examples = tuple(dict.fromkeys(texts))[:_EXAMPLES]
    this_week = sum(day > today - _WEEK for day in latest.values())
    return RecurringQuestion(_keywords(group, words), examples, len(latest), this_week)


def _keywords(group: Sequence[_Asked], words: Counter[str], count: int = 4) -> tuple[str, ...]:
    """The words that are frequent in the group and rare elsewhere. ``words`` counts all questions that contain a word."""
    within = Counter(word for one in group for word in _words(one.question))
    weights = {word: n * n / words[word] for word, n in within.items() if n > 1}
    return tuple(sorted(weights, key=lambda word: (-weights[word], word))[:count])


def _words(question: str) -> set[str]:
    """The distinct words of at least three characters that start with a letter, without English stop words."""
    from sklearn.feature_extraction.text import CountVectorizer

    analyse = CountVectorizer(token_pattern=r"(?u)\b[^\W\d_]\w{2,}\b", stop_words="english").build_analyzer()
    return set(analyse(without_placeholders(question)))
