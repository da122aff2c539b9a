"""Conversations of an invented broadband provider, generated from ``broadband.yaml``. The same seed gives the same ones."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.prepare.subjects.discovery import Ticket

WEEKS = 26
FIRST_DAY = date(2026, 1, 5)

ONE_OFF = "one-off"
"""The true subject of questions that belong to no subject."""

# Shares of the questions, answers and conversations.
_VAGUE, _HOLDING, _FOLLOW_UP, _OPENING, _ENDING, _TYPO, _LOWER = 0.03, 0.06, 0.12, 0.35, 0.3, 0.15, 0.2
_LARGEST, _DECAY, _FLOOR = 12.0, 0.88, 0.12  # the sizes of the subjects
_LAUNCH = (9, 14)  # the weeks in which subjects are launched
_CHOICE = re.compile(r"\(([^()]*)\)|<(\w+)>")


@dataclass(frozen=True)
class _Entry:
    """A subject in one wording: it lives in the weeks from ``start`` up to ``end``."""

    subject: str
    share: float
    start: int
    end: int
    questions: list[str]
    answers: list[str]


def provider_tickets(
    conversations: int, seed: int, landings: int = WEEKS, launched: int = 0
) -> tuple[list[Ticket], dict[str, str]]:
    """Tickets of half a year by day of delivery, and the true subject of each conversation. Some have a second message.

    ``launched`` subjects, drawn with the seed, start in the third or fourth month. Two more always do (``late_subjects``).
    """
    entries, phrases, one_off_texts = _grammar()
    starts = late_subjects(seed, launched)
    entries = [replace(entry, start=starts.get(entry.subject, entry.start)) for entry in entries]
    rng = random.Random(seed)
    places = rng.sample(range(conversations), len(one_off_texts)) if conversations > len(one_off_texts) else []
    one_offs = dict(zip(places, one_off_texts, strict=False))
    tickets: list[Ticket] = []
    subjects: dict[str, str] = {}
    for number in range(conversations):
        week = number * WEEKS // conversations
        entry = rng.choices(entries, [entry.share * (entry.start <= week < entry.end) for entry in entries])[0]
        landing = number * landings // conversations
        day = FIRST_DAY + timedelta(weeks=landing * WEEKS // landings)
        tickets += _conversation(number, day, entry, one_offs.get(number), phrases, rng)
        subjects[f"c{number}"] = ONE_OFF if number in one_offs else entry.subject
    return tickets, subjects


def late_subjects(seed: int, launched: int = 0) -> dict[str, int]:
    """The week in which each subject starts that is not there from the first week on."""
    entries, rng = _grammar()[0], random.Random(seed + 1_000)
    always = [entry.subject for entry in entries if (entry.start, entry.end) == (0, WEEKS)]
    old = {entry.subject for entry in entries if entry.start == 0}
    drawn = {*rng.sample(always, launched)}
    starts = {entry.subject: entry.start for entry in entries if entry.subject not in old}
    return starts | {subject: rng.randint(*_LAUNCH) for subject in always if subject in drawn}


@cache
def _grammar() -> tuple[list[_Entry], dict[str, list[str]], list[list[str]]]:
    content = read_yaml(Path(__file__).with_name("broadband.yaml"))
    subjects: dict[str, str] = content["subjects"]
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(key.split()[0].rstrip("+") for key in subjects))}
    entries = []
    for key, lines in subjects.items():
        (name, *weeks), texts = key.split(), lines.strip().splitlines()
        start, end = map(int, weeks or (0, WEEKS))
        answers = [text[1:].strip() for text in texts if text.startswith(">")]
        share = _LARGEST * _DECAY ** ranks[name.rstrip("+")] + _FLOOR
        entries.append(_Entry(name.rstrip("+"), share, start, end, texts[: -len(answers)], answers))
    return entries, content["phrases"], content["one_offs"]


def _conversation(
    number: int, day: date, entry: _Entry, one_off: list[str] | None, phrases: dict[str, list[str]], rng: random.Random
) -> Iterator[Ticket]:
    pick, chance = rng.choice, rng.random
    question, answer = one_off or (pick(entry.questions), pick(entry.answers))
    if not one_off:
        question = pick(phrases["vague"]) if chance() < _VAGUE else question
        answer = pick(phrases["holding"]) if chance() < _HOLDING else answer
    question, answer = (_expand(text, phrases, rng) for text in (question, answer))
    question = (pick(phrases["openings"]) if chance() < _OPENING else "") + question
    question += pick(phrases["endings"]) if chance() < _ENDING else ""
    question = _mistyped(question, rng) if chance() < _TYPO else question
    question = question.lower() if chance() < _LOWER and "{" not in question else question[0].upper() + question[1:]
    answer = pick(phrases["greetings"]) + answer + pick(phrases["signoffs"])
    yield Ticket(f"r{number}", f"c{number}", None, day, question, answer)
    if chance() < _FOLLOW_UP:
        yield Ticket(f"r{number}b", f"c{number}", None, day, pick(phrases["followups"]), pick(phrases["closings"]))


def _expand(text: str, phrases: dict[str, Any], rng: random.Random) -> str:
    while match := _CHOICE.search(text):
        options = match[1].split("|") if match[2] is None else phrases[match[2]]
        text = text[: match.start()] + rng.choice(options) + text[match.end() :]
    return re.sub(r"\s+([.,;?])", r"\1", re.sub(r"\s+", " ", text)).strip()


def _mistyped(text: str, rng: random.Random) -> str:
    """``text`` with two letters of one word swapped, a letter dropped or a letter doubled; placeholders stay."""
    words = [match for match in re.finditer(r"\{\{.*?\}\}|([A-Za-z]{4,})", text) if match[1]]
    if not words:
        return text
    at = rng.choice(words).start() + rng.randrange(1, 3)
    return text[:at] + rng.choice([text[at + 1] + text[at], text[at], text[at] * 2 + text[at + 1]]) + text[at + 2 :]
