import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_pipeline.prepare.company.pairs import EARLIER_MESSAGES, QuestionAnswer, TicketMessage, pair

Turns = list[tuple[str, str]]
RECEIPT = ("agent", "Your request (#4711) has been received and is being reviewed.")


def texts_and_reasons(turns: Turns) -> list[tuple[str, str | None, str | None]]:
    """Question, answer and reason of each pair."""
    return [(p.question.text, p.answer.text if p.answer else None, p.reason) for p in pair(turns).pairs]


def test_a_question_and_its_answer() -> None:
    (only,) = pair([("customer", "Where is it?"), ("agent", "On its way.")]).pairs
    assert (only.question.text, only.question.turns) == ("Where is it?", (0,))
    assert only.answer is not None
    assert (only.answer.text, only.answer.turns) == ("On its way.", (1,))
    assert (only.context, only.reason) == ((), None)


def test_consecutive_turns_of_one_side_are_one_message() -> None:
    turns = [
        ("customer", "Hello."),
        ("customer", "Where is it?\n\nSent from my iPhone"),
        ("agent", "Let me see."),
        ("agent", "On its way.\n\nBest regards,\nJane"),
    ]
    (only,) = pair(turns).pairs
    assert (only.question.text, only.question.turns) == ("Hello.\nWhere is it?", (0, 1))
    assert only.question.raw == "Hello.\nWhere is it?\n\nSent from my iPhone"
    assert only.answer is not None
    assert (only.answer.text, only.answer.turns) == ("Let me see.\nOn its way.", (2, 3))


def test_up_to_three_earlier_messages_are_the_context() -> None:
    turns = [("agent", "Welcome!")]
    for number in range(3):
        turns += [("customer", f"Question {number}?"), ("agent", f"Answer {number}.")]
    contexts = [[(m.role, m.text) for m in p.context] for p in pair(turns).pairs]
    assert contexts == [
        [("agent", "Welcome!")],
        [("agent", "Welcome!"), ("customer", "Question 0?"), ("agent", "Answer 0.")],
        [("agent", "Answer 0."), ("customer", "Question 1?"), ("agent", "Answer 1.")],
    ]
    assert EARLIER_MESSAGES == 3


def test_an_automatic_reply_is_not_an_answer() -> None:
    turns = [
        ("customer", "Where is it?"),
        RECEIPT,
        ("automatic", "You are number 3 in the queue."),
        ("agent", "On its way."),
        RECEIPT,
    ]
    assert texts_and_reasons(turns) == [("Where is it?", "On its way.", None)]
    assert pair(turns).automatic == 3
    assert pair(turns).pairs[0].answer == TicketMessage("agent", "On its way.", "On its way.", (3,))


def test_questions_before_and_after_an_automatic_reply_are_one() -> None:
    turns = [("customer", "Where is it?"), RECEIPT, ("customer", "Hello?"), ("agent", "On its way.")]
    assert texts_and_reasons(turns) == [("Where is it?\nHello?", "On its way.", None)]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("customer", "Where is it?")], ("Where is it?", None, "no answer by a person")),
        ([("customer", "Where is it?"), RECEIPT], ("Where is it?", None, "no answer by a person")),
        (
            [("customer", "Where is it?"), ("agent", "Best regards,\nJane")],
            ("Where is it?", "", "answer is only a signature or quoted mail"),
        ),
        (
            [("customer", "> On its way."), ("agent", "What can I do?")],
            ("", "What can I do?", "question is only a signature or quoted mail"),
        ),
        (
            [("customer", "I am out of the office until Monday."), ("agent", "On its way.")],
            ("I am out of the office until Monday.", None, "automatic reply"),
        ),
    ],
)
def test_an_unusable_pair_has_its_reason(turns: Turns, expected: tuple[str, str | None, str]) -> None:
    assert texts_and_reasons(turns) == [expected]


def test_a_customers_out_of_office_reply_is_neither_answer_nor_question() -> None:
    turns = [
        ("customer", "Where is it?"),
        ("agent", "Which one?"),
        ("customer", "I am on vacation until Monday."),
        ("agent", "Are you there?"),
        ("customer", "The red one."),
        ("agent", "On its way."),
    ]
    assert texts_and_reasons(turns) == [
        ("Where is it?", "Which one?\nAre you there?", None),
        ("I am on vacation until Monday.", None, "automatic reply"),
        ("The red one.", "On its way.", None),
    ]


def test_the_companys_own_automatic_replies_are_removed() -> None:
    turns = [("customer", "Where is it?"), ("agent", "Brightbot: a colleague takes over.")]
    assert pair(turns).pairs[0].reason is None
    found = pair(turns, [re.compile("^Brightbot:")])
    assert (found.pairs[0].reason, found.automatic) == ("no answer by a person", 1)


def test_without_a_customers_message_there_is_no_pair() -> None:
    assert pair([]).pairs == []
    assert pair([("agent", "Hello?"), ("agent", "Anybody there?")]).pairs == []


texts = st.sampled_from(
    ["Where is it?", "On its way.", "", "Best regards,\nJane", "> quoted", RECEIPT[1], "I am on vacation.", "Thanks"]
)
conversations = st.lists(st.tuples(st.sampled_from(["customer", "agent", "automatic"]), texts), max_size=12)


@settings(deadline=None)
@given(conversations)
def test_every_customer_turn_is_in_one_pair_and_every_answer_follows_its_question(turns: Turns) -> None:
    found = pair(turns)
    asked = [turn for p in found.pairs for turn in p.question.turns]
    assert sorted(asked) == [turn for turn, (role, _) in enumerate(turns) if role == "customer"]
    for p in found.pairs:
        _assert_consistent(p, turns)
    answered = [turn for p in found.pairs if p.answer for turn in p.answer.turns]
    assert len(answered) == len(set(answered))


def _assert_consistent(p: QuestionAnswer, turns: Turns) -> None:
    assert p.question.raw == "\n".join(turns[turn][1] for turn in p.question.turns)
    assert len(p.context) <= EARLIER_MESSAGES
    assert all(message.text and message.turns[-1] < p.question.turns[-1] for message in p.context)
    if p.answer:
        assert p.question.turns[-1] < p.answer.turns[0]
        assert {turns[turn][0] for turn in p.answer.turns} == {"agent"}
        between = turns[p.question.turns[-1] + 1 : p.answer.turns[0]]
        assert all(role == "automatic" or text in (RECEIPT[1], "I am on vacation.") for role, text in between)
    if p.reason is None:
        assert p.question.text
        assert p.answer is not None
        assert p.answer.text
