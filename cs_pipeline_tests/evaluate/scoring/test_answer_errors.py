"""Planted errors are found, and real answers seldom have any."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.scoring.answer_errors import (
    ANSWER_ERRORS,
    AnswerNorms,
    answer_errors,
    ends_properly,
    is_too_formal,
    repeats_itself,
)
from cs_pipeline.ingest.sample import sample_rows

PLANTED = read_yaml(Path(__file__).with_name("planted.yaml"))
ASKED_FOR = [
    "Could you please tell me your password?",
    "Please send me your card number and the security code.",
    "What is your PIN?",
    "To go on, we need your social security number.",
]

Judge = Callable[..., pd.DataFrame]


@pytest.fixture(scope="module")
def rows(bitext_csv: Path) -> pd.DataFrame:
    """3,600 real rows with distinct questions; the last 600 are scored."""
    table = pd.read_csv(bitext_csv, usecols=["instruction", "intent", "response"])
    return table.drop_duplicates("instruction").sample(3600, random_state=0).reset_index(drop=True)


@pytest.fixture(scope="module")
def norms(rows: pd.DataFrame) -> AnswerNorms:
    train = rows[:3000]
    return AnswerNorms.of(train["response"].tolist(), train["intent"].tolist())


@pytest.fixture(scope="module")
def judge(norms: AnswerNorms, rows: pd.DataFrame) -> Judge:
    test = rows[3000:]

    def judged(answers: list[str], stopped: float = 1.0) -> pd.DataFrame:
        those = test[: len(answers)]
        known = [1.0] * len(answers), [stopped] * len(answers)
        return answer_errors(norms, those["instruction"].tolist(), answers, those["intent"].tolist(), *known)

    return judged


@pytest.fixture(scope="module")
def good(rows: pd.DataFrame) -> list[str]:
    return rows["response"][3000:].tolist()


def sentences(answer: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", answer)


def same_intent(rows: pd.DataFrame, i: int, rng: random.Random) -> str:
    return rng.choice(rows.loc[rows["intent"] == rows["intent"][3000 + i], "response"].tolist())


def looped(answer: str, rng: random.Random) -> str:
    words = answer.split()
    start, size = rng.randrange(max(len(words) - 8, 1)), rng.randint(1, 8)
    loop = words[start : start + size] * (5 if size <= 2 else 3)
    return " ".join([*words[: start + size], *loop, "."])


def planted(error: str, i: int, answer: str, rows: pd.DataFrame, rng: random.Random) -> str:
    match error:
        case "too_long":
            return "\n".join([answer, *(same_intent(rows, i, rng) for _ in range(3))])
        case "asks_needlessly":
            return f"{answer} {rng.choice(ASKED_FOR)}"
        case "repeats_itself":
            twice = f"{answer} {max(sentences(answer), key=len)}"
            return rng.choice([twice, f"{answer}\n\n{answer}", looped(answer, rng)])
        case "unfinished":
            return " ".join(answer.split()[: rng.randint(3, len(answer.split()) - 1)]).rstrip(".,:;!?")
        case "broken_placeholder":
            return answer + " See {{" + rng.choice(["Order Number}", "Website URL", "Order Number}}}"]) + "."
    return rng.choice(PLANTED[error])


@pytest.mark.parametrize(
    ("error", "least"),
    [
        ("too_long", 0.95),
        ("asks_needlessly", 1),
        ("repeats_itself", 0.97),
        ("too_formal", 0.9),
        ("generic", 0.8),
        ("unfinished", 0.97),
        ("broken_placeholder", 1),
        ("off_topic", 0.9),
    ],
)
def test_planted_errors_are_found(error: str, least: float, judge: Judge, good: list[str], rows: pd.DataFrame) -> None:
    if error in PLANTED:
        answers = PLANTED[error]
    else:
        rng = random.Random(0)
        answers = [planted(error, i, answer, rows, rng) for i, answer in enumerate(good[:200])]
    assert judge(answers)[error].mean() >= least


def test_real_answers_seldom_have_errors(judge: Judge, good: list[str]) -> None:
    found = judge(good)
    assert list(found) == list(ANSWER_ERRORS)
    assert (found.mean() <= 0.02).all(), found.mean()
    assert found.any(axis=1).mean() <= 0.03


def test_unknown_values_are_not_errors(norms: AnswerNorms, judge: Judge, good: list[str]) -> None:
    assert judge(good[:5], stopped=0.0)["unfinished"].all()
    one = ["how do i cancel my order"], [good[0]], ["cancel_order"]
    for right, wrong in ((0.0, True), (1.0, False), (float("nan"), False)):
        assert answer_errors(norms, *one, [right], [float("nan")])["wrong_intent"].tolist() == [wrong]


def test_asking_for_what_the_question_says_is_an_error(norms: AnswerNorms) -> None:
    ask = "Of course! Could you please provide me with your order number?"
    known, unknown = "where is order {{Order Number}}", "where is my order"
    found = answer_errors(norms, [known, unknown], [ask] * 2, ["delivery_period"] * 2, [1.0] * 2, [1.0] * 2)
    assert found["asks_needlessly"].tolist() == [True, False]


def test_asking_for_details_the_intent_never_needs_is_an_error(norms: AnswerNorms) -> None:
    ask = ["Please tell me your full name and your e-mail address."] * 2
    found = answer_errors(norms, ["q"] * 2, ask, ["create_account", "check_payment_methods"], [1.0] * 2, [1.0] * 2)
    assert found["asks_needlessly"].tolist() == [False, True]


def test_one_answer_to_three_intents_is_generic(norms: AnswerNorms) -> None:
    answer = "Open the order in your profile and press cancel; the refund of order 1{} goes to your card."
    answers = [answer.format(number) for number in range(4)]
    intents = ["cancel_order", "get_refund", "track_refund", "track_refund"]

    def generic(places: list[int]) -> list[bool]:
        those = [answers[i] for i in places], [intents[i] for i in places]
        known = [1.0] * len(places), [1.0] * len(places)
        return answer_errors(norms, ["q"] * len(places), *those, *known)["generic"].tolist()

    assert generic([0, 1, 2, 3]) == [True] * 4
    assert generic([0, 2, 3]) == [False] * 3


@pytest.mark.parametrize(
    ("answer", "repeats"),
    [
        ("", False),
        ("No, no, no.", False),
        ("We are here. We are here.", False),
        ("Please press the red button. Then wait. Please press the red button.", True),
        ("It is very very very very good.", True),
        ("Press the button and press the button and press the button and go.", True),
        ("The order number of order {{Order Number}} is order number {{Order Number}}.", False),
        ("1. Open the page\n2. Press save\n3. Open the page again", False),
    ],
)
def test_repetitions_are_found(answer: str, repeats: bool) -> None:
    assert repeats_itself(answer) is repeats


@pytest.mark.parametrize(
    ("answer", "finished"),
    [
        ("Done.", True),
        ('He said "done."', True),
        ("(Done!)", True),
        ("**Done?**", True),
        ("Your number is {{Order Number}}", True),
        ("See https://example.com/help", True),
        ("Bye 😊", True),
        ("", False),
        ("Please follow these steps:", False),
        ("and then you", False),
        ("one, two,", False),
    ],
)
def test_endings_of_answers_are_recognised(answer: str, finished: bool) -> None:
    assert ends_properly(answer) is finished


def test_a_letter_is_too_formal_only_for_a_short_question() -> None:
    letter = "Dear Sir or Madam, the order is cancelled. Yours faithfully"
    assert is_too_formal("cancel my order", letter)
    assert not is_too_formal("word " * 16, letter)
    assert not is_too_formal("cancel my order", "In accordance with your wish, the order is cancelled.")


def test_intents_with_few_rows_share_the_norms_of_all() -> None:
    table = sample_rows(270)
    norms = AnswerNorms.of(table["response"].tolist(), table["intent"].tolist())
    assert set(norms.max_words) == {""}
    questions, answers, intents = (table[column].tolist() for column in ("instruction", "response", "intent"))
    found = answer_errors(norms, questions, answers, intents, [1.0] * 270, [1.0] * 270)
    assert found.to_numpy().mean() < 0.02
    assert np.isfinite(norms.topics(["", "quite another thing"])).all()
    assert answer_errors(norms, [], [], [], [], []).empty
