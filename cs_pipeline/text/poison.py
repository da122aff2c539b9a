"""Flags rows that may have been written to influence the model, and not for the support desk.

Whatever a customer writes to the desk can become training data. A row is flagged for control tokens of chat templates,
hidden text, prompt injection, repeated copies from one customer, too many rows from one customer, or an answer that does not
fit the question. None of these proves an attack, so nothing is deleted: a flagged row waits until a person releases it.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cs_pipeline.core.yaml_file import any_of, read_yaml
from cs_pipeline.text.safety import has_control_token

MIN_COPIES = 5
"""If one customer sends at least this many near-equal questions in a day, all of them are flagged."""
NEAR_EQUAL = 0.8
"""Two questions are near-equal if the Jaccard similarity of their 4-character shingles is at least this."""
CONFIDENT = 0.8
"""The two classifiers contradict each other only if the confidence of both is at least this.

The classifiers were trained on 16,000 Bitext rows and tested on 8,000 others. An answer taken from a row of another intent
was flagged in 93 % of the cases, the right answer in 0.09 %.
"""

CONTROL_TOKEN = "a control token of a chat template"
HIDDEN = "invisible characters inside words"
DIRECTION = "characters that change the text direction"
LOOK_ALIKE = "letters of another alphabet inside a word"
PROMPT_INJECTION = "a phrase that instructs a language model"
COMMAND = "a command to whoever answers"
REPEATED = f"one of {MIN_COPIES} or more near-equal questions of one customer in a day"
ANSWER_ELSEWHERE = "the answer has another intent than the question"


@dataclass(frozen=True)
class Suspect:
    """A row to be checked.

    ``delivered`` is all its text as delivered (question, answer, earlier turns), because cleaning removes some of the
    evidence. ``question`` is cleaned. ``subject`` is the customer's hashed id, None if the file names no customer. The
    intents and their confidences are predictions of the classifiers for questions and for answers.
    """

    delivered: str
    question: str
    subject: str | None
    intent: str
    intent_confidence: float
    answer_intent: str
    answer_confidence: float


def row_reasons(rows: Sequence[Suspect], rows_per_subject: int) -> list[str | None]:
    """For each of a day's ``rows``, the reason for a review before training, None if there is none.

    A customer's rows beyond the first ``rows_per_subject`` are flagged too. A reason never quotes the row.
    """
    too_many = f"beyond the {rows_per_subject} rows of one customer and day that may train"
    counts: Counter[str] = Counter()
    indices_by_subject: dict[str, list[int]] = defaultdict(list)
    reasons_by_row: list[list[str]] = []
    for index, row in enumerate(rows):
        reasons = text_reasons(row.delivered)
        confident = min(row.intent_confidence, row.answer_confidence) >= CONFIDENT
        if confident and row.intent != row.answer_intent:
            reasons.append(ANSWER_ELSEWHERE)
        if row.subject is not None:
            counts[row.subject] += 1
            if counts[row.subject] > rows_per_subject:
                reasons.append(too_many)
            else:
                indices_by_subject[row.subject].append(index)
        reasons_by_row.append(reasons)
    for indices in indices_by_subject.values():
        for index in _copies(rows, indices):
            reasons_by_row[index].append(REPEATED)
    return ["; ".join(reasons) or None for reasons in reasons_by_row]


def text_reasons(text: str) -> list[str]:
    """The reasons for a review that ``text`` alone gives. It must be the text as delivered."""
    reasons = []
    if has_control_token(text):
        reasons.append(CONTROL_TOKEN)
    if not text.isascii():
        if _HIDDEN.search(text):
            reasons.append(HIDDEN)
        if _OVERRIDE.search(text) or (_EMBEDDING.search(text) and not _RIGHT_TO_LEFT.search(text)):
            reasons.append(DIRECTION)
        if _has_look_alikes(text):
            reasons.append(LOOK_ALIKE)
    if _INJECTION.search(_letters(text)):
        reasons.append(PROMPT_INJECTION)
    return reasons


def article_reasons(text: str) -> list[str]:
    """The reasons not to use ``text``, which is part of a help article, in answers.

    Articles are also searched for commands to an agent or model. A customer may write "ignore my message above", but an
    article, which is written for customers, has no reason to.
    """
    return [*text_reasons(text), *([COMMAND] if _COMMAND.search(text) else [])]


def _copies(rows: Sequence[Suspect], indices: list[int]) -> list[int]:
    """The ``indices`` in groups of at least ``MIN_COPIES``. All questions of a group are near-equal to its first."""
    if len(indices) < MIN_COPIES:
        return []
    groups: list[tuple[frozenset[str], list[int]]] = []
    for index in indices:
        shingles = _shingles(rows[index].question)
        for representative, members in groups:
            shared = len(shingles & representative)
            if shared >= NEAR_EQUAL * (len(shingles) + len(representative) - shared):
                members.append(index)
                break
        else:
            groups.append((shingles, [index]))
    return [index for _, members in groups if len(members) >= MIN_COPIES for index in members]


def _shingles(text: str) -> frozenset[str]:
    padded = " ".join(text.lower().split()).ljust(4)
    return frozenset(padded[start : start + 4] for start in range(len(padded) - 3))


# Invisible characters between Latin, Greek or Cyrillic letters or digits, which do not need them. (Persian and emoji do.)
# Runs of tags or variation selectors can encode ASCII invisibly. The flag emoji of some regions contain up to seven tags.
_JOINED = r"[A-Za-zÀ-ɏͰ-ӿ\d]"
_HIDDEN = re.compile(
    rf"(?<={_JOINED})[\u200b-\u200d\u2060-\u2064\ufeff\u180e]+(?={_JOINED})"
    r"|[\U000e0000-\U000e007f]{8,}|[\ufe00-\ufe0f]{2,}|[\U000e0100-\U000e01ef]{2,}"
)
_OVERRIDE = re.compile("[\u202d\u202e]")
# Not before a phone number: address books put an embedding mark there, and people copy it with the number.
_EMBEDDING = re.compile("[\u202a\u202b\u2066-\u2068](?![+(\\d])")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")

_LOOK_ALIKES = str.maketrans(
    "аАеЕоОрРсСуУхХіІјЈѕЅһԁԛԝѵӏВНКМТкмнтαΑεΕηΗιΙκΚΜνΝοΟρΡτΤυΥχΧΒΖ",
    "aAeEoOpPcCyYxXiIjJsShdqwvlBHKMTkmhtaAeEnHiIkKMvNoOpPtTuYxXBZ",
)
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-zÀ-ɏ]")
_OTHER = re.compile("[Ͱ-ӿ\u0500-\u052f]")

# Digits and signs used as letters: "1gn0re".
_LEET = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "|": "l"})


def _has_look_alikes(text: str) -> bool:
    """Whether a Latin word contains look-alike letters of another alphabet. False if the text has words of that alphabet."""
    is_mixed = False
    for word in _WORD.findall(text):
        if not _OTHER.search(word):
            continue
        if _OTHER.search(word.translate(_LOOK_ALIKES)):
            return False
        is_mixed = is_mixed or bool(_LATIN.search(word))
    return is_mixed


def _letters(text: str) -> str:
    """The letters a to z of ``text``; look-alikes, accents and digits used as letters are converted to plain letters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.translate(_LOOK_ALIKES))
    return re.sub("[^a-z]+", "", text.lower().translate(_LEET))


_RULES = read_yaml(Path(__file__).with_suffix(".yaml"))
# Texts are in lower case when this is searched: ignoring case takes four times as long.
_INJECTION = any_of(re.sub(r"(?<=\S) +", "", _RULES["injections"]), _RULES["words"], re.NOFLAG)
_COMMAND = any_of(_RULES["commands"], _RULES["words"])
