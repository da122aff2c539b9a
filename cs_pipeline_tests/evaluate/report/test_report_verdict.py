"""The report's findings: better or worse than each system, and weak spots."""

import pandas as pd
import pytest

from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.report.rendering import amount, figure
from cs_pipeline.evaluate.report.verdict import verdict, weak_slices
from cs_pipeline.evaluate.results import Differences, Scores, SliceResults
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Interval
from cs_pipeline_tests.support.reported import WEAK
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


FINE: Scores = {
    **{name: Interval(90.0, 89.0, 91.0) for name in METRICS},
    "placeholder_invented": None,
    "fabricates": Interval(0.5, 0.0, 1.0),
    "safe": Interval(100.0, 100.0, 100.0),
    "length_ratio": Interval(1.0, 0.9, 1.1),
}


@pytest.mark.parametrize(
    ("quality", "intent", "made_up", "word", "parts"),
    [
        ((1, 2), (1, 2), (-1, 1), "better", ["is better in answer quality (", "and right intent (", "unclear"]),
        (
            (1, 2),
            (-1, 1),
            (-1, 1),
            "better",
            ["is better in answer quality (90.0 against 90.0: +1.5 [+1.0, +2.0]); not"],
        ),
        ((1, 2), (-2, -1), (-1, 1), "mixed", ["is better in answer quality (", "; worse in right intent (90.0 %"]),
        ((-1, 1), (-1, 1), (-2, -1), "better", ["is better in answers with made-up facts (0.5 % against 0.5 %: −1.5"]),
        ((-1, 1), (-1, 1), (1, 2), "worse", ["is worse in answers with made-up facts (0.5 % against 0.5 %: +1.5"]),
        ((-2, -1), (-2, -1), (-1, 1), "worse", ["is worse in answer quality ("]),
        ((-1, 1), (-1, 1), (-1, 1), "no clear difference", ["is not clearly different in answer quality ("]),
    ],
)
def test_the_finding_on_the_free_lookup(
    quality: tuple[float, float],
    intent: tuple[float, float],
    made_up: tuple[float, float],
    word: str,
    parts: list[str],
) -> None:
    known = {"quality": difference(*quality), "right_intent": difference(*intent), "fabricates": difference(*made_up)}
    gains: Differences = dict.fromkeys(METRICS) | known
    results = results_of(scores={"tuned": FINE, "lookup": FINE}, differences={"lookup": gains})
    against, weak = verdict(results, NO_INTENTS)
    assert (against.about, against.judgement) == ("Against the free look-up", word)
    sentence = against.sentence.replace("\N{NO-BREAK SPACE}", " ")
    assert sentence.startswith(
        "Compared with copying the usual known answer to similar questions, which costs nothing, it is "
    )
    assert all(
        part.replace("unclear", "not clearly different in answers with made-up facts") in sentence for part in parts
    )
    assert "chrF" not in sentence
    assert weak.judgement == "to look at"  # 90 % of the answers stop by themselves
    results.scores["tuned"]["stop_rate"] = None
    assert verdict(results, NO_INTENTS)[1].judgement == "none stands out"


def test_a_lookup_is_compared_with_itself_without_handing_over_and_with_the_champion_only() -> None:
    gains: Differences = dict.fromkeys(METRICS) | {"quality": difference(-2, -1)}
    scores = dict.fromkeys(("tuned", "champion", "lookup", "nearest"), FINE)
    differences = dict.fromkeys(("champion", "lookup", "nearest"), gains)
    results = results_of(methods={"tuned": "look-up", "champion": "LoRA"}, scores=scores, differences=differences)
    lookup, champion, _ = verdict(results, NO_INTENTS)
    assert lookup.sentence.startswith(
        "Compared with the same look-up without a threshold, which hands no question over"
    )
    assert (champion.about, champion.judgement) == ("Against the champion", "worse")


def test_a_source_is_judged_against_the_champion_or_else_the_free_lookup() -> None:
    gains: Differences = dict.fromkeys(METRICS) | {"quality": difference(1, 2)}
    part = SliceResults(
        rows=90, clusters=60, gates=True, scores={"tuned": FINE, "lookup": FINE}, differences={"lookup": gains}
    )
    results = results_of(scores={"tuned": FINE}, slices={"bitext": part, "company": part})
    bitext, company, _ = verdict(results, NO_INTENTS)
    assert (bitext.about, bitext.judgement, company.about) == ("On the bitext rows", "better", "On the company rows")
    assert "90 rows in 60 clusters. Compared with copying the usual known answer" in bitext.sentence


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


@pytest.mark.parametrize(
    ("value", "at_most", "text"),
    [
        (None, False, "–"),
        (0.0, True, "< 0.001"),
        (0.00099, False, "< 0.001"),
        (0.0012345, False, "0.0012"),
        (0.0012345, True, "≤ 0.0012"),
        (1.5, False, "1.5"),
        (9.96, False, "10"),
        (99.6, False, "100"),
        (12345.6, True, "≤ 12,346"),
    ],
)
def test_amounts_have_two_digits_or_more(value: float | None, at_most: bool, text: str) -> None:
    assert amount(value, at_most) == text
