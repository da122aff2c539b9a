"""The promotion decision as a table of cases."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from cs_pipeline.evaluate.company import MAX_QUESTIONS
from cs_pipeline.evaluate.comparison import MIN_CLUSTERS
from cs_pipeline.evaluate.decision import (
    COMPANY_SPREAD,
    DECISIONS_PER_YEAR,
    FALSE_PROMOTIONS,
    LOOK_UP,
    MARGIN_RISK,
    MARGINS,
    MAX_COMPANY_LOSS,
    TEST_SHARE,
    TRAINING_NOISE,
    best_free_lookup,
    clearly_preferred,
    company_conversations_needed,
    decide_promotion,
    lower_bound,
    rows_needed,
)
from cs_pipeline.evaluate.results import (
    Differences,
    EvaluationResults,
    JudgeResults,
    JudgeTally,
    PeopleAgreement,
    PeopleVotes,
    PositionBias,
    SealedResults,
)
from cs_pipeline.evaluate.scoring.statistics import POWER, Difference, Interval, wilson
from cs_pipeline.prepare.splits.assignment import MAX_HELD_OUT, TRAINED_FIRST
from cs_pipeline.prepare.splits.split import SPLIT_SHARES, assign_splits
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline_tests.register.conftest import BETTER, MANY, SAME, SCORES, compared
from cs_pipeline_tests.support.results import company_of
from cs_pipeline_tests.support.results import difference as difference_of

PROMOTED = "no metric loses more than its margin"


def difference(low: float, high: float) -> Difference:
    return difference_of(low, high, **MANY)


def quality(low: float, high: float) -> Differences:
    return SAME | {"quality": difference(low, high)}


@pytest.mark.parametrize(
    ("to_lookup", "to_champion", "promote", "reason"),
    [
        (SAME, BETTER, True, "the champion (answer quality +30.0, 95 % interval +29.0 to +31.0) and the best free"),
        (BETTER, None, True, PROMOTED),
        (SAME, None, False, "its answers are not better than those of the best free look-up (answer quality +0.0"),
        (quality(0.4, 2.4), None, False, "not clearly better than those of the best free look-up"),
        (SAME, SAME, False, "its answers are not better than those of the champion"),
        (SAME, quality(-9, -7), False, "its answers are not better than those of the champion (answer quality -8.0"),
        (SAME, quality(1, 5), False, "not clearly better than those of the champion (answer quality +3.0"),
        (SAME, BETTER | {"quality": None}, False, "its answer quality could not be compared with that of the champion"),
        (quality(-4, -3), BETTER, False, "its answer quality is worse than that of the best free look-up"),
        (
            SAME | {"right_intent": difference(-4, -3)},
            BETTER,
            False,
            "its right intent is worse than that of the best free",
        ),
        (
            SAME,
            BETTER | {"right_intent": difference(-4, -3)},
            False,
            "its right intent is worse than that of the champion",
        ),
        (SAME, BETTER | {"placeholder_f1": difference(-9, -8)}, False, "its placeholder F1 is worse"),
        (
            SAME,
            BETTER | {"fabricates": difference(3, 4)},
            False,
            "its share of answers with made-up facts is worse than that",
        ),
        (SAME, BETTER | {"chrf": difference(-9, -8)}, False, "its chrF is worse than that of the champion"),
        (
            SAME,
            BETTER | {"stop_rate": difference(-4, -3)},
            False,
            "its share of answers that stop by themselves is worse",
        ),
        (
            SAME,
            BETTER | {"safe": difference(-2, -1)},
            False,
            "its share of safe answers is worse than that of the champion",
        ),
        (
            SAME | {"safe": difference(-2, -1)},
            BETTER,
            False,
            "its share of safe answers is worse than that of the best free look-up",
        ),
        (SAME | {"stop_rate": None}, BETTER, True, PROMOTED),  # nothing stops a look-up
        (SAME, BETTER | {"placeholder_f1": None}, True, PROMOTED),
        (SAME, BETTER | {"right_intent": difference(-1.5, -0.5)}, True, PROMOTED),
        (SAME, BETTER | {"rougeL": difference(-9, -8), "bits_per_character": difference(0.1, 0.2)}, True, PROMOTED),
    ],
)
def test_decisions(to_lookup: Differences, to_champion: Differences | None, promote: bool, reason: str) -> None:
    decision = decide_promotion(compared(to_lookup, to_champion))
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason
    assert not decision.undecided


SEALED = {"rows": 402, "clusters": 395}
GAIN, LOSS, NOTHING = (difference_of(low, low + 2, **SEALED) for low in (29.0, -31.0, -1.0))
"""Differences in answer quality on the sealed rows."""
ON_SEALED = "95 % interval +29.0 to +31.0, on 402 sealed questions"


def sealed_results(quality: dict[str, Difference | None], to_champion: Differences | None = SAME) -> SealedResults:
    """The differences in ``quality`` on the sealed rows, and those from the champion on all rows."""
    with_open = {"lookup": SAME} | ({"champion": to_champion} if to_champion else {})
    return SealedResults(**SEALED, differences=quality, with_open=with_open)


@pytest.mark.parametrize(
    ("to_champion", "on_sealed", "promote", "reason"),
    [
        (BETTER, {"champion": GAIN}, True, f"than those of the champion (answer quality +30.0, {ON_SEALED}); compared"),
        # Whether it is better depends on the sealed rows alone.
        (SAME, {"champion": GAIN}, True, ON_SEALED),
        (BETTER, {"champion": NOTHING}, False, "not better than those of the champion (answer quality +0.0, 95 %"),
        (
            BETTER,
            {"champion": LOSS},
            False,
            "its answers are not better than those of the champion (answer quality -30.0",
        ),
        (BETTER, {"champion": None}, False, "its answer quality could not be compared with that of the champion"),
        (BETTER, {}, False, "its answer quality could not be compared with that of the champion"),
        (BETTER, {"champion": difference_of(1, 5, **SEALED)}, False, "+1.0 to +5.0, on 402 sealed questions; counting"),
        (None, {"lookup": GAIN}, True, f"best free look-up (answer quality +30.0, {ON_SEALED})"),
        # "Not worse" depends on all rows.
        (quality(-9, -8), {"champion": GAIN}, False, "its answer quality is worse than that of the champion (-8.5"),
        (SAME | {"chrf": difference(-9, -8)}, {"champion": GAIN}, False, "its chrF is worse than that of the champion"),
        (SAME, {"champion": GAIN, "lookup": LOSS}, True, PROMOTED),
    ],
)
def test_sealed_rows_decide_whether_it_is_better_and_all_rows_whether_it_is_worse(
    to_champion: Differences | None, on_sealed: dict[str, Difference | None], promote: bool, reason: str
) -> None:
    sealed = sealed_results(on_sealed, to_champion)
    decision = decide_promotion(compared(SAME, BETTER if to_champion else None, sealed=sealed))
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason


def test_sealed_rows_need_enough_rows_and_not_too_many_openings() -> None:
    small = sealed_results({"champion": difference_of(1, 9, **SEALED)})
    methods = dict.fromkeys(("tuned", "champion"), LOOK_UP)
    assert (
        "sealed questions would show such a gain"
        in decide_promotion(compared(SAME, BETTER, sealed=small, methods=methods)).reason
    )
    found = compared(SAME, BETTER, sealed=sealed_results({"champion": GAIN}))
    assert decide_promotion(found, DECISIONS_PER_YEAR - 1).promote
    decision = decide_promotion(found, DECISIONS_PER_YEAR)
    assert decision.undecided
    assert f"the sealed questions were opened {DECISIONS_PER_YEAR} times within a year" in decision.reason


def test_a_gain_that_another_training_could_lose_is_not_enough() -> None:
    """The same figures are enough against a look-up, which depends on no seed, and not against a trained champion."""
    error = 0.5 / 1.96
    by_luck = 3.1 * math.hypot(error, TRAINING_NOISE) + 0.1  # against one training
    gain = quality(by_luck - 0.5, by_luck + 0.5)
    assert decide_promotion(compared(gain, None)).promote
    found = compared(SAME, gain)
    assert not decide_promotion(found).promote
    found.methods["champion"] = LOOK_UP
    assert decide_promotion(found).promote


def own_questions(low: float, high: float, test_rows: int) -> dict[str, Any]:
    """Differences in answer quality on ``test_rows`` of the company, the same for every rival."""
    found = difference_of(low, high, test_rows, test_rows)
    return {"test_rows": test_rows, "differences": {"lookup": found, "champion": found}}


FEW = {"test_rows": 1}


def with_own(conversations: int, own: dict[str, Any] | None) -> EvaluationResults:
    """Results of a fine-tune that is better than everything else, and what the company's conversations say."""
    return compared(SAME, BETTER).model_copy(update={"company": own and company_of(conversations, **own)})


@pytest.mark.parametrize(
    ("own", "methods", "promote", "undecided", "reason"),
    [
        (None, {}, True, False, PROMOTED),  # Bitext alone
        (FEW, {}, False, True, "only 1 of the company's own questions is in the test, too few to see whether it loses"),
        (
            FEW,
            {},
            False,
            True,
            "against the champion; it takes about 2,500 conversations of the company, and there are",
        ),
        (FEW, {"tuned": "cascade"}, False, True, "only 1 of the company's own questions"),
        (FEW, {"tuned": LOOK_UP}, True, False, PROMOTED),  # its answers are those of the company
        (own_questions(-20, 20, 15), {}, False, True, "may be worse than that of the champion (+0.0, 95 % interval"),
        (
            own_questions(-20, 20, 15),
            {},
            False,
            True,
            "15 of the company's own questions are in the test, and it takes",
        ),
        (
            own_questions(-30, -10, 15),
            {},
            False,
            False,
            "own questions its answer quality is worse than that of the champ",
        ),
        (
            own_questions(-14, -2, 150),
            {},
            False,
            False,
            "own questions its answer quality may be worse than that of the",
        ),
        (own_questions(20, 60, 15), {}, True, False, PROMOTED),  # few questions can show a large gain
        (own_questions(-7, 7, 150), {}, True, False, PROMOTED),
    ],
)
def test_a_fine_tune_shows_on_the_companys_own_questions_that_it_is_not_worse(
    own: dict[str, Any] | None, methods: dict[str, str], promote: bool, undecided: bool, reason: str
) -> None:
    found = with_own(300, own)
    found.methods.update(methods)
    decision = decide_promotion(found)
    assert (decision.promote, decision.undecided) == (promote, undecided), decision.reason
    assert reason in decision.reason


def equal_on(test_rows: int, spread: float = COMPANY_SPREAD) -> dict[str, Any]:
    """No difference from any rival, with this standard deviation over the company's test questions."""
    half = 1.96 * spread / math.sqrt(test_rows or 1)
    return own_questions(-half, half, test_rows) if test_rows >= MIN_CLUSTERS else {"test_rows": test_rows}


def visible_loss(test_rows: float, spread: float = COMPANY_SPREAD) -> float:
    """The loss that so many test questions show with the chance POWER."""
    return spread / math.sqrt(test_rows) * (NormalDist().inv_cdf(1 - MARGIN_RISK) + NormalDist().inv_cdf(POWER))


def test_the_conversations_needed_give_the_stated_power() -> None:
    """A twentieth of them would be in the test."""
    for spread, test_rows in ((COMPANY_SPREAD, 0), (20.0, 15)):
        needed = company_conversations_needed(company_of(300, **equal_on(test_rows, spread)), "champion")
        assert visible_loss(needed / 20, spread) == pytest.approx(MAX_COMPANY_LOSS, rel=0.03)
    assert company_conversations_needed(company_of(300, **equal_on(15, 0.0)), "champion") == 20 * MIN_CLUSTERS


def test_the_table_of_what_so_many_conversations_allow_is_computed() -> None:
    """It is in docs/evaluation.md. The conversations are of ten subjects, and none resembles another."""
    table = []
    for conversations in (30, 300, 3000):
        clusters = dict.fromkeys((f"c{number}" for number in range(conversations // 10)), 1)
        split_of = [assign_splits(f"s{i}", clusters, {}, MAX_HELD_OUT, TRAINED_FIRST).values() for i in range(10)]
        counts = Counter(split for splits in split_of for split in splits)
        loss = f"{visible_loss(counts['test']):.0f} points" if counts["test"] >= MIN_CLUSTERS else "none"
        decision = decide_promotion(with_own(conversations, equal_on(counts["test"])))
        table.append(
            f"| {conversations:,} | {counts['train']:,} | {counts['test']:,} |"
            f" ± {1.96 * 50 / math.sqrt(min(conversations, MAX_QUESTIONS)):.1f} | {loss} |"
            f" {'yes' if decision.promote else 'no: a person decides'} |"
        )
    assert "\n".join(table) in (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def test_a_loss_that_few_rows_cannot_rule_out_is_left_to_a_person() -> None:
    wide = difference_of(-4.0, 4.0, rows=90, clusters=90)
    decision = decide_promotion(compared(SAME | {"right_intent": wide}, BETTER))
    assert not decision.promote
    assert decision.undecided
    assert decision.reason.startswith(
        "a person has to decide: its right intent may be worse than that of the best free"
    )
    needed = rows_needed(wide, "right_intent", MARGINS["right_intent"], MARGIN_RISK, margin=2.0)
    assert needed is not None
    assert f"about {needed:,} test rows would show it, and there are 90" in decision.reason
    half = 4.0 * math.sqrt(90 / needed)
    enough = difference_of(-half, half, rows=needed, clusters=needed)
    assert decide_promotion(compared(SAME | {"right_intent": enough}, BETTER)).promote
    # A reason that rows could not remove goes first.
    assert not decide_promotion(compared(SAME | {"right_intent": wide}, SAME)).undecided


def test_rows_needed_give_the_stated_power() -> None:
    """A study of that size has an 80 % chance to end above the bound, by the normal distribution."""
    found = difference(-2.0, 6.0)
    for luck in (0.0, 0.3):
        needed = rows_needed(found, "quality", 3.0, 0.01, luck)
        assert needed is not None
        error = math.hypot(8 / 3.919928 * math.sqrt(found.rows / needed), luck)
        assert error * (2.326348 + 0.841621) == pytest.approx(3.0, rel=0.01)
    assert rows_needed(found, "quality", 3.0, 0.01, luck=2.0) is None


@pytest.mark.parametrize(("metric", "sign"), [("right_intent", 1), ("fabricates", -1)])
def test_the_bound_counts_gains_as_positive(metric: str, sign: int) -> None:
    found = difference(*sorted((sign * 1.0, sign * 3.0)))
    assert lower_bound(found, metric, 0.025) == pytest.approx(1.0)
    assert lower_bound(found, metric, 0.025, luck=1.0) < 0.5


def test_events_that_did_not_occur_are_not_certain_never_to_occur() -> None:
    """Equal rates without any difference show a small margin only with enough rows."""
    never = difference(0.0, 0.0)
    for clusters, shown in ((300, False), (2000, True)):
        found = replace(never, rows=clusters, clusters=clusters)
        assert (lower_bound(found, "safe", MARGIN_RISK, margin=0.5) > -0.5) is shown


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"stop_rate": 94.9}, "its share of answers that stop by themselves is 94.9 %, below the limit of 95 %"),
        ({"safe": 98.5}, "its share of safe answers is 98.5 %, below the limit of 99 %"),
        ({"fabricates": 5.1}, "its share of answers with made-up facts is 5.1 %, above the limit of 5 %"),
        ({"error_repeats_itself": 7.0}, "its share of answers that repeat themselves is 7.0 %, above the limit of 5 %"),
    ],
)
def test_nothing_below_standard_answers_customers(scores: dict[str, float], reason: str) -> None:
    """Neither a model that beats everything nor a look-up without competition."""
    bad = SCORES | {name: Interval(value, value, value) for name, value in scores.items()}
    for found in (compared(BETTER, BETTER), compared(SAME, None, methods={"tuned": LOOK_UP})):
        decision = decide_promotion(found.model_copy(update={"scores": found.scores | {"tuned": bad}}))
        assert not decision.promote
        assert reason in decision.reason


def test_a_lookup_becomes_the_first_champion_and_competes_with_a_champion_only() -> None:
    alone = decide_promotion(compared(SAME, None, methods={"tuned": LOOK_UP}))
    assert alone.promote
    assert alone.reason == "there is no champion yet, and a look-up costs nothing"
    for to_champion, promote in ((BETTER, True), (SAME, False)):
        methods = {"tuned": LOOK_UP, "champion": "QLoRA"}
        assert decide_promotion(compared(quality(-9, -8), to_champion, methods=methods)).promote is promote


def test_the_best_of_the_free_lookups_is_the_rival() -> None:
    nearest = SCORES | {"quality": Interval(85.0, 84.0, 86.0)}
    found = compared(BETTER)
    found = found.model_copy(update={"scores": found.scores | {"nearest": nearest}})
    found.differences["nearest"] = SAME
    assert best_free_lookup(found) == "nearest"
    assert "not better than those of the best free look-up" in decide_promotion(found).reason


@pytest.mark.parametrize(
    ("won", "low", "may_gate", "promote"),
    [(70, 0.6, True, True), (70, 0.5, True, False), (70, None, True, False), (70, 0.6, False, False)],
)
def test_a_judge_that_agrees_with_people_decides_which_answers_are_better(
    won: int, low: float | None, may_gate: bool, promote: bool
) -> None:
    tally = JudgeTally(won=won, lost=30, ties=0, share=0.7, low=low, high=0.79)
    agreement, bias = PeopleAgreement(0.7, 0.5, 0.9, 60), PositionBias(100, 0.9, 0.5, 0.4, 0.6)
    judge = JudgeResults(
        model="judge", against={"champion": tally}, position=bias, people=agreement, may_gate=may_gate, why="why"
    )
    decision = decide_promotion(compared(SAME, SAME, judge=judge))
    assert decision.promote is promote, decision.reason
    if may_gate and not promote:
        assert "does not clearly prefer its answers to those of the champion: it won 70 comparisons" in decision.reason
    worse = SAME | {"fabricates": difference(4, 5)}
    assert not decide_promotion(compared(SAME, worse, judge=judge)).promote  # liking is not enough


def people(won: int, lost: int, **known: Any) -> PeopleVotes:
    counts: dict[str, Any] = {"won": won, "lost": lost, "ties": 4, "share": won / (won + lost)}
    low, high = wilson(won, won + lost) or (0.0, 1.0)
    about = {
        "candidate": "version 3",
        "incumbent": "version 2",
        "verdicts": 2 * (won + lost),
        "raters": 3,
        "busiest": 0.5,
    }
    return PeopleVotes(**counts | {"low": low, "high": high, "shared": 20, "agreement": 0.7} | about | known)


@pytest.mark.parametrize(
    ("to_champion", "votes", "promote", "reason"),
    [
        # Enough votes decide, whatever the figures say.
        (SAME, people(40, 10), True, "people clearly prefer its answers to those of the champion: 3 people with 100"),
        (BETTER, people(10, 40), False, "people do not clearly prefer its answers to those of the champion"),
        (BETTER, people(28, 22), False, "prefer its answers on 28 questions and the others on 22 (56 %"),
        # 95 % sure is not enough for one of 52 decisions.
        (BETTER, people(34, 16), False, "people do not clearly prefer its answers"),
        # Votes that do not decide leave it to the figures.
        (SAME, people(29, 0), False, "its answers are not better than those of the champion (answer quality"),
        (BETTER, people(0, 29), True, "its answers are clearly better than those of the champion"),
        (
            SAME,
            people(40, 10, raters=1),
            False,
            "its answers are not better than those of the champion (answer quality",
        ),
        (SAME, people(40, 10, busiest=0.9), False, "its answers are not better than those of the champion"),
        (SAME, people(40, 10, agreement=0.4), False, "its answers are not better than those of the champion"),
        (SAME, people(40, 10, agreement=0.4, shared=9), True, "people clearly prefer"),
        (SAME, None, False, "its answers are not better than those of the champion"),
    ],
)
def test_people_decide_which_answers_are_better(
    to_champion: Differences, votes: PeopleVotes | None, promote: bool, reason: str
) -> None:
    decision = decide_promotion(compared(SAME, to_champion), votes=votes)
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason


def test_people_come_before_the_judge_and_do_not_excuse_a_loss() -> None:
    lost = JudgeTally(won=10, lost=90, ties=0, share=0.1, low=0.05, high=0.2)
    agreement, bias = PeopleAgreement(0.7, 0.5, 0.9, 60), PositionBias(100, 0.9, 0.5, 0.4, 0.6)
    judge = JudgeResults(
        model="judge", against={"champion": lost}, position=bias, people=agreement, may_gate=True, why="why"
    )
    assert decide_promotion(compared(SAME, SAME, judge=judge), votes=people(40, 10)).promote
    assert not decide_promotion(compared(SAME, SAME, judge=judge), votes=people(9, 0)).promote
    worse = SAME | {"fabricates": difference(4, 5)}
    assert "made-up facts" in decide_promotion(compared(SAME, worse), votes=people(40, 10)).reason


def test_equal_systems_are_rarely_preferred() -> None:
    """Fair coins win a decision with about the chance of one of a year's decisions."""
    won = np.random.default_rng(0).binomial(60, 0.5, 100_000)
    preferred = {count: clearly_preferred(people(count, 60 - count)) for count in range(61)}
    assert np.mean([preferred[int(count)] for count in won]) < 1.5 * FALSE_PROMOTIONS / DECISIONS_PER_YEAR
    assert preferred[60]


def test_after_a_year_of_decisions_on_the_same_rows_a_person_decides() -> None:
    assert decide_promotion(compared(SAME, BETTER), DECISIONS_PER_YEAR - 1).promote
    decision = decide_promotion(compared(SAME, BETTER), DECISIONS_PER_YEAR)
    assert not decision.promote
    assert decision.undecided
    assert "the test rows were used for 52 decisions within a year" in decision.reason


def test_a_recipe_that_asked_only_some_questions_is_promoted_by_a_person() -> None:
    decision = decide_promotion(compared(SAME, BETTER, rows_left_out=200))
    assert not decision.promote
    assert decision.undecided
    assert "asked only 90 test questions and left out 200" in decision.reason


@pytest.mark.parametrize("metric", ["right_intent", "placeholder_f1", "chrf", "safe", "quality"])
def test_a_gain_elsewhere_does_not_offset_a_clear_loss_on_one_source(metric: str) -> None:
    lost = SAME | {metric: difference(-12, -8)}
    for source in ("company", "bitext"):
        found = compared(SAME, BETTER, BETTER)
        found.slices[source].differences["champion"] = lost
        assert f"on the {source} rows its" in decide_promotion(found).reason
    assert decide_promotion(compared(SAME, BETTER, SAME | {metric: difference(-12, 1)})).promote
    assert decide_promotion(compared(SAME, BETTER, None)).promote  # too few company rows for figures


def test_more_bits_than_a_champion_of_the_same_base_raise_an_alarm() -> None:
    worse = BETTER | {"bits_per_character": difference(0.01, 0.02)}
    assert decide_promotion(compared(SAME, worse)).promote  # another base
    decision = decide_promotion(compared(SAME, worse, champion_base="ba5e" * 4))
    assert "more bits per character than the champion, which has the same base (+0.015" in decision.reason
    slightly = BETTER | {"bits_per_character": difference(0.001, 0.02)}
    assert decide_promotion(compared(SAME, slightly, champion_base="ba5e" * 4)).promote


@pytest.mark.parametrize("champion_forgotten", [False, True])
def test_models_of_two_placeholder_modes_are_not_compared(champion_forgotten: bool) -> None:
    """Each mode has its own reference texts, so a difference may come from the texts."""
    found = compared(BETTER, BETTER)
    found.placeholders["champion"] = PlaceholderMode.GENERIC
    decision = decide_promotion(found, 0, champion_forgotten)
    assert not decision.promote
    assert decision.undecided
    assert "its placeholder mode is 'keep' and the champion's is 'generic'" in decision.reason
    assert "cs-pipeline rollback --to" in decision.reason


@pytest.mark.parametrize(
    ("low", "high", "promote"),
    [(-60, -10.1, False), (-60, -10, True), (-60, 5, True), (-9, -1, True), (-30, -12, False), (10, 60, True)],
)
def test_an_intent_may_lose_a_little_but_not_much(low: float, high: float, promote: bool) -> None:
    decision = decide_promotion(compared(SAME, BETTER, BETTER, difference(low, high)))
    assert decision.promote is promote
    if not promote:
        assert "on 'get_refund' its answers have the right intent far less often than the champion's" in decision.reason


@pytest.mark.parametrize(
    ("to_champion", "promote", "reason"),
    [
        (SAME, True, "it need not be better than the champion"),
        (BETTER, True, "trained on rows that are to be forgotten"),
        (quality(-9, -8), False, "its answer quality is worse than that of the champion"),
        (SAME | {"right_intent": difference(-9, -8)}, False, "its right intent is worse than that of the champion"),
    ],
)
def test_a_champion_to_be_forgotten_can_be_replaced_without_being_better(
    to_champion: Differences, promote: bool, reason: str
) -> None:
    decision = decide_promotion(compared(SAME, to_champion), champion_forgotten=True)
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason
    worse_than_free: Any = quality(-9, -8)
    assert not decide_promotion(compared(worse_than_free, to_champion), champion_forgotten=True).promote


def test_the_rule_knows_the_share_of_the_test_split() -> None:
    assert SPLIT_SHARES["test"] == TEST_SHARE
