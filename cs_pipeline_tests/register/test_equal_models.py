"""How often a model is promoted by luck, and how often a gain is found, with a sealed part of the test rows.

Single decisions: simulated test rows, with the real bootstrap and the real decision. Whole years of weekly decisions:
simulated scores with the real decision.
"""

import math

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.evaluate.comparison import compare
from cs_pipeline.evaluate.decision import DECISIONS_PER_YEAR, LOOK_UP, MARGINS, TRAINING_NOISE, decide_promotion
from cs_pipeline.evaluate.results import Differences, EvaluationResults, SealedResults
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Difference, intervals, paired_bootstrap
from cs_pipeline.evaluate.scoring.test_set import sealed_rows
from cs_pipeline_tests.register.conftest import SAME, SCORES, compared
from cs_pipeline_tests.support.results import results_of

COLUMNS = sorted({column for metric in METRICS.values() for column in metric.columns})
BITEXT_ROWS = 1207
"""The test rows of the Bitext file."""
SEALED_ROWS = 402
OPEN_ROWS = BITEXT_ROWS - SEALED_ROWS
SEALED_ERROR, OPEN_ERROR = 1.04, 0.73
"""The standard errors of a difference in answer quality on that many simulated rows, in points."""
CHRF = list(METRICS["chrf"].columns)


class Simulation:
    """Test rows, mostly alone in their cluster as in Bitext, and systems that answer them.

    A row is equally hard for all systems. In addition, each system has its own luck with each row.
    """

    def __init__(self, seed: int, rows: int = BITEXT_ROWS) -> None:
        self.random, self.rows = np.random.default_rng(seed), rows
        self.test = pd.DataFrame(
            {
                "cluster_id": [f"cluster {c}" for c in self.random.integers(0, 20 * rows, rows)],
                "intent": [f"intent {i}" for i in self.random.integers(0, 8, rows)],
                "source": "bitext",
            }
        )
        self.sealed = sealed_rows(self.test["cluster_id"].tolist())
        self.reach, self.level = self.random.normal(size=rows), self.random.normal(size=rows)
        self.placeholders = self.random.integers(0, 4, rows)

    def system(
        self, right: float = 0.95, level: float = 0.85, safe: float = 1.0, matched: float = 0.75
    ) -> pd.DataFrame:
        """Row statistics. Answers have the right intent in the share ``right``, and then a quality of about ``level``."""
        from scipy.stats import norm

        random = self.random
        is_right = 0.9 * self.reach + math.sqrt(0.19) * random.normal(size=self.rows) < norm.ppf(right)
        quality = np.clip(level + 0.06 * self.level + 0.06 * random.normal(size=self.rows), 0, 1) * is_right
        match = {name: random.binomial(100, 0.5, self.rows) for name in CHRF if "match" in name}
        known = {
            "quality": quality,
            "right_intent": is_right,
            "reference_placeholders": self.placeholders,
            "answer_placeholders": self.placeholders,
            "matched_placeholders": random.binomial(self.placeholders, matched),
            "fabricates": random.random(self.rows) < 0.005,
            "stopped": random.random(self.rows) < 0.995,
            "safe": random.random(self.rows) < safe,
            **dict.fromkeys((name for name in CHRF if "match" not in name), 100),
            **match,
        }
        stats = pd.DataFrame(dict.fromkeys(COLUMNS, np.nan) | known, index=range(self.rows)).astype(float)
        return stats.assign(rows=1, labelled=1, row_id=[str(i) for i in range(self.rows)])

    def results(self, tuned: pd.DataFrame, champion: pd.DataFrame, method: str = LOOK_UP) -> EvaluationResults:
        """Results of a look-up, so that only the champion is its rival."""

        def differences(rows: np.ndarray, metrics: tuple[str, ...]) -> Differences:
            clusters = self.test["cluster_id"][rows].tolist()
            return paired_bootstrap(tuned[rows], champion[rows], clusters, 200, metrics=metrics)

        def sealed() -> SealedResults:
            quality = differences(self.sealed, ("quality",))["quality"]
            assert quality is not None
            return SealedResults(
                rows=quality.rows,
                clusters=quality.clusters,
                differences={"champion": quality},
                with_open={"champion": differences(np.ones_like(self.sealed), tuple(MARGINS))},
            )

        clusters = self.test["cluster_id"][~self.sealed].tolist()
        models = {"tuned": method, "champion": method}
        return results_of(
            differences={"champion": differences(~self.sealed, tuple(MARGINS))},
            sealed=sealed() if self.sealed.any() else None,
            scores={"tuned": intervals(tuned[~self.sealed], clusters, 20)},
            methods=models,
            placeholders=dict.fromkeys(models, "keep"),
        )


def test_a_system_compared_with_itself_is_never_promoted() -> None:
    for seed in range(5):
        simulation = Simulation(seed, rows=300)
        itself = simulation.system()
        decision = decide_promotion(simulation.results(itself, itself.copy()))
        assert not decision.promote
        assert "not better than those of the champion (answer quality +0.0" in decision.reason


def test_the_simulated_rows_have_the_stated_errors() -> None:
    errors = []
    for seed in range(5):
        simulation = Simulation(seed)
        assert simulation.sealed.sum() == pytest.approx(SEALED_ROWS, rel=0.12)
        results = simulation.results(simulation.system(), simulation.system())
        assert results.sealed is not None
        found = results.sealed.differences["champion"], results.differences["champion"]["quality"]
        errors.append([(quality.high - quality.low) / 3.92 for quality in found if quality is not None])
    assert np.mean(errors, axis=0) == pytest.approx((SEALED_ERROR, OPEN_ERROR), rel=0.15)


def test_a_gain_of_the_stated_size_is_found_at_bitexts_rows() -> None:
    """5 points between two systems without a seed, one of them from the right intent in one more of a hundred answers."""
    promoted, gains = [], []
    for seed in range(40):
        simulation = Simulation(seed)
        results = simulation.results(simulation.system(right=0.96, level=0.897), simulation.system())
        promoted.append(decide_promotion(results).promote)
        gains.append(results.differences["champion"]["quality"])
    assert np.mean(promoted) >= 0.8
    assert np.mean([gain.difference for gain in gains if gain is not None]) == pytest.approx(5.0, abs=0.2)


@pytest.mark.parametrize("metric", ["right_intent", "placeholder_f1", "safe"])
def test_a_true_loss_of_one_margin_passes_in_at_most_five_percent(metric: str) -> None:
    """The answers are better by far in everything else. 40 cases: more than 5 passes have a chance of 1 % at 5 % each."""
    worse = {
        "right_intent": {"right": 0.95 - MARGINS["right_intent"] / 100},
        "placeholder_f1": {"matched": 0.75 - MARGINS["placeholder_f1"] / 100},
        "safe": {"safe": 1.0 - MARGINS["safe"] / 100},
    }[metric]
    promoted = 0
    for seed in range(40):
        simulation = Simulation(seed)
        better = simulation.system(**{"level": 0.95, "right": 0.95, **worse})
        promoted += decide_promotion(simulation.results(better, simulation.system(level=0.75))).promote
    assert promoted <= 5


def test_a_system_as_good_as_the_champion_in_all_margins_usually_passes_them() -> None:
    promoted = 0
    for seed in range(30):
        simulation = Simulation(seed)
        promoted += decide_promotion(
            simulation.results(simulation.system(level=0.93), simulation.system(level=0.8))
        ).promote
    assert promoted >= 24


def test_a_shuffled_a_truncated_and_an_intent_blind_system_are_never_promoted() -> None:
    for seed in range(10):
        simulation = Simulation(seed)
        champion = simulation.system()
        blind, truncated = simulation.system(right=0.037), simulation.system(level=0.55).assign(stopped=0.0)
        shuffled = champion.sample(frac=1, random_state=seed).reset_index(drop=True).assign(row_id=champion["row_id"])
        shuffled["right_intent"] = (simulation.random.random(BITEXT_ROWS) < 1 / 27).astype(float)
        shuffled["quality"] *= shuffled["right_intent"]
        for system in (blind, truncated, shuffled):
            assert not decide_promotion(simulation.results(system, champion)).promote


def year(random: np.random.Generator, gain: float) -> list[float]:
    """The champion's true quality after each week of a year in which every week's model is ``gain`` points better on average
    than last year's champion, by the decision. Every training has its own luck, and the same rows judge all models."""

    def model(mean: float) -> np.ndarray:
        """The true quality, and how it looks on the open and on the sealed rows."""
        true = mean + random.normal(0, TRAINING_NOISE)
        return true + np.array([0.0, *random.normal(0, (OPEN_ERROR / math.sqrt(2), SEALED_ERROR / math.sqrt(2)))])

    champion, weeks = model(0.0), []
    for earlier in range(DECISIONS_PER_YEAR):
        candidate = model(gain)
        _, on_open, on_sealed = candidate - champion
        open_quality = difference_of(on_open, OPEN_ERROR, OPEN_ROWS)
        sealed = SealedResults(
            rows=SEALED_ROWS,
            clusters=SEALED_ROWS,
            differences={"champion": difference_of(on_sealed, SEALED_ERROR, SEALED_ROWS)},
            with_open={"lookup": SAME, "champion": SAME | {"quality": on_all(on_open, on_sealed)}},
        )
        scores = {"tuned": SCORES, "lookup": SCORES}
        results = compared(SAME, SAME | {"quality": open_quality}, scores=scores, sealed=sealed)
        if decide_promotion(results, earlier).promote:
            champion = candidate
        weeks.append(float(champion[0]))
    return weeks


def on_all(on_open: float, on_sealed: float) -> Difference:
    """The difference on all rows, whose error is that of the weighted mean of both parts."""
    share = SEALED_ROWS / BITEXT_ROWS
    error = math.hypot((1 - share) * OPEN_ERROR, share * SEALED_ERROR)
    return difference_of((1 - share) * on_open + share * on_sealed, error, BITEXT_ROWS)


def difference_of(seen: float, error: float, rows: int) -> Difference:
    return Difference(seen, seen - 1.96 * error, seen + 1.96 * error, 0.5, rows, rows)


def test_in_a_year_of_equal_models_a_promotion_is_rare() -> None:
    """300 years of 52 models of equal training: at most 5 % have any promotion."""
    random = np.random.default_rng(0)
    changed = sum(len(set(year(random, 0.0))) > 1 for _ in range(300))
    assert changed <= 15


def test_in_a_year_of_slightly_worse_models_none_is_promoted_for_it() -> None:
    random = np.random.default_rng(1)
    assert sum(len(set(year(random, -2.0))) > 1 for _ in range(200)) <= 2


def test_a_better_recipe_is_found_within_the_year() -> None:
    """A gain of four standard errors, of rows and both trainings, is found in the first week; one of two within the year."""
    random = np.random.default_rng(2)
    error = math.hypot(SEALED_ERROR, TRAINING_NOISE * math.sqrt(2))
    weeks = [year(random, 4 * error) for _ in range(100)]
    assert sum(len(set(week[:1])) == 1 and week[0] > 2 * error for week in weeks) >= 70
    assert all(week[-1] > 2 * error for week in weeks)
    slight = [year(random, 2 * error) for _ in range(100)]
    assert sum(week[-1] > error for week in slight) >= 70


def test_the_real_comparison_gives_the_decision_its_figures() -> None:
    """``compare`` on all metrics, slices and intents leads to the same decision as the metrics of the margins alone."""
    simulation = Simulation(3, rows=400)
    better, champion = simulation.system(level=0.95), simulation.system(level=0.7)
    alone = simulation.results(better, champion)
    is_open = ~simulation.sealed
    assert not is_open.all()
    full = compare(simulation.test[is_open], {"tuned": better[is_open], "champion": champion[is_open]}, samples=200)
    results = results_of(**dict(full), sealed=alone.sealed, methods=alone.methods, placeholders=alone.placeholders)
    assert decide_promotion(results).promote is decide_promotion(alone).promote
    assert full.slices["bitext"].gates
