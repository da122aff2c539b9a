"""What is wrong with an answer, by rules: one column for each error, so that systems can be counted and examples
shown.

In: questions and answers with the question's true intent, whether the answer has the right intent, whether the model
stopped by itself, and ``AnswerNorms`` made of the training answers. Out: a row an answer in the order given, a column of
booleans for each of ERRORS. A share per system is the mean of its column; the shares of the reference answers, judged
as one more system, say how often a rule cries wolf.

Each rule was held against the 2,414 real answers of Bitext's validation and test rows, with norms of its 21,680
training rows, and against errors planted by rule in 300 of them or, for what no rule can write, by hand
(``cs_pipeline_tests/evaluate/planted.yaml``). 2.1 % of the real answers are called wrong by any rule.

| error | of the real answers | planted ones found |
|---|---|---|
| too_long | 0.33 % | 99.3 % of 300: three other answers to the intent behind it |
| asks_needlessly | 0.62 % | all of 300: a password, PIN or card asked for |
| repeats_itself | none | all of 300: its longest sentence, itself or a loop behind it |
| too_formal | 0.04 % | all of 12 by hand |
| generic | 0.99 % | 21 of 24 by hand |
| unfinished | 0.04 % | 97.7 % of 300: cut after any word; some are cut where a sentence may end |
| broken_placeholder | none | all of 300: a brace too few or too many |
| off_topic | 0.08 % | all of 16 by hand: weather, cooking, politics, sport, code … |

Read, the real answers that are called wrong are mostly so: they ask for what was said, say nothing, or stop in the
middle. The rules of tone know words, not manners; the formal answers by hand are strongly so.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from cs_pipeline.text.placeholders import is_balanced

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

ERRORS = {
    "too_long": "more words than 99 of 100 training answers to the same intent have, and half as many again as 95 of 100",
    "asks_needlessly": "asks for a password, a PIN, a card's number or code; for what the question already says; or for what"
    " hardly any training answer to the intent asks for",
    "repeats_itself": "a sentence twice, words in a loop, or a seventh of its runs of four words said before",
    "too_formal": "the form of a letter, or two turns of officialese, to a question of few words",
    "generic": "has fewer and fainter words of a topic than all but one in 100 training answers, or is said word for word to"
    " questions of three intents",
    "wrong_intent": "a classifier trained on training answers takes it for one of another intent",
    "unfinished": "the model did not stop by itself, or the last sentence has no end",
    "broken_placeholder": "braces that make no whole placeholder",
    "off_topic": "farther from every intent's training answers than all but one in 1,000 of these are",
}
"""The errors by name, and the rule of each."""

_FEWEST_ROWS = 50
"""An intent with fewer training answers is judged by all of them together."""


@dataclass(frozen=True)
class AnswerNorms:
    """What training answers are like: how long, what they ask for, which words tell their topic, where each intent lies."""

    lengths: dict[str, int]
    """The longest answer in words that is no error, by intent; under "" of all."""
    asked: dict[str, frozenset[str]]
    """What answers to an intent ask for, by intent; under "" of all."""
    telling: np.ndarray
    """How far each word of the vectorizer tells a topic, 0 to 1: shape [words]."""
    least_telling: float
    """The least sum over an answer's words that is no error."""
    vectorizer: "TfidfVectorizer"
    centres: np.ndarray
    """Mean TF-IDF vectors of the intents' answers, of length 1: [intents, words]."""
    nearest: float
    """The least cosine to a centre that is no error."""

    @classmethod
    def of(cls, answers: Sequence[str], intents: Sequence[str]) -> Self:
        """The norms that training ``answers`` and their ``intents`` set; 21,680 answers take seconds."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        groups: dict[str, list[int]] = defaultdict(list)
        for place, intent in enumerate(intents):
            groups[intent].append(place)
        words = np.array([len(answer.split()) for answer in answers])
        asks = [asks_for(answer) for answer in answers]
        judged: dict[str, Sequence[int]] = {"": range(len(answers))}
        judged |= {intent: places for intent, places in groups.items() if len(places) >= _FEWEST_ROWS}
        vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
        vectors = vectorizer.fit_transform(map(_plain, answers))
        rows = [np.array(places) for _, places in sorted(groups.items())]
        centres = np.stack([np.asarray(vectors[places].mean(axis=0)).ravel() for places in rows])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        used = np.stack([np.asarray((vectors[places] > 0).mean(axis=0)).ravel() for places in rows])
        elsewhere = np.median(used, axis=0)
        telling = np.where(elsewhere <= _ELSEWHERE, used.max(axis=0) - elsewhere, 0)
        return cls(
            lengths={name: _longest(words[list(places)]) for name, places in judged.items()},
            asked={name: _usually_asked([asks[place] for place in places]) for name, places in judged.items()},
            telling=telling,
            least_telling=float(np.quantile((vectors > 0) @ telling, 0.01)),
            vectorizer=vectorizer,
            centres=centres,
            nearest=float(np.quantile((vectors @ centres.T).max(axis=1), 0.001)),
        )

    def topics(self, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """How far each answer's words tell a topic, and its cosine to the nearest centre: two arrays of shape [answers]."""
        if not answers:
            return np.zeros(0), np.zeros(0)
        vectors = self.vectorizer.transform(map(_plain, answers))
        return (vectors > 0) @ self.telling, (vectors @ self.centres.T).max(axis=1)


def answer_errors(
    norms: AnswerNorms,
    questions: Sequence[str],
    answers: Sequence[str],
    intents: Sequence[str],
    right_intent: Sequence[float],
    stopped: Sequence[float],
) -> pd.DataFrame:
    """A column of booleans for each of ERRORS, a row an answer. The answers are those of one system.

    ``right_intent`` and ``stopped`` are 1 or 0, NaN where it is not known: then it is no error. ``questions`` hold earlier
    turns too.
    """
    said_everywhere = _said_everywhere(answers, intents)
    telling, cosines = norms.topics(answers)
    given = zip(questions, answers, intents, right_intent, stopped, strict=True)
    table = [
        (
            _is_too_long(norms, answer, intent),
            bool(_needless(norms, question, answer, intent)),
            repeats_itself(answer),
            is_too_formal(question, answer),
            _same(answer) in said_everywhere or tells < norms.least_telling,
            right == 0,
            ended == 0 or not is_finished(answer),
            not is_balanced(answer),
            cosine < norms.nearest,
        )
        for (question, answer, intent, right, ended), tells, cosine in zip(given, telling, cosines, strict=True)
    ]
    return pd.DataFrame(table, columns=list(ERRORS), dtype=bool)


# Too long.


def _longest(words: np.ndarray) -> int:
    return int(max(np.quantile(words, 0.99), 1.5 * np.quantile(words, 0.95)))


def _is_too_long(norms: AnswerNorms, answer: str, intent: str) -> bool:
    return len(answer.split()) > norms.lengths.get(intent, norms.lengths[""])


# Asks for details it does not need.

_DETAILS = {
    "order number": r"(?:order|purchase)(?: or \w+)? (?:number|id)\b|(?:number|id) of (?:the|your) (?:order|purchase)",
    "invoice number": r"(?:invoice|bill)(?: or \w+)? (?:number|id)\b",
    "tracking number": r"tracking (?:number|id)\b",
    "account number": r"(?:account|customer) (?:number|id)\b",
    "email": r"e-?mail address|your e-?mail\b",
    "phone": r"(?:phone|telephone|mobile|contact) number|number (?:we|i) can (?:call|reach)",
    "name": r"\b(?:your|full|first|last|client) name",
    "address": r"(?:your|full|new|current|home|shipping|delivery|postal|billing|street) address",
    "date": r"\bdate (?:of|range)\b|\bpurchase date|\bbirth\b",
    "username": r"\busername|\buser name",
    "country": r"\b(?:country|city|location)\b",
    "payment method": r"payment method",
    "secret": r"\b(?:password|PIN|PIN code|CVV|CVC|security code|card number|social security number)\b",
}
_DETAIL = {name: re.compile(pattern, re.I) for name, pattern in _DETAILS.items()}
_SECRETS = frozenset({"secret"})
_ASKS = re.compile(
    r"\b(?:(?:please|kindly|could you|can you|would you|could i|may i|i ask you to|i need you to)"
    r"[\w ,]{0,40}?\b(?:provide|share|send|tell|give|specify|supply|enter|reply with|let (?:me|us) know)\b"
    r"|(?:i|we)(?:['’]ll| will| would|['’]d)?(?: also| just| kindly)? (?:need|require)\b(?! to)"
    r"|what(?: is|['’]s) your|(?:may|could|can) (?:i|we) (?:please )?have)\b(?P<what>[^.?!\n]*)",
    re.I,
)
_ALREADY_SAID = {
    "order number": re.compile(r"\{\{Order Number\}\}|\border (?:number |no\.? |#)*[A-Z-]*\d{4,}", re.I),
    "invoice number": re.compile(r"\{\{Invoice Number\}\}|\b(?:invoice|bill) (?:number |no\.? |#)*[A-Z-]*\d{4,}", re.I),
    "email": re.compile(r"\{\{Customer Email\}\}|\S@\S"),
}
_HARDLY_ANY = 0.005


def asks_for(answer: str) -> frozenset[str]:
    """The kinds of details (order number, e-mail address …) that ``answer`` asks the customer for."""
    asked = " | ".join(_NAMED.sub(" ", match["what"]) for match in _ASKS.finditer(answer))
    return frozenset(name for name, pattern in _DETAIL.items() if asked and pattern.search(asked))


_NAMED = re.compile(r"\w+ \w+ #?\{\{[^{}\n]*\}\}")  # "about the order number {{Order Number}}" asks for no number


def _usually_asked(asks: Sequence[frozenset[str]]) -> frozenset[str]:
    counts = Counter(detail for details in asks for detail in details)
    return frozenset(detail for detail, count in counts.items() if count >= _HARDLY_ANY * len(asks)) - _SECRETS


def _needless(norms: AnswerNorms, question: str, answer: str, intent: str) -> frozenset[str]:
    asked = asks_for(answer)
    if not asked:
        return asked
    usual = norms.asked.get(intent, norms.asked[""])
    return frozenset(
        detail
        for detail in asked
        if detail not in usual or (detail in _ALREADY_SAID and _ALREADY_SAID[detail].search(question))
    )


# Repeats itself.

_SENTENCE_END = re.compile(r"(?<=[.!?:])[\"'”’)*]*\s+|\n+")
_LONG_ENOUGH, _LOOP, _MOST_REPEATED = 4, 8, 1 / 7


def repeats_itself(answer: str) -> bool:
    """Whether a sentence of four words or more stands twice, up to eight words follow themselves twice (one or two words:
    three times), or more than a seventh of the runs of four words have stood before."""
    text = _plain(answer).lower()
    sentences = [tuple(re.findall(r"\w+", part)) for part in _SENTENCE_END.split(text)]
    if any(count > 1 for words, count in Counter(sentences).items() if len(words) >= _LONG_ENOUGH):
        return True
    words = re.findall(r"\w+", text)
    runs = list(zip(*(words[start:] for start in range(4)), strict=False))
    again = len(runs) - len(set(runs))
    if len(runs) >= 8 and again > _MOST_REPEATED * len(runs):
        return True
    # A loop of three words and more says runs of four again.
    return any(_loops(words, size) for size in range(1, _LOOP + 1 if again else 3))


def _loops(words: Sequence[str], size: int) -> bool:
    needed = size * (3 if size <= 2 else 2)
    run = 0
    for place in range(size, len(words)):
        run = run + 1 if words[place] == words[place - size] else 0
        if run >= needed:
            return True
    return False


# Too formal for a simple question.

_SIMPLE_WORDS = 15
_LETTER = re.compile(
    r"\bdear (?:sir|madam|valued|esteemed)|\bto whom it may concern|\byours (?:faithfully|sincerely|truly)"
    r"|\b(?:most )?respectfully yours|\bi remain,|\bwith (?:the )?(?:kindest|highest) (?:regards|esteem)",
    re.I,
)
_OFFICIALESE = re.compile(
    r"\b(?:hereby|herewith|hereinafter|heretofore|thereof|therein|hitherto|henceforth|aforementioned|aforesaid"
    r"|pursuant to|in accordance with|with (?:reference|respect) to|in reference to|in the event that|notwithstanding"
    r"|we regret to (?:inform|advise)|(?:wish|would like|beg) to (?:inform|advise|apprise) you|please be (?:advised"
    r"|informed)"
    r"|be so kind as to|at your earliest convenience|should you (?:require|necessitate)|we endeavou?r|shall (?:be"
    r"|endeavou?r)"
    r"|furnish (?:us|me)|esteemed|prior to the commencement|duly|forthwith|undersigned|enclosed please find|ascertain"
    r"|the (?:customer|client|user) (?:is|shall)|it is incumbent|we are in receipt|kindly be|remit(?:ted|tance)?)\b",
    re.I,
)


def is_too_formal(question: str, answer: str) -> bool:
    """Whether a question of at most 15 words is answered as by a letter, or in officialese (two different turns of it)."""
    if len(question.split()) > _SIMPLE_WORDS:
        return False
    return bool(_LETTER.search(answer)) or len({match.lower() for match in _OFFICIALESE.findall(answer)}) >= 2


# Generic.

_ELSEWHERE = 0.01
"""A word tells a topic by the share of an intent's answers that have it, unless this share of the median intent's do too."""
_EVERYWHERE = 3


def _said_everywhere(answers: Sequence[str], intents: Sequence[str]) -> set[str]:
    asked: dict[str, set[str]] = defaultdict(set)
    for answer, intent in zip(answers, intents, strict=True):
        asked[_same(answer)].add(intent)
    return {answer for answer, those in asked.items() if len(those) >= _EVERYWHERE}


def _same(answer: str) -> str:
    """What two answers share that differ in placeholders, numbers, case and punctuation alone."""
    return " ".join(re.findall(r"[^\W\d_]+", _plain(answer).lower()))


# Unfinished.

_END = re.compile(
    r"(?:[.!?…。！？]|\}\}|:\)|[\U0001f300-\U0001faff\u2600-\u27bf])[\"'”’»)\]*_\s\ufe0f]*\Z|(?:https?://|www\.)\S+\Z"
)


def is_finished(answer: str) -> bool:
    """Whether ``answer`` ends as a sentence does, or with a placeholder, an address or a smile; a colon promises more."""
    return _END.search(answer) is not None


@lru_cache(maxsize=20_000)
def _plain(text: str) -> str:
    """``text`` without its placeholders: their names are no words of the answer."""
    return re.sub(r"\{\{[^{}\n]*\}\}", " ", text)
