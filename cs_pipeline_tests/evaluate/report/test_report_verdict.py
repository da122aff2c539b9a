"""What the report says of the figures: better or worse, what is weak, and what may be promoted."""

from dataclasses import asdict
from typing import Any

import pandas as pd
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.decision import decide_promotion
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.report.verdict import figure, promotable, verdict, weak_slices
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.recipe import Recipe
from cs_pipeline_tests.support.reported import WEAK, evaluated
from cs_pipeline_tests.support.reported import recipe as recipe  # the fixture


def difference(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("metric", "low", "high", "word"),
    [
        ("rougeL", 1, 2, "better"),
        ("rougeL", -2, -1, "worse"),
        ("rougeL", -1, 1, "unclear"),
        ("rougeL", 0, 1, "unclear"),
        ("bits_per_character", -2, -1, "better"),
        ("bits_per_character", 1, 2, "worse"),
        ("bits_per_character", -1, 0, "unclear"),
        ("length_ratio", 1, 2, ""),
    ],
)
def test_better_means_that_the_interval_lies_on_the_good_side_of_zero(
    metric: str, low: float, high: float, word: str
) -> None:
    assert judgement(metric, difference(low, high)) == word


NO_INTENTS = pd.DataFrame({"intent": [], "rows": [], "right_intent": []})


@pytest.mark.parametrize(
    ("intent", "rouge", "word", "ending"),
    [
        ((1, 2), (1, 2), "better", "so here the training is worth having"),
        ((1, 2), (-1, 1), "better", "so here the training is worth having"),
        ((1, 2), (-2, -1), "mixed", "so which of the two serves better depends on what matters"),
        ((-2, -1), (-1, 1), "worse", "so here a look-up still answers better"),
        ((-1, 1), (-1, 1), "no clear difference", "so nothing here speaks for the training yet"),
    ],
)
def test_the_verdict_on_the_nearest_answer(
    intent: tuple[float, float], rouge: tuple[float, float], word: str, ending: str
) -> None:
    scores: dict[str, Any] = {name: {"score": 90.0} for name in METRICS}
    scores |= {"placeholder_invented": None, "fabricates": {"score": 0.5}, "safe": {"score": 100.0}}
    scores["length_ratio"] = {"score": 1.0}
    nearest = dict.fromkeys(METRICS) | {"right_intent": difference(*intent), "rougeL": difference(*rouge), "chrf": None}
    facts: dict[str, Any] = {
        "scores": {"tuned": scores, "nearest": scores},
        "differences": {"nearest": nearest},
        "slices": {},
        "held_out": None,
    }
    against, weak = verdict(facts, NO_INTENTS)
    assert (against.about, against.judgement) == ("Against the nearest answer", word)
    assert against.sentence.endswith(f", {ending}.")
    assert "chrF" not in against.sentence
    assert "90.0\N{NO-BREAK SPACE}%" in against.sentence
    assert weak.judgement == "to look at"  # 90 % of the answers stop by themselves
    facts["scores"]["tuned"] = scores | {"stop_rate": None}
    assert verdict(facts, NO_INTENTS)[1].judgement == "none stands out"


def test_weak_intents_are_named_with_their_rows() -> None:
    scores: dict[str, Any] = dict.fromkeys(METRICS)
    intents = pd.DataFrame(
        {"intent": ["a", "b", "c", "d", "e"], "rows": [9, 9, 2, 9, 9], "right_intent": [50.0, 10.0, 0.0, 79.0, 80.0]}
    )
    (weak,) = verdict({"scores": {"tuned": scores}, "differences": {}, "slices": {}, "held_out": None}, intents)
    assert weak.sentence.replace("\N{NO-BREAK SPACE}", " ") == (
        "What is weak: the answer has the right intent least often for b (10 % of 9), a (50 % of 9) and d (79 % of 9)."
    )


def test_the_worst_slices_are_named_with_advice() -> None:
    found = weak_slices([asdict(weakness) | {"advice": weakness.advice} for weakness in WEAK])
    assert (found.about, found.judgement) == ("Weakest slices", "to look at")
    assert found.sentence == (
        "2 slices are surely worse than the rest. get_refund: 12 training rows, 1 training rows near a question of it, 8"
        " near one of the others; add examples (right intent 41.2 against 90.0 elsewhere). flag <b>rude</b>: 7 training rows"
        " near a question of it, 8 near one of the others; hardly fewer than usual: look first whether its answers"
        " contradict one another (chrF 30.0 against 41.0 elsewhere)."
    )
    assert weak_slices([]).judgement == "none for sure"


def test_the_first_finding_is_the_decision(lake: DataLake, recipe: Recipe) -> None:
    facts = evaluated(lake, recipe, champion=True)
    first = promotable(facts)
    decision = decide_promotion(facts)
    assert first.judgement == ("yes, by its figures" if decision.promote else "no")
    assert first.sentence.lower() == f"{decision.reason.lower()}."
    assert (
        write_report(recipe, lake).markdown.splitlines()[2].startswith(f"- **May it be promoted: {first.judgement}.**")
    )


@pytest.mark.parametrize(
    ("metric", "value", "signed", "text"),
    [
        ("rougeL", 27.04, False, "27.0"),
        ("bits_per_character", -0.0584, True, "−0.058"),
        ("rougeL", 1.25, True, "+1.2"),
        ("rougeL", -0.01, True, "0.0"),
        ("rougeL", 0.01, True, "0.0"),
        ("perplexity", 4.677, False, "4.68"),
        ("rougeL", None, True, "–"),
    ],
)
def test_figures_as_people_read_them(metric: str, value: float | None, signed: bool, text: str) -> None:
    assert figure(metric, value, signed) == text
