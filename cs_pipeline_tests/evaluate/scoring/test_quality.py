"""The answer quality of written answers, counted by hand."""

from typing import Any

import pandas as pd
import pytest

from cs_pipeline.evaluate.scoring.metrics import QUALITY_WEIGHTS, answer_quality, corpus_scores, row_statistics

REFERENCE = "Send the parcel with {{Order Number}} to {{Return Address}} within thirty days"


def quality(answer: str, reference: str = REFERENCE, **known: Any) -> float:
    stats = row_statistics(["how do I return it?"], [answer], [reference])
    (value,) = answer_quality(stats.assign(**{"right_intent": 1.0, "fabricates": 0.0} | known))
    return float(value)


def test_the_weights_share_one() -> None:
    assert sum(QUALITY_WEIGHTS.values()) == pytest.approx(1.0)


def test_the_reference_itself_is_perfect() -> None:
    assert quality(REFERENCE) == pytest.approx(1.0)
    assert quality("no placeholder here", "no placeholder here") == pytest.approx(1.0)


@pytest.mark.parametrize("known", [{"right_intent": 0.0}, {"safe": 0}])
def test_an_answer_to_another_question_or_an_unsafe_one_is_worth_nothing(known: dict[str, Any]) -> None:
    assert quality(REFERENCE, **known) == 0.0


def test_each_part_counts_by_its_weight() -> None:
    assert quality(REFERENCE, fabricates=1.0) == pytest.approx(0.8)
    one_of_two = REFERENCE.replace("{{Return Address}}", "our address")
    stats = row_statistics([""], [one_of_two], [REFERENCE])
    chrf, words = stats["chrf"].iloc[0] / 100, (len(one_of_two.split()), len(REFERENCE.split()))
    by_hand = 0.4 + 0.2 * (2 / 3) + 0.2 + 0.1 * chrf + 0.1 * min(words) / max(words)
    assert quality(one_of_two) == pytest.approx(by_hand)
    assert quality("") == pytest.approx(0.4 + 0.2)  # only that nothing is made up
    assert quality(f"{REFERENCE} {REFERENCE}") < quality(REFERENCE)


def test_without_a_labelled_intent_the_other_parts_share_its_place() -> None:
    assert quality(REFERENCE, labelled=0, right_intent=0.0) == pytest.approx(1.0)
    assert quality(REFERENCE, labelled=0, right_intent=0.0, fabricates=1.0) == pytest.approx(1 - 0.2 / 0.6)
    assert quality(REFERENCE, labelled=0, right_intent=0.0, safe=0) == 0.0


def test_rows_without_a_label_do_not_count_for_right_intent() -> None:
    stats = row_statistics(["", "", ""], ["a", "b", "c"], ["a", "b", "c"]).assign(right_intent=[1.0, 0.0, 0.0])
    assert corpus_scores(stats, ["right_intent"]) == {"right_intent": pytest.approx(100 / 3)}
    assert corpus_scores(stats.assign(labelled=[1, 1, 0]), ["right_intent"]) == {"right_intent": 50.0}
    none: pd.DataFrame = stats.assign(labelled=0)
    assert corpus_scores(none, ["right_intent"]) == {"right_intent": None}
