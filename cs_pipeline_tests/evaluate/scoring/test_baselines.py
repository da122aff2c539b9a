"""Answers taken from training rows, on rows made by hand."""

import pandas as pd
import pytest

from cs_pipeline.evaluate.scoring.baselines import central_answers, nearest_answers, random_answers

TRAIN = pd.DataFrame(
    [
        ("where is my parcel", "Your parcel is on its way.", "track_order"),
        ("track the parcel please", "Your parcel is on its way to you today.", "track_order"),
        ("parcel number 17", "Ask the driver.", "track_order"),
        ("i want my money back", "Your refund is on its way.", "get_refund"),
        ("refund my purchase", "We refund every purchase.", "get_refund"),
    ],
    columns=["instruction", "response", "intent"],
    index=[7, 3, 3, 1, 0],  # rows are found by their place
)


def test_the_nearest_question_gives_its_answer_in_spite_of_typos() -> None:
    asked = ["i wnat my money back!", "WHERE is my parcel?", "refund my purchase"]
    expected = ["Your refund is on its way.", "Your parcel is on its way.", "We refund every purchase."]
    assert nearest_answers(TRAIN, asked) == expected


def test_the_central_answer_is_the_one_the_others_are_like() -> None:
    answers = central_answers(TRAIN, ["track_order", "get_refund", "track_order"])
    assert answers[0] == answers[2]
    assert answers[0] in ("Your parcel is on its way.", "Your parcel is on its way to you today.")
    assert answers[1] in TRAIN.loc[TRAIN["intent"] == "get_refund", "response"].tolist()


def test_an_answer_alone_in_its_intent_is_central() -> None:
    assert central_answers(TRAIN.iloc[[0, 3]], ["get_refund"]) == ["Your refund is on its way."]


@pytest.mark.parametrize("count", [1, 200])
def test_random_answers_are_of_the_training_rows_and_repeat(count: int) -> None:
    questions = ["whatever"] * count
    answers = random_answers(TRAIN, questions)
    assert len(answers) == count
    assert set(answers) <= set(TRAIN["response"])
    assert answers == random_answers(TRAIN, questions)


def test_random_answers_leave_none_out() -> None:
    assert set(random_answers(TRAIN, ["whatever"] * 200)) == set(TRAIN["response"])
    assert random_answers(TRAIN, ["whatever"] * 200) != random_answers(TRAIN, ["whatever"] * 200, seed=1)
