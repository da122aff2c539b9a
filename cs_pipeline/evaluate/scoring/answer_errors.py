"""Rules that detect errors in answers, one boolean column per error.

``answer_errors`` returns one row per answer with a column for each of ANSWER_ERRORS; a system's error rate is the mean
of its column. The reference answers are scored like another system: their rates show how often a rule is wrong.
``AnswerNorms`` holds what is normal, learned from the training answers.

Each rule was tested on the 2,414 real answers of Bitext's validation and test rows, with norms from its 21,680 training
rows, and on 300 of them with errors planted by a program or, where no program can write the error, on answers written by
hand (``cs_pipeline_tests/evaluate/scoring/planted.yaml``). In 2.1 % of the real answers some rule finds an error.

| error | found in real answers | found when planted |
|---|---|---|
| too_long | 0.33 % | 99.3 % of 300: followed by three other answers to the intent |
| asks_needlessly | 0.66 % | all of 300: asks for a password, PIN or card |
| repeats_itself | none | all of 300: followed by its longest sentence, by itself or by a loop |
| too_formal | 0.04 % | all of 12 by hand |
| generic | 0.99 % | 21 of 24 by hand |
| unfinished | 0.04 % | 97.7 % of 300: cut after any word; some cuts fall where a sentence may end |
| broken_placeholder | none | all of 300: one brace too few or too many |
| off_topic | 0.08 % | all of 16 by hand: weather, cooking, politics, sport, code … |

Most of the errors found in real answers are real: the answers ask for what the question already says, say nothing, or stop
in the middle. The formality rule looks only at words, and the formal answers written by hand are extreme cases.
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
"""An intent with fewer training answers takes the norms of all intents together."""


@dataclass(frozen=True)
class AnswerNorms:
    """What is normal for training answers: their length, the details they ask for, their topic words and their centroids."""

    max_words: dict[str, int]
    """The normal length limit in words, by intent; "" is for all intents together."""
    usual_requests: dict[str, frozenset[str]]
    """The details that answers to an intent ask for, by intent; "" is for all intents together."""
    topic_weights: np.ndarray
    """How specific each word of the vectorizer is to an intent, 0 to 1: shape [words]."""
    min_topic_weight: float
    """The smallest normal sum of topic weights over an answer's words."""
    vectorizer: "TfidfVectorizer"
    centroids: np.ndarray
    """Mean TF-IDF vector of each intent's answers, of length 1: [intents, words]."""
    min_cosine: float
    """The smallest normal cosine to the nearest centroid."""

    @classmethod
    def of(cls, answers: Sequence[str], intents: Sequence[str]) -> Self:
        """The norms of training ``answers`` with their ``intents``; 21,680 answers take seconds."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        groups: dict[str, list[int]] = defaultdict(list)
        for place, intent in enumerate(intents):
            groups[intent].append(place)
        words = np.array([len(answer.split()) for answer in answers])
        asks = [specific_details(answer) for answer in answers]
        with_norms: dict[str, Sequence[int]] = {"": range(len(answers))}
        with_norms |= {intent: places for intent, places in groups.items() if len(places) >= _MIN_ROWS}
        vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
        vectors = vectorizer.fit_transform(map(_plain, answers))
        rows = [np.array(places) for _, places in sorted(groups.items())]
        centroids = np.stack([np.asarray(vectors[places].mean(axis=0)).ravel() for places in rows])
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        used = np.stack([np.asarray((vectors[places] > 0).mean(axis=0)).ravel() for places in rows])
        typically = np.median(used, axis=0)
        topic_weights = np.where(typically <= _MAX_MEDIAN_SHARE, used.max(axis=0) - typically, 0)
        return cls(
            max_words={name: _max_words(words[list(places)]) for name, places in with_norms.items()},
            usual_requests={name: _usual_requests([asks[i] for i in places]) for name, places in with_norms.items()},
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
        vectors = self.vectorizer.transform(map(_plain, answers))
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

    ``questions`` include earlier turns, and ``intents`` are the true ones. ``right_intent`` and ``stopped`` are 1 or 0; NaN
    means unknown and does not count as an error.
    """
    stock_answers = _stock_answers(answers, intents)
    topic_weights, cosines = norms.topics(answers)
    given = zip(questions, answers, intents, right_intent, stopped, strict=True)
    table = [
        (
            _is_too_long(norms, answer, intent),
            bool(_needless_requests(norms, question, answer, intent)),
            repeats_itself(answer),
            is_too_formal(question, answer),
            _words_only(answer) in stock_answers or weight < norms.min_topic_weight,
            right == 0,
            ended == 0 or not ends_properly(answer),
            not is_balanced(answer),
            cosine < norms.min_cosine,
        )
        for (question, answer, intent, right, ended), weight, cosine in zip(given, topic_weights, cosines, strict=True)
    ]
    return pd.DataFrame(table, columns=list(ANSWER_ERRORS), dtype=bool)


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


def _usual_requests(asks: Sequence[frozenset[str]]) -> frozenset[str]:
    counts = Counter(detail for details in asks for detail in details)
    return frozenset(detail for detail, count in counts.items() if count >= _MIN_USUAL_SHARE * len(asks)) - _SECRETS


def _needless_requests(norms: AnswerNorms, question: str, answer: str, intent: str) -> frozenset[str]:
    asked = specific_details(answer)
    if not asked:
        return asked
    usual = norms.usual_requests.get(intent, norms.usual_requests[""])
    return frozenset(
        detail
        for detail in asked
        if detail not in usual or (detail in _ALREADY_SAID and _ALREADY_SAID[detail].search(question))
    )


# Repeats itself.

_SENTENCE_END = re.compile(r"(?<=[.!?:])[\"'”’)*]*\s+|\n+")
_MIN_SENTENCE_WORDS, _MAX_LOOP_WORDS, _MAX_REPEATED_SHARE = 4, 8, 1 / 7


def repeats_itself(answer: str) -> bool:
    """Whether a sentence of four words or more appears twice, a sequence of up to eight words follows itself twice (one or
    two words: three times), or more than a seventh of the four-word sequences are repeats."""
    text = _plain(answer).lower()
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
    run = 0
    for place in range(size, len(words)):
        run = run + 1 if words[place] == words[place - size] else 0
        if run >= needed:
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
"""A word is a topic word only if at most this share of the median intent's answers contain it."""
_STOCK_INTENTS = 3


def _stock_answers(answers: Sequence[str], intents: Sequence[str]) -> set[str]:
    """The answers that are given to questions of three intents or more, as their words only."""
    intents_of: dict[str, set[str]] = defaultdict(set)
    for answer, intent in zip(answers, intents, strict=True):
        intents_of[_words_only(answer)].add(intent)
    return {words for words, found in intents_of.items() if len(found) >= _STOCK_INTENTS}


def _words_only(answer: str) -> str:
    """Equal for answers that differ only in placeholders, numbers, case and punctuation."""
    return " ".join(re.findall(r"[^\W\d_]+", _plain(answer).lower()))


# Unfinished.

_END = re.compile(
    r"(?:[.!?…。！？]|\}\}|:\)|[\U0001f300-\U0001faff\u2600-\u27bf])[\"'”’»)\]*_\s\ufe0f]*\Z|(?:https?://|www\.)\S+\Z"
)


def ends_properly(answer: str) -> bool:
    """Whether ``answer`` ends like a sentence, or with a placeholder, a web address or an emoji; a colon is not an end."""
    return _END.search(answer) is not None


@lru_cache(maxsize=20_000)
def _plain(text: str) -> str:
    """``text`` without its placeholders, whose names are not words of the answer."""
    return re.sub(r"\{\{[^{}\n]*\}\}", " ", text)
