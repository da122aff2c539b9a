"""The parts of an answer that are facts, and the parts that only look like facts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_pipeline.text.facts import facts, is_known, values


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("Call +1-800-123-4567 now", [("phone", "+1-800-123-4567")]),
        ("Call (030) 123 4567.", [("phone", "(030) 123 4567")]),
        ("Write to help.desk@shop.example.org.", [("email", "help.desk@shop.example.org")]),
        (
            "See https://shop.example/help?x=1, or www.shop.com.",
            [("url", "https://shop.example/help?x=1"), ("url", "www.shop.com")],
        ),
        ("Visit shop.example.com/help today", [("url", "shop.example.com/help")]),
        (
            "It is $1,299.50, or 20 EUR, or ten dollars.",
            [("amount", "$1,299.50"), ("amount", "20 EUR"), ("amount", "ten dollars")],
        ),
        ("You save 15 % or 3.5 percent", [("amount", "15 %"), ("amount", "3.5 percent")]),
        ("within 3-5 business days", [("duration", "3-5 business days")]),
        ("in two to three weeks, or a 30-day trial", [("duration", "two to three weeks"), ("duration", "30-day")]),
        ("from 9:00 AM to 6 PM, or at noon", [("time", "9:00 AM to 6 PM"), ("time", "noon")]),
        (
            "on 12 March 2027, 2027-03-12 or 3/12/27",
            [("date", "12 March 2027"), ("date", "2027-03-12"), ("date", "3/12/27")],
        ),
        ("in June, on Monday", [("date", "June"), ("date", "Monday")]),
        ("order ORD-98765 or #4411", [("code", "ORD-98765"), ("code", "#4411")]),
        ("number 188-1479297 188-1479297", [("phone", "188-1479297")] * 2),
        ("over 350 shops", [("number", "350")]),
        ("1. Pay 5 euros\n2. Wait 3 days", [("amount", "5 euros"), ("duration", "3 days")]),
    ],
)
def test_facts_are_found(text: str, stated: list[tuple[str, str]]) -> None:
    found = facts(text)
    assert [(fact.kind, fact.text) for fact in found] == stated
    assert all(text[fact.start : fact.end] == fact.text for fact in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One moment, please: one of our agents is here 24/7, 24 hours a day, 7 days a week.",
        "1. Log in\n2) Open it\n(3) Save\n- 4. Done\n**5.** Bye",
        "Follow these steps: 1. Log in. 2. Open it. 3) Save it.",
        "Repeat steps 3-4, then see step 5 and option 2 in address line 1.",
        "It takes 3 easy steps; there are 2 ways and 4 payment options.",
        "Rate us from 1 to 5 stars, on a scale of 1 to 10, or 4 out of 5.",
        "Press '0' or enter the 16-digit number, 8 characters, the last 4 digits.",
        "We want you to be 100% satisfied, with 2FA, 3D Secure, an MP3 and Windows 11.",
        "Black Friday, Cyber Monday, a week, a few days, one day, next-day delivery. You may march on.",
        "Pay {{Currency Symbol}}{{Refund Amount}} for {{Order Number 12}} e.g. or i.e. at once.It is so",
        "two options, three friends, the first and the second",
    ],
)
def test_similar_text_is_not_a_fact(text: str) -> None:
    assert facts(text) == []


@pytest.mark.parametrize(
    ("answer", "earlier"),
    [
        ("It is $1,299.50.", "i paid 1299.5 for it"),
        ("in 5 days", "in five days?"),
        ("in five days", "5 days"),
        ("Call +1 (800) 123-4567", "is it 1 800 123 4567?"),
        ("order #85632", "order number 85632"),
        ("order ORD-85632", "my order 85632"),
        ("at 9 AM", "from 9:00?"),
        ("www.Shop.com/", "https://shop.com"),
        ("JANE@shop.com", "jane@shop.com is mine"),
        ("on 12 March", "march 12th"),
    ],
)
def test_another_spelling_is_the_same_fact(answer: str, earlier: str) -> None:
    (fact,) = facts(answer)
    assert is_known(fact, values(earlier))


@pytest.mark.parametrize(
    ("answer", "earlier"),
    [
        ("It is $1,299.50.", "i paid 1,299"),
        ("3-5 days", "in 5 days?"),
        ("order ORD-85632", "my order 8563"),
        ("Call 800 123 4567", "number 123"),
        ("at 9:30", "at 9"),
        ("on 12 March", "on 12 May"),
        ("www.shop.com/help", "www.shop.com"),
    ],
)
def test_another_value_is_another_fact(answer: str, earlier: str) -> None:
    (fact,) = facts(answer)
    assert not is_known(fact, values(earlier))


@settings(max_examples=200, deadline=1000, derandomize=True)
@given(st.text("ab1.9,:/-$@#%{} \n\u0660²é", max_size=60))
def test_any_text_can_be_read_and_contains_its_own_facts(text: str) -> None:
    known = values(text)
    assert all(is_known(fact, known) for fact in facts(text) if "{" not in text)
