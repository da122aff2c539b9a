"""The report's verdict: better or worse, weak spots, and the promotion decision."""

import pandas as pd
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.decision import decide_promotion
from cs_pipeline.evaluate.report.rendering import figure
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.report.verdict import promotable, verdict, weak_slices
from cs_pipeline.evaluate.results import Scores
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Interval
from cs_pipeline.recipe import Recipe
from cs_pipeline_tests.support.reported import WEAK, evaluated
from cs_pipeline_tests.support.reported import recipe as recipe  # the fixture
from cs_pipeline_tests.support.results import difference, results_of


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
    assert judgement(metric, low, high) == word


NO_INTENTS = pd.DataFrame({"intent": [], "rows": [], "right_intent": []})


@pytest.mark.parametrize(
    ("intent", "rouge", "word", "ending"),
    [
        ((1, 2), (1, 2), "better", "so the training is worth it here"),
        ((1, 2), (-1, 1), "better", "so the training is worth it here"),
        ((1, 2), (-2, -1), "mixed", "so which of the two is more useful depends on what matters"),
        ((-2, -1), (-1, 1), "worse", "so a look-up still answers better here"),
        ((-1, 1), (-1, 1), "no clear difference", "so nothing here shows a benefit of the training yet"),
    ],
)
def test_the_verdict_on_the_nearest_answer(
    intent: tuple[float, float], rouge: tuple[float, float], word: str, ending: str
) -> None:
    scores: Scores = {name: Interval(90.0, 89.0, 91.0) for name in METRICS}
    scores |= {
        "placeholder_invented": None,
        "fabricates": Interval(0.5, 0.0, 1.0),
        "safe": Interval(100.0, 100.0, 100.0),
    }
    scores["length_ratio"] = Interval(1.0, 0.9, 1.1)
    nearest = dict.fromkeys(METRICS) | {"right_intent": difference(*intent), "rougeL": difference(*rouge), "chrf": None}
    results = results_of(scores={"tuned": scores, "nearest": scores}, differences={"nearest": nearest})
    against, weak = verdict(results, NO_INTENTS)
    assert (against.about, against.judgement) == ("Against the nearest answer", word)
    assert against.sentence.endswith(f", {ending}.")
    assert "chrF" not in against.sentence
    assert "90.0\N{NO-BREAK SPACE}%" in against.sentence
    assert weak.judgement == "to look at"  # 90 % of the answers stop by themselves
    results.scores["tuned"]["stop_rate"] = None
    assert verdict(results, NO_INTENTS)[1].judgement == "none stands out"


def test_weak_intents_are_named_with_their_rows() -> None:
    intents = pd.DataFrame(
        {"intent": ["a", "b", "c", "d", "e"], "rows": [9, 9, 2, 9, 9], "right_intent": [50.0, 10.0, 0.0, 79.0, 80.0]}
    )
    (weak,) = verdict(results_of(scores={"tuned": dict.fromkeys(METRICS)}), intents)
    assert weak.sentence.replace("\N{NO-BREAK SPACE}", " ") == (
        "Answers have the right intent least often for b (10 % of 9), a (50 % of 9) and d (79 % of 9)."
    )


def test_the_worst_slices_are_named_with_advice() -> None:
    found = weak_slices(WEAK)
    assert (found.about, found.judgement) == ("Weakest slices", "to look at")
    assert found.sentence == (
        "2 slices are significantly worse than the rest. get_refund: 12 training rows; similar training questions per"
        " question: 1 here, 8 elsewhere. Add examples. (Right intent 41.2, elsewhere 90.0.) flag <b>rude</b>: similar"
        " training questions per question: 7 here, 8 elsewhere. Examples are not scarce: check first whether its answers"
        " contradict one another. (chrF 30.0, elsewhere 41.0.)"
    )
    assert weak_slices([]).judgement == "none found"


def test_the_first_finding_is_the_decision(lake: DataLake, recipe: Recipe) -> None:
    results = evaluated(lake, recipe, champion=True)
    first = promotable(results)
    decision = decide_promotion(results)
    assert first.judgement == ("yes, by its figures" if decision.promote else "no")
    assert first.sentence.lower() == f"{decision.reason.lower()}."
    assert write_report(recipe, lake).markdown.splitlines()[2].startswith(f"- **Promotion: {first.judgement}.**")


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
def test_figures_have_fitting_digits_and_signs(metric: str, value: float | None, signed: bool, text: str) -> None:
    assert figure(metric, value, signed) == text
