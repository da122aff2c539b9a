"""Each part of the rubric agrees with hand labels, and the rubric is the weighted sum of its parts."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.scoring.rubric import RUBRIC_PARTS, heuristic, rubric

LABELLED = read_yaml(Path(__file__).with_name("rubric.yaml"))


def score(part: str, entry: Any) -> float:
    question, answer = (entry["question"], entry["answer"]) if isinstance(entry, dict) else ("", entry)
    (row,) = rubric([question], [answer]).to_dict("records")
    return float(row[part])


@pytest.mark.parametrize("part", RUBRIC_PARTS)
@pytest.mark.parametrize("entries", ["written_with", "held_out"])
def test_parts_agree_with_hand_labels(part: str, entries: str) -> None:
    enough = 0.75 if part == "empathy" else 0.5  # half is for an answer to a customer in trouble without an apology
    labels = LABELLED[part][entries]
    right = [score(part, entry) >= enough for entry in labels["good"]]
    right += [score(part, entry) < enough for entry in labels["bad"]]
    assert len(right) >= (12 if entries == "held_out" else 4)
    assert sum(right) / len(right) >= 0.95


def test_the_rubric_is_the_weighted_sum() -> None:
    assert sum(part.weight for part in RUBRIC_PARTS.values()) == pytest.approx(1)
    full = (
        'Hello! I\'m sorry that the lamp is broken. Please open your order and press "Return", and we will send you another'
        " one. Let me know if there is anything else."
    )
    half = "Hello! The lamp is broken."
    found = rubric(["my lamp is broken", "my lamp is broken"], [full, half])
    assert list(found) == [*RUBRIC_PARTS, "rubric", "heuristic"]
    assert found[list(RUBRIC_PARTS)].to_numpy()[0].tolist() == [1.0] * len(RUBRIC_PARTS)
    for row in found.to_dict("records"):
        parts = [part.weight * float(row[name]) for name, part in RUBRIC_PARTS.items()]
        assert row["rubric"] == pytest.approx(sum(parts))
    assert found["rubric"][0] == pytest.approx(1)
    assert found["rubric"][1] < 0.6


@pytest.mark.parametrize(
    ("part", "question", "answer", "points"),
    [
        ("solution", "", "Could you please tell me the number of the order?", 0.5),
        ("solution", "", "I will look into it.", 0.5),
        ("empathy", "my lamp is broken", "I'm happy to help you with the lamp.", 0.5),
        ("empathy", "where is my lamp", "I'm happy to help you with the lamp.", 1),
        ("tone", "", "The lamp is on its way.", 0.5),
        ("tone", "", "Please, that is your own fault.", 0),
    ],
)
def test_answers_can_get_half_points(part: str, question: str, answer: str, points: float) -> None:
    assert score(part, {"question": question, "answer": answer}) == points


@pytest.mark.parametrize("answer", ["", " \n", "???", "1234", "👍", "日本語のテキスト", "a" * 5000])
def test_any_answer_has_a_score(answer: str) -> None:
    (row,) = rubric(["q"], [answer]).to_dict("records")
    assert all(0 <= row[name] <= 1 for name in (*RUBRIC_PARTS, "rubric"))
    assert row["rubric"] < 0.4


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ("", 0),
        ("x" * 29, 0),
        ("x" * 30, 1),
        ("Sorry.", 1),
        ("PLEASE", 1),
        ("I'm happy to help", 1),
        ("happy to be of help", 0),
        ("the details", 1),
        ("in order to", 1),
        ("Please provide", 2),
        ("We will please you: provide the account details of your order.", 3),
    ],
)
def test_the_heuristic_is_the_published_one(answer: str, points: int) -> None:
    assert heuristic(answer) == points


def test_real_answers_score_high_and_broken_ones_low(bitext_csv: Path) -> None:
    rows = pd.read_csv(bitext_csv, usecols=["instruction", "response"]).sample(400, random_state=0)
    questions, answers = rows["instruction"].tolist(), rows["response"].tolist()
    real = rubric(questions, answers)
    assert real["rubric"].mean() > 0.85
    assert real["heuristic"].mean() > 2.5
    cut = rubric(questions, [" ".join(answer.split()[:6]) for answer in answers])
    salad = rubric(questions, [" ".join(sorted(answer.split()[3:40])[::-1]) for answer in answers])
    assert cut["rubric"].mean() < 0.65
    assert salad["rubric"].mean() < 0.7
