"""Answers looked up in training rows, and their scores on a random split."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.scoring.baselines import (
    central_answers,
    naive_scores,
    nearest_answers,
    random_answers,
    stratified_sample,
)
from cs_pipeline.ingest.sample import sample_rows

TRAIN = pd.DataFrame(
    [
        ("where is my parcel", "Your parcel is on its way.", "track_order"),
        ("track the parcel please", "Your parcel is on its way to you today.", "track_order"),
        ("parcel number 17", "Ask the driver.", "track_order"),
        ("i want my money back", "Your refund is on its way.", "get_refund"),
        ("refund my purchase", "We refund every purchase.", "get_refund"),
    ],
    columns=["instruction", "response", "intent"],
    index=[7, 3, 3, 1, 0],  # rows are found by position, not by index
).assign(row_id=list("abcde"))


def test_the_nearest_question_is_found_despite_typos() -> None:
    asked = ["i wnat my money back!", "WHERE is my parcel?", "refund my purchase"]
    expected = ["Your refund is on its way.", "Your parcel is on its way.", "We refund every purchase."]
    assert nearest_answers(TRAIN, asked) == expected


def test_the_central_answer_is_most_similar_to_the_others() -> None:
    answers = central_answers(TRAIN, ["track_order", "get_refund", "track_order"], [()] * 3)
    assert answers[0] == answers[2]
    assert answers[0] in ("Your parcel is on its way.", "Your parcel is on its way to you today.")
    assert answers[1] in TRAIN.loc[TRAIN["intent"] == "get_refund", "response"].tolist()


def test_the_only_answer_of_an_intent_is_central() -> None:
    assert central_answers(TRAIN.iloc[[0, 3]], ["get_refund"], [()]) == ["Your refund is on its way."]


def test_no_answer_of_the_questions_own_conversation_is_central() -> None:
    first, second, none = central_answers(TRAIN, ["track_order"] * 3, [(), ("b",), ("a", "b", "c")])
    assert {first, second} == set(TRAIN["response"].iloc[:2])
    assert none == ""


def test_without_an_intent_the_most_central_of_all_answers_is_given() -> None:
    (answer,) = central_answers(TRAIN, [None], [()])
    assert answer in {"Your parcel is on its way.", "Your refund is on its way."}, "the words that most answers have"


@pytest.mark.parametrize("count", [1, 200])
def test_random_answers_come_from_training_rows_reproducibly(count: int) -> None:
    questions = ["whatever"] * count
    answers = random_answers(TRAIN, questions)
    assert len(answers) == count
    assert set(answers) <= set(TRAIN["response"])
    assert answers == random_answers(TRAIN, questions)


def test_random_answers_use_all_training_rows() -> None:
    assert set(random_answers(TRAIN, ["whatever"] * 200)) == set(TRAIN["response"])
    assert random_answers(TRAIN, ["whatever"] * 200) != random_answers(TRAIN, ["whatever"] * 200, seed=1)


PUBLISHED = {"rouge1": 56.7, "rouge2": 28.2, "rougeL": 39.3, "bleu": 28.2, "chrf": 51.3}
"""Scores of the nearest question's answer on 500 rows of a random stratified split of the shared Bitext rows."""


def test_intents_are_held_out_in_proportion() -> None:
    labels = ["a"] * 600 + ["b"] * 300 + ["c"] * 99 + ["d"]
    drawn = stratified_sample(labels, 100, seed=0)
    assert Counter(labels[i] for i in drawn) == {"a": 60, "b": 30, "c": 10}
    assert len(set(drawn.tolist())) == len(drawn)
    np.testing.assert_array_equal(drawn, stratified_sample(labels, 100, seed=0))
    assert not np.array_equal(drawn, stratified_sample(labels, 100, seed=1))
    assert len(stratified_sample(labels, 5000, seed=0)) == 500, "half of the rows stay for training"


def test_no_row_is_answered_with_itself() -> None:
    rows = sample_rows(400).drop_duplicates("instruction")
    alone = rows.assign(response=[f"answer{i}" for i in range(len(rows))])
    scores = naive_scores(alone, rows=40)
    assert set(scores) == set(PUBLISHED)
    assert scores["rouge1"] == 0, "each answer is a unique word that only its own row has"
    leaking = pd.concat([alone, alone], ignore_index=True)
    assert naive_scores(leaking, rows=40)["rouge1"] == pytest.approx(100, abs=15), (
        "its duplicate is in the training rows"
    )


def test_too_few_rows_to_hold_out_raise() -> None:
    with pytest.raises(PipelineError, match="no rows to score"):
        naive_scores(sample_rows(30).head(1))


def test_naive_scores_of_real_rows_are_as_published(bitext_csv: Path) -> None:
    scores = naive_scores(pd.read_csv(bitext_csv, dtype=str, keep_default_na=False))
    assert scores == pytest.approx(PUBLISHED, abs=1)
