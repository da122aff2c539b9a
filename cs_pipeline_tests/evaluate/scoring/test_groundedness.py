"""The share of answers that comes from retrieved texts, on planted copies and facts that were counted by hand."""

import pandas as pd
import pytest

from cs_pipeline.evaluate.scoring.groundedness import (
    GROUNDEDNESS_COLUMNS,
    groundedness,
    groundedness_shares,
    seen_share,
)
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.text.copied import COPIED_RUN

KNOWN = "To return it, open Settings and press the button below, then print {{Order Number}} and pay 12.50 dollars."
QUESTION = "can i return order {{Order Number}} of 3 May?"


def found(*texts: str) -> list[RetrievedText]:
    return [RetrievedText("answer", str(i), text, "a question", None, None, 0.9) for i, text in enumerate(texts)]


def judged(answer: str, *texts: str) -> dict[str, int]:
    (row,) = groundedness([QUESTION], [answer], [found(*texts)]).to_dict("records")
    return {str(name): int(value) for name, value in row.items()}


@pytest.mark.parametrize(
    ("answer", "copied"),
    [
        (KNOWN, 18),
        ("open Settings and press the button below, then", 8),
        ("open Settings and press the button below", 0),
        ("Well: OPEN settings and press the button below – then nothing", 8),
        ("nothing of it", 0),
        ("", 0),
    ],
)
def test_eight_consecutive_words_are_copied(answer: str, copied: int) -> None:
    row = judged(answer, KNOWN)
    assert row["copied"] == copied
    assert judged(answer)["copied"] == 0
    assert judged(answer, "other words", KNOWN)["copied"] == copied
    assert COPIED_RUN == 8


def test_copied_words_come_from_a_single_text() -> None:
    assert (
        judged("one two three four five six seven eight", "one two three four", "five six seven eight")["copied"] == 0
    )


@pytest.mark.parametrize(
    ("answer", "facts", "grounded", "sourced"),
    [
        ("Pay 12.50 dollars for {{Order Number}}.", 2, 2, 2),
        ("It was on 3 May.", 1, 1, 0),
        ("Pay 99 dollars at {{Website URL}}.", 2, 0, 0),
        ("Thank you.", 0, 0, 0),
    ],
)
def test_facts_are_grounded_in_the_question_or_a_retrieved_text(
    answer: str, facts: int, grounded: int, sourced: int
) -> None:
    row = judged(answer, KNOWN)
    assert (row["facts"], row["grounded"], row["sourced"]) == (facts, grounded, sourced)
    assert row["whole"] == (facts == grounded)
    assert judged(answer)["sourced"] == 0


def test_shares_are_quotients_of_sums_with_intervals() -> None:
    rows = pd.DataFrame([[10, 5, 2, 1, 1, 1, 0], [30, 5, 2, 2, 0, 1, 1]] * 20, columns=list(GROUNDEDNESS_COLUMNS))
    figures = groundedness_shares(rows, [str(i) for i in range(40)], samples=200)
    for name, score in (("copied", 25), ("grounded", 75), ("sourced", 25), ("whole", 50)):
        found_share = figures[name]
        assert found_share is not None
        assert found_share["score"] == pytest.approx(score)
        assert found_share["low"] < score < found_share["high"]
    assert groundedness_shares(rows.assign(facts=0), [str(i) for i in range(40)], samples=20)["grounded"] is None


def test_the_seen_share_is_the_median_of_runs_in_any_training_answer() -> None:
    words = [f"w{i}" for i in range(20)]
    whole, half, new = " ".join(words[:11]), " ".join([*words[:9], "x", "y"]), "a b c d e f g h i"
    training = [" ".join(words[:9]), " ".join(words[1:15])]
    assert seen_share([whole], training) == 1.0  # its four runs are in two answers
    assert seen_share([half], training) == 0.5
    assert seen_share([new], training) == 0.0
    assert seen_share([whole, half, new, "too short"], training) == 0.5
    assert seen_share(["too short"], training) is None
