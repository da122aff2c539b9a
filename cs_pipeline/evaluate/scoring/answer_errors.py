"""Rules that detect errors in answers, one boolean column per error.

``answer_errors`` returns one row per answer with a column for each of ANSWER_ERRORS. A system's error rate is the mean of
its column. The reference answers are scored like another system: their rates show how often a rule is wrong.
``AnswerNorms`` holds the norms that the rules compare answers with; they are learned from the training answers.

Each rule was tested on the 2,414 real answers of Bitext's validation and test rows, with norms from its 21,680 training
rows. It was also tested on planted errors: a program planted them in 300 of these answers; errors that no program can plant
are in answers written by hand (``cs_pipeline_tests/evaluate/scoring/planted.yaml``). 2.1 % of the real answers are flagged.

| error | real answers flagged | planted errors found |
|---|---|---|
| too_long | 0.33 % | 99.3 % of 300: three other answers to the intent appended |
| asks_needlessly | 0.66 % | all of 300: a request for a password, PIN or card appended |
| repeats_itself | none | all of 300: its longest sentence, the answer itself or a loop of its words appended |
| too_formal | 0.04 % | all of 12 by hand |
| generic | 0.99 % | 21 of 24 by hand |
| unfinished | 0.04 % | 97.7 % of 300: cut after a random word, which may be the end of a sentence |
| broken_placeholder | none | all of 300: one brace too few or too many |
| off_topic | 0.08 % | all of 16 by hand: weather, cooking, politics, sport, code … |

Most of the flagged real answers are indeed wrong: they ask for what the question already says, say nothing, or stop in the
middle. The rule for formality only looks for words, and the formal answers written by hand are extreme cases.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from cs_pipeline.core.yaml_file import any_of, read_yaml
from cs_pipeline.text.details import specific_details
from cs_pipeline.text.placeholders import is_balanced

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

_FILE = read_yaml(Path(__file__).with_suffix(".yaml"))

ANSWER_ERRORS: dict[str, str] = _FILE["rules"]
"""The errors by name, with the rule for each."""

_MIN_ROWS = 50
"""An intent with fewer training answers uses the norms of all intents together."""


@dataclass(frozen=True)
class AnswerNorms:
    """The norms of training answers: length, requested details, topic words and centroids."""

    max_words: dict[str, int]
    """The longest normal answer in words, by intent; "" is for all intents together."""
    usual_requests: dict[str, frozenset[str]]
    """The details that answers to an intent ask for, by intent; "" is for all intents together."""
    topic_weights: np.ndarray
    """How specific each word of the vectorizer is to an intent, 0 to 1: shape [words]."""
    min_topic_weight: float
    """The smallest normal sum of the topic weights of an answer's distinct words."""
    vectorizer: "TfidfVectorizer"
    centroids: np.ndarray
    """Mean TF-IDF vector of each intent's answers, of length 1: [intents, words]."""
    min_cosine: float
    """The smallest normal cosine to the nearest centroid."""

    @classmethod
    def of(cls, answers: Sequence[str], intents: Sequence[str]) -> Self:
        """The norms of training ``answers``; ``intents`` holds the intent of each. 21,680 answers take seconds."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        groups: dict[str, list[int]] = defaultdict(list)
        for i, intent in enumerate(intents):
            groups[intent].append(i)
        words = np.array([len(answer.split()) for answer in answers])
        requests = [specific_details(answer) for answer in answers]
        rows_for_norms: dict[str, Sequence[int]] = {"": range(len(answers))}
        rows_for_norms |= {intent: rows for intent, rows in groups.items() if len(rows) >= _MIN_ROWS}
        vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
        vectors = vectorizer.fit_transform(map(_without_placeholders, answers))
        by_intent = [vectors[rows] for _, rows in sorted(groups.items())]
        centroids = np.stack([np.asarray(intent_vectors.mean(axis=0)).ravel() for intent_vectors in by_intent])
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        # The share of each intent's answers that contain a word: [intents, words].
        shares = np.stack([np.asarray((intent_vectors > 0).mean(axis=0)).ravel() for intent_vectors in by_intent])
        median = np.median(shares, axis=0)
        topic_weights = np.where(median <= _MAX_MEDIAN_SHARE, shares.max(axis=0) - median, 0)
        return cls(
            max_words={name: _max_words(words[list(rows)]) for name, rows in rows_for_norms.items()},
            usual_requests={
                name: _usual_requests([requests[i] for i in rows]) for name, rows in rows_for_norms.items()
            },
            topic_weights=topic_weights,
            min_topic_weight=float(np.quantile((vectors > 0) @ topic_weights, 0.01)),
            vectorizer=vectorizer,
            centroids=centroids,
            min_cosine=float(np.quantile((vectors @ centroids.T).max(axis=1), 0.001)),
        )

    def topics(self, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Each answer's summed topic weight, and its cosine to the nearest centroid: two arrays of shape [answers]."""
        if not answers:
            return np.zeros(0), np.zeros(0)
        vectors = self.vectorizer.transform(map(_without_placeholders, answers))
        return (vectors > 0) @ self.topic_weights, (vectors @ self.centroids.T).max(axis=1)


def answer_errors(
    norms: AnswerNorms,
    questions: Sequence[str],
    answers: Sequence[str],
    intents: Sequence[str],
    right_intent: Sequence[float],
    stopped: Sequence[float],
) -> pd.DataFrame:
    """A column of booleans for each of ANSWER_ERRORS, one row per answer of one system.

    ``questions`` include earlier turns, and ``intents`` are the true ones. ``right_intent`` and ``stopped`` (0 if the answer
    was cut off at the token limit) are 1 or 0; NaN means unknown and does not count as an error.
    """
    stock_answers = _stock_answers(answers, intents)
    topic_weights, cosines = norms.topics(answers)
    columns = (questions, answers, intents, right_intent, stopped, topic_weights, cosines)
    rows = [
        {
            "too_long": _is_too_long(norms, answer, intent),
            "asks_needlessly": bool(_needless_requests(norms, question, answer, intent)),
            "repeats_itself": repeats_itself(answer),
            "too_formal": is_too_formal(question, answer),
            "generic": _words_only(answer) in stock_answers or weight < norms.min_topic_weight,
            "wrong_intent": right == 0,
            "unfinished": ended == 0 or not ends_properly(answer),
            "broken_placeholder": not is_balanced(answer),
            "off_topic": cosine < norms.min_cosine,
        }
        for question, answer, intent, right, ended, weight, cosine in zip(*columns, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(ANSWER_ERRORS), dtype=bool)


def _max_words(words: np.ndarray) -> int:
    return int(max(np.quantile(words, 0.99), 1.5 * np.quantile(words, 0.95)))


def _is_too_long(norms: AnswerNorms, answer: str, intent: str) -> bool:
    return len(answer.split()) > norms.max_words.get(intent, norms.max_words[""])


# Asks for details it does not need.

_SECRETS = frozenset({"Card Number", "Password"})
_ALREADY_SAID = {
    "Order Number": re.compile(r"\{\{Order Number\}\}|\border (?:number |no\.? |#)*[A-Z-]*\d{4,}", re.I),
    "Invoice Number": re.compile(r"\{\{Invoice Number\}\}|\b(?:invoice|bill) (?:number |no\.? |#)*[A-Z-]*\d{4,}", re.I),
    "Customer Email": re.compile(r"\{\{Customer Email\}\}|\S@\S"),
}
_MIN_USUAL_SHARE = 0.005


def _usual_requests(requests: Sequence[frozenset[str]]) -> frozenset[str]:
    counts = Counter(detail for details in requests for detail in details)
    return frozenset(detail for detail, count in counts.items() if count >= _MIN_USUAL_SHARE * len(requests)) - _SECRETS


def _needless_requests(norms: AnswerNorms, question: str, answer: str, intent: str) -> frozenset[str]:
    requested = specific_details(answer)
    if not requested:
        return requested
    usual = norms.usual_requests.get(intent, norms.usual_requests[""])
    return frozenset(
        detail
        for detail in requested
        if detail not in usual or (detail in _ALREADY_SAID and _ALREADY_SAID[detail].search(question))
    )


# Repeats itself.

_SENTENCE_END = re.compile(r"(?<=[.!?:])[\"'”’)*]*\s+|\n+")
_MIN_SENTENCE_WORDS, _MAX_LOOP_WORDS, _MAX_REPEATED_SHARE = 4, 8, 1 / 7


def repeats_itself(answer: str) -> bool:
    """Whether one of these is true:

    - a sentence of four words or more appears twice;
    - a sequence of three to eight words appears three times in a row, or one of one or two words four times;
    - more than a seventh of the four-word sequences are repeats.
    """
    text = _without_placeholders(answer).lower()
    sentences = [tuple(re.findall(r"\w+", part)) for part in _SENTENCE_END.split(text)]
    if any(count > 1 for words, count in Counter(sentences).items() if len(words) >= _MIN_SENTENCE_WORDS):
        return True
    words = re.findall(r"\w+", text)
    sequences = list(zip(*(words[start:] for start in range(4)), strict=False))
    repeated = len(sequences) - len(set(sequences))
    if len(sequences) >= 8 and repeated > _MAX_REPEATED_SHARE * len(sequences):
        return True
    # A loop of three words or more always repeats a four-word sequence.
    return any(_loops(words, size) for size in range(1, _MAX_LOOP_WORDS + 1 if repeated else 3))


def _loops(words: Sequence[str], size: int) -> bool:
    needed = size * (3 if size <= 2 else 2)
    repeated = 0
    for i in range(size, len(words)):
        repeated = repeated + 1 if words[i] == words[i - size] else 0
        if repeated >= needed:
            return True
    return False


# Too formal for a simple question.

_SHORT_QUESTION_WORDS = 15
_LETTER = any_of(_FILE["letter"])
_OFFICIALESE = any_of(r"\b<OFFICIALESE>\b", _FILE)


def is_too_formal(question: str, answer: str) -> bool:
    """Whether a question of at most 15 words is answered like a letter or with two different phrases of officialese."""
    if len(question.split()) > _SHORT_QUESTION_WORDS:
        return False
    return bool(_LETTER.search(answer)) or len({match.lower() for match in _OFFICIALESE.findall(answer)}) >= 2


# Generic.

_MAX_MEDIAN_SHARE = 0.01
"""A word is a topic word only if, in the median intent, at most this share of the answers contain it."""
_STOCK_INTENTS = 3


def _stock_answers(answers: Sequence[str], intents: Sequence[str]) -> set[str]:
    """The answers that are given to questions of three intents or more, each as ``_words_only`` returns it."""
    intents_by_answer: dict[str, set[str]] = defaultdict(set)
    for answer, intent in zip(answers, intents, strict=True):
        intents_by_answer[_words_only(answer)].add(intent)
    return {words for words, found in intents_by_answer.items() if len(found) >= _STOCK_INTENTS}


def _words_only(answer: str) -> str:
    """The words in lower case, without placeholders, numbers and punctuation."""
    return " ".join(re.findall(r"[^\W\d_]+", _without_placeholders(answer).lower()))


# Unfinished.

_END = re.compile(
    r"(?:[.!?…。！？]|\}\}|:\)|[\U0001f300-\U0001faff\u2600-\u27bf])[\"'”’»)\]*_\s\ufe0f]*\Z|(?:https?://|www\.)\S+\Z"
)


def ends_properly(answer: str) -> bool:
    """Whether ``answer`` ends like a sentence, or with a placeholder, a web address or an emoji. A colon is not an end."""
    return _END.search(answer) is not None


@lru_cache(maxsize=20_000)
def _without_placeholders(text: str) -> str:
    """``text`` without its placeholders, because their names are not words of the answer."""
    return re.sub(r"\{\{[^{}\n]*\}\}", " ", text)
