"""Names for subjects: two or three words that customers use, more keywords, and a readable id.

A word is used only if conversations of at least two customers contain it. So a person's name that cleaning has missed
does not become part of an id, which would remain when that customer is forgotten.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cs_pipeline.prepare.subjects.discovery import Ticket
from cs_pipeline.text.placeholders import without_placeholders

KEYWORDS = 8

_ANSWER_WEIGHT = 0.5
"""A word in all answers of a subject counts as much as one in half of its questions."""

_THIRD_WORD = 0.5
"""A name gets a third word if that word's score is at least this share of the second word's."""

_WORD = re.compile(r"[^\W\d_][\w'’-]*[^\W_]|[A-Za-z]\d{2,}")

_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\S+",
        """
        a about above after again all also am an and any anyone anything april are aren't as at august be because
        been before being but by can can't cannot could customer day days dear december did didn't do does doesn't
        doing don't down else ever every february for friday from further get gets getting give go goes going got had
        has have haven't having he hello help her here hey hi him his how i i'd i'll i'm i've if in into is isn't it
        it's its january july june just know let like made make many march may me monday more most much must my need
        needs new no not november now october of off on once one only onto or other our out over own please possible
        question quick regards same saturday see september she should since sir so some still such sunday sure tell
        than thank thanks that that's the their them then there these they this those three through thursday to today
        tomorrow too tuesday two under until up upon urgent us use very want wants was wasn't way we wednesday week
        weeks well were what what's when where whether which while who whom why will with won't would yes yesterday
        yet you you're your yours
        """,
    )
)


@dataclass(frozen=True)
class SubjectName:
    """A name, the words that it is made of and more ``keywords``, most typical first."""

    name: str
    keywords: tuple[str, ...]


def name_subjects(
    subjects: Mapping[str, Sequence[Ticket]], given: Mapping[str, str], left_out: Collection[str]
) -> dict[str, SubjectName]:
    """A name for each of ``subjects``, by id, from its tickets: one per conversation. No two have the same name.

    ``given`` has the names of subjects that a person or the export has named. ``left_out`` are texts, such as the
    company's name, whose words no name may contain.
    """
    stop_words = _FUNCTION_WORDS | {word.lower() for text in left_out for word in _WORD.findall(text)}
    words = {
        subject: [(_words(ticket.question, stop_words), _words(ticket.answer, stop_words)) for ticket in tickets]
        for subject, tickets in subjects.items()
    }
    scores = class_tfidf({subject: _shares(subjects[subject], words[subject]) for subject in subjects})
    taken, found = {name.casefold() for name in given.values()}, {}
    for subject in sorted(subjects, key=lambda subject: (-len(subjects[subject]), subject)):
        score = scores[subject]
        ranked = sorted(score, key=lambda word: (-score[word], word))
        name = given.get(subject)
        if name is None:
            chosen = _name_words(ranked, score, [question for question, _ in words[subject]])
            options = _options(chosen, [word for word in ranked if word not in chosen], " ")
            name = next(option for option in options if option.casefold() not in taken)
            name = name[0].upper() + name[1:]
        taken.add(name.casefold())
        found[subject] = SubjectName(name, tuple(ranked[:KEYWORDS]))
    return found


def subject_id(name: SubjectName, taken: Collection[str]) -> str:
    """An id that reads like ``name`` and is not ``taken``: ``late_fee_reminder``."""
    words = _slug(name.name).split("_")
    more = (_slug(word) for word in name.keywords)
    return next(
        option for option in _options(words, [word for word in more if word not in words], "_") if option not in taken
    )


def class_tfidf(shares: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The c-TF-IDF (Grootendorst 2022, arXiv:2203.05794) of each class's words, from the share of its texts with the word.

    With shares instead of counts, a large class does not make its words common.
    """
    total: defaultdict[str, float] = defaultdict(float)
    for words in shares.values():
        for word, share in words.items():
            total[word] += share
    mean = sum(total.values()) / max(len(shares), 1)
    return {
        name: {word: share * float(np.log1p(mean / total[word])) for word, share in words.items()}
        for name, words in shares.items()
    }


def _shares(tickets: Sequence[Ticket], words: Sequence[tuple[list[str], list[str]]]) -> dict[str, float]:
    """For each word that at least two customers' tickets contain, the weighted share of the ``tickets`` with it."""
    weights: defaultdict[str, float] = defaultdict(float)
    who: defaultdict[str, set[str]] = defaultdict(set)
    for ticket, (question, answer) in zip(tickets, words, strict=True):
        for word in {*question, *answer}:
            weights[word] += (word in question) + _ANSWER_WEIGHT * (word in answer)
            who[word].add(ticket.customer or ticket.conversation)
    return {word: weight / len(tickets) for word, weight in weights.items() if len(who[word]) > 1}


def _words(text: str, stop_words: Collection[str]) -> list[str]:
    words = (match[0].lower() for match in _WORD.finditer(without_placeholders(text)))
    return [word for word in words if word not in stop_words]


def _name_words(ranked: Sequence[str], score: Mapping[str, float], questions: Sequence[Sequence[str]]) -> list[str]:
    """The best words of the ``questions``, in the order in which customers write them."""
    common = Counter(word for words in questions for word in set(words))
    chosen: list[str] = []
    for word in [word for word in ranked if common[word] > 1] or ranked:
        if any(word.startswith(other[:4]) for other in chosen):  # "cancel", "cancellation"
            continue
        if len(chosen) == 3 or (len(chosen) == 2 and score[word] < _THIRD_WORD * score[chosen[1]]):
            break
        chosen.append(word)
    return sorted(chosen, key=lambda word: _mean_place(word, questions))


def _mean_place(word: str, texts: Sequence[Sequence[str]]) -> float:
    places = [words.index(word) / len(words) for words in texts if word in words]
    return float(np.mean(places)) if places else 1.0


def _options(words: Sequence[str], more: Sequence[str], joint: str) -> Iterator[str]:
    """``words`` joined, then with one of the words ``more``, then with numbers."""
    words = list(words) or ["subject"]
    yield joint.join(words)
    for word in more:
        yield joint.join([*words, word])
    number = 2
    while True:
        yield joint.join([*words, str(number)])
        number += 1


def _slug(text: str) -> str:
    return "_".join(re.findall(r"[^\W_]+", text.lower())) or "subject"
