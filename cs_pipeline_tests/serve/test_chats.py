"""200 chats of two and three turns with a look-up: no answer is repeated, and messages are read in their context."""

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cs_pipeline.company import Company, company_file, load_company
from cs_pipeline.prepare.router import train_router
from cs_pipeline.prepare.splits.conversations import join_conversations
from cs_pipeline.prepare.splits.split import SPLITS
from cs_pipeline.prepare.splits.split_tables import write_split
from cs_pipeline.prepare.subjects.discovery import Ticket
from cs_pipeline.prepare.subjects.subjects import find_subjects
from cs_pipeline.retrieval.index import build_index
from cs_pipeline.serve.desk.desk import Desk, DeskRequest, Reply
from cs_pipeline.text.placeholders import Speaker
from cs_pipeline_tests.conftest import copy_lake, own_world
from cs_pipeline_tests.prepare.subjects import land_tickets
from cs_pipeline_tests.support.grammar import ONE_OFF, provider_tickets
from cs_pipeline_tests.support.serving import running_service

CHATS = 200
KNOWN, ASKED = provider_tickets(600, seed=41), provider_tickets(1200, seed=42)
"""The tickets in the lake, and those whose questions customers ask, each with the true subject of each conversation."""


@pytest.fixture(scope="module")
def desk(lookup_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk whose champion is a look-up that knows KNOWN."""
    lake = copy_lake(lookup_lake, tmp_path_factory.mktemp("chats") / "lake")
    company_file(lake).unlink()
    with own_world(lake.root):
        land_tickets(lake, KNOWN[0])
        find_subjects(lake, load_company(lake))
        join_conversations(lake)
        train_router(lake, "")
        for split in SPLITS:
            write_split(lake, split)
        build_index(lake)
        with running_service(lake) as service:
            desk = Desk(service, Company(), lake)
            yield desk
            desk.close()


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", re.sub(r"\{\{.*?\}\}", " ", text).lower()))


@cache
def subject_of(answer: str) -> str:
    """The true subject of the known ticket with the most similar answer."""
    own = words(answer)
    nearest = max(KNOWN[0], key=lambda ticket: len(own & words(ticket.answer)) / len(own | words(ticket.answer)))
    return KNOWN[1][nearest.conversation]


def is_right(reply: Reply, subject: str) -> bool:
    return reply.author == "model" and subject_of(reply.sources[0].text) == subject


def chat(desk: Desk, messages: list[str]) -> list[Reply]:
    """The replies to these messages of one customer."""
    earlier: list[tuple[Speaker, str]] = []
    replies: list[Reply] = []
    for message in messages:
        replies.append(desk.reply(DeskRequest(message, earlier)))
        earlier += [("customer", message), ("agent", replies[-1].text)]
    return replies


def opening_questions() -> list[tuple[str, str]]:
    """Questions that are not in the lake, each once, with their true subjects."""
    tickets, subjects = ASKED
    known = {ticket.question.lower() for ticket in KNOWN[0]}
    first: dict[str, Ticket] = {}
    for ticket in tickets:
        first.setdefault(ticket.conversation, ticket)
    of_question = {ticket.question: subjects[conversation] for conversation, ticket in first.items()}
    return [pair for pair in of_question.items() if pair[1] != ONE_OFF and pair[0].lower() not in known]


QUESTIONS = opening_questions()


def test_no_chat_goes_round_in_circles(desk: Desk) -> None:
    """The customer asks, thanks or asks something else, and asks the first question again in other words."""
    chance = random.Random(0)
    by_subject: dict[str, list[str]] = {}
    for question, subject in QUESTIONS:
        by_subject.setdefault(subject, []).append(question)
    answered = 0
    often = sorted(subject for subject, questions in by_subject.items() if len(questions) > 3)
    for number in range(CHATS):
        own, other = chance.sample(often, 2)
        first, again = chance.sample(by_subject[own], 2)
        between = chance.choice([[], ["ok thanks"], [chance.choice(by_subject[other])]])
        replies = chat(desk, [first, *between, again])
        answers = [reply.text for reply in replies if reply.author == "model"]
        assert len(set(answers)) == len(answers), (number, first, between, again)
        answered += len(answers)
    assert answered > CHATS, "most questions are answered"


def test_a_question_in_two_messages_is_answered_as_well_as_in_one(desk: Desk) -> None:
    """The second message of a customer says little alone. With the first one before it, it is the whole question."""
    halves = [
        (*question.split(", ", 1), subject)
        for question, subject in QUESTIONS
        if question.count(", ") == 1 and min(len(half.split()) for half in question.split(", ")) >= 3
    ][: CHATS // 2]
    assert len(halves) > CHATS // 4
    second = whole = alone = 0
    for start, end, subject in halves:
        replies = chat(desk, [start, end])
        whole += is_right(desk.reply(DeskRequest(f"{start}, {end}")), subject)
        alone += is_right(desk.reply(DeskRequest(end)), subject)
        second += any(is_right(reply, subject) for reply in replies)
    assert second >= whole
    assert second > alone, "the context is needed"


def test_another_question_in_the_second_turn_is_answered_as_well_as_alone(desk: Desk) -> None:
    pairs = list(zip(QUESTIONS[:CHATS:2], QUESTIONS[1:CHATS:2], strict=True))
    others = [(first, question, subject) for (first, own), (question, subject) in pairs if own != subject]
    in_turn = sum(is_right(chat(desk, [first, question])[1], subject) for first, question, subject in others)
    alone = sum(is_right(desk.reply(DeskRequest(question)), subject) for _, question, subject in others)
    assert in_turn >= alone > len(others) / 2
