"""The promotion decision as a table of cases."""

import pytest

from cs_pipeline.evaluate.decision import decide_promotion
from cs_pipeline.evaluate.results import Differences
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline_tests.register.conftest import (
    BETTER,
    EQUAL,
    FEWER,
    MORE,
    POINTS_FEWER,
    SAME,
    UNCLEAR,
    compared,
)
from cs_pipeline_tests.support.results import difference


@pytest.mark.parametrize(
    ("to_base", "to_champion", "promote", "reason"),
    [
        (BETTER, None, True, "fewer bits per character than its base (-0.150, 95 % interval -0.200 to -0.100)"),
        (BETTER, BETTER, True, "interval -0.200 to -0.100) and the champion (-0.150, 95 % interval -0.200 to -0.100)"),
        (BETTER, SAME, False, "does not clearly need fewer bits per character than the champion"),
        (SAME, None, False, "does not clearly need fewer bits per character than its base"),
        (
            BETTER | {"bits_per_character": UNCLEAR},
            None,
            False,
            "does not clearly need fewer bits per character than its base",
        ),
        (BETTER | {"bits_per_character": MORE}, None, False, "more bits per character than its base"),
        (BETTER | {"bits_per_character": difference(-0.1, 0.0)}, None, False, "does not clearly need fewer"),
        (
            BETTER | {"bits_per_character": None},
            None,
            False,
            "bits_per_character could not be measured against its base",
        ),
        (BETTER, {}, False, "bits_per_character could not be measured against the champion"),
        (BETTER | {"right_intent": POINTS_FEWER}, None, False, "its right_intent is worse than that of its base"),
        (BETTER, BETTER | {"right_intent": POINTS_FEWER}, False, "its right_intent is worse than that of the champion"),
        (BETTER, BETTER | {"placeholder_recall": POINTS_FEWER}, False, "its placeholder_recall is worse"),
        (BETTER, BETTER | {"stop_rate": FEWER}, False, "its stop_rate is worse than that of the champion"),
        (BETTER, BETTER | {"safe": FEWER}, False, "its safe is worse than that of the champion"),
        (BETTER | {"safe": FEWER}, None, False, "its safe is worse than that of its base"),
        (BETTER, BETTER | {"stop_rate": UNCLEAR, "right_intent": EQUAL}, True, "is not worse in any guarded metric"),
        (BETTER, BETTER | {"placeholder_recall": None}, True, "is not worse in any guarded metric"),
        (BETTER, {"bits_per_character": FEWER}, True, "is not worse in any guarded metric"),
        (BETTER, BETTER | {"rougeL": FEWER, "chrf": FEWER}, True, "is not worse in any guarded metric"),
    ],
)
def test_decisions(to_base: Differences, to_champion: Differences | None, promote: bool, reason: str) -> None:
    decision = decide_promotion(compared(to_base, to_champion))
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("to_champion", "company", "promote", "reason"),
    [
        (BETTER, BETTER, True, "is not worse in any guarded metric"),
        (BETTER, SAME, True, "is not worse in any guarded metric"),
        (BETTER, dict.fromkeys(BETTER, UNCLEAR), True, "is not worse in any guarded metric"),
        (BETTER, None, True, "is not worse in any guarded metric"),  # too few company rows for figures
        (SAME, BETTER, False, "does not clearly need fewer bits per character than the champion"),
        (
            BETTER,
            SAME | {"bits_per_character": MORE},
            False,
            "on the company rows its bits_per_character is worse than",
        ),
        (
            BETTER,
            SAME | {"right_intent": POINTS_FEWER},
            False,
            "on the company rows its right_intent is worse than that of",
        ),
        (
            BETTER,
            SAME | {"placeholder_recall": POINTS_FEWER},
            False,
            "on the company rows its placeholder_recall is worse",
        ),
        (BETTER, SAME | {"stop_rate": FEWER}, False, "on the company rows its stop_rate is worse than that of"),
        (BETTER, SAME | {"safe": FEWER}, False, "on the company rows its safe is worse than that of the champion"),
        (BETTER, SAME | {"placeholder_recall": None}, True, "is not worse in any guarded metric"),
        (BETTER, SAME | {"chrf": FEWER}, True, "is not worse in any guarded metric"),
    ],
)
def test_a_gain_on_bitext_does_not_offset_a_loss_on_company_rows(
    to_champion: Differences, company: Differences | None, promote: bool, reason: str
) -> None:
    decision = decide_promotion(compared(BETTER, to_champion, company))
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason


def test_a_gain_on_company_rows_does_not_offset_a_loss_on_bitext() -> None:
    found = compared(BETTER, BETTER, BETTER)
    found.slices["bitext"].differences["champion"] = BETTER | {"bits_per_character": MORE}
    assert "on the bitext rows its bits_per_character is worse" in decide_promotion(found).reason


@pytest.mark.parametrize("champion_forgotten", [False, True])
def test_models_of_two_placeholder_modes_are_not_compared(champion_forgotten: bool) -> None:
    """Each mode has its own reference texts, so a difference may come from the texts."""
    found = compared(BETTER, BETTER)
    found.placeholders["champion"] = PlaceholderMode.GENERIC
    decision = decide_promotion(found, champion_forgotten)
    assert not decision.promote
    assert "its placeholder mode is 'keep' and the champion's is 'generic'" in decision.reason
    assert "cs-pipeline rollback --to" in decision.reason


@pytest.mark.parametrize(
    ("metric", "low", "high", "promote"),
    [
        ("bits_per_character", 0.001, 0.002, True),
        ("bits_per_character", 0.005, 0.009, True),
        ("bits_per_character", 0.0051, 0.009, False),
        ("right_intent", -9, -2, True),
        ("right_intent", -9, -2.1, False),
        ("placeholder_recall", -9, -2, True),
        ("placeholder_recall", -9, -2.1, False),
        ("stop_rate", -9, -0.1, False),
        ("safe", -9, -0.1, False),
    ],
)
def test_the_spread_between_two_trainings_is_tolerated_on_a_slice(
    metric: str, low: float, high: float, promote: bool
) -> None:
    decision = decide_promotion(compared(BETTER, BETTER, SAME | {metric: difference(low, high)}))
    assert decision.promote is promote, decision.reason


@pytest.mark.parametrize(
    ("low", "high", "promote"),
    [(-60, -10.1, False), (-60, -10, True), (-60, 5, True), (-9, -1, True), (-30, -12, False), (10, 60, True)],
)
def test_an_intent_may_lose_a_little_but_not_much(low: float, high: float, promote: bool) -> None:
    decision = decide_promotion(compared(BETTER, BETTER, BETTER, difference(low, high)))
    assert decision.promote is promote
    if not promote:
        assert "on 'get_refund' its answers have the right intent far less often than the champion's" in decision.reason


def test_a_loss_against_the_base_in_one_intent_stops_nothing() -> None:
    found = compared(BETTER)
    found.intents["get_refund"].differences["base"] = {"right_intent": difference(-90, -50)}
    assert decide_promotion(found).promote


@pytest.mark.parametrize(
    ("to_champion", "promote", "reason"),
    [
        (SAME, True, "it need not be better than the champion"),
        (SAME | {"bits_per_character": UNCLEAR}, True, "trained on rows that are to be forgotten"),
        (BETTER, True, "trained on rows that are to be forgotten"),
        (SAME | {"bits_per_character": MORE}, False, "it needs more bits per character than the champion"),
        (SAME | {"right_intent": POINTS_FEWER}, False, "its right_intent is worse than that of the champion"),
    ],
)
def test_a_champion_to_be_forgotten_can_be_replaced_without_being_better(
    to_champion: Differences, promote: bool, reason: str
) -> None:
    decision = decide_promotion(compared(BETTER, to_champion), champion_forgotten=True)
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason
    assert not decide_promotion(compared(SAME, to_champion), champion_forgotten=True).promote
