"""How often a model is promoted by luck: simulated models, with the real bootstrap and the real decision.

To save time, the bootstrap draws 200 samples here instead of 1,000 (2,000 instead of 10,000 for an intent).
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.evaluate.comparison import compare
from cs_pipeline.evaluate.decision import MAX_INTENT_LOSS, decide_promotion
from cs_pipeline.evaluate.results import EvaluationResults
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline_tests.register.conftest import BETTER
from cs_pipeline_tests.support.results import results_of

COLUMNS = sorted({column for metric in METRICS.values() for column in metric.columns})
INTENTS = 8


class Simulation:
    """Test rows of two sources in clusters of one to three, and models that answer them.

    A row is equally hard for all models. In addition, each model has its own luck with each cluster, so the rows of a
    cluster are not independent.
    """

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        sizes = self.random.integers(1, 4, 240)
        self.cluster = np.repeat(np.arange(240), sizes)
        intents, company = self.random.integers(0, INTENTS, 240), self.random.random(240) < 0.25
        self.test = pd.DataFrame(
            {
                "cluster_id": [f"cluster {c}" for c in self.cluster],
                "intent": [f"intent {intents[c]}" for c in self.cluster],
                "source": np.where(company[self.cluster], "company", "bitext"),
            }
        )
        rows = len(self.test)
        self.hardness, self.reach = self.random.gamma(20, 1 / 20, rows), self.random.normal(size=rows)
        self.characters, self.placeholders = self.random.integers(60, 300, rows), self.random.integers(0, 4, rows)

    def model(
        self, bits: float | np.ndarray = 0.5, right: float | np.ndarray = 0.9, safe: float = 0.99
    ) -> pd.DataFrame:
        """Row statistics of a model that needs ``bits`` a character and has the right intent in ``right`` of the rows."""
        rows, random = len(self.test), self.random

        def luck() -> np.ndarray:
            return (random.normal(size=240)[self.cluster] + random.normal(size=rows)) / np.sqrt(2)

        known = {
            "nll": np.log(2) * bits * self.characters * self.hardness * np.exp(0.1 * luck()),
            "answer_chars": self.characters,
            "right_intent": (self.reach + luck()) / np.sqrt(2) < _quantile(right),
            "reference_placeholders": self.placeholders,
            "matched_placeholders": random.binomial(self.placeholders, 0.8),
            "stopped": random.random(rows) < 0.97,
            "safe": random.random(rows) < safe,
        }
        stats = pd.DataFrame(dict.fromkeys(COLUMNS, np.nan) | known, index=range(rows)).astype(float)
        return stats.assign(rows=1, row_id=[str(i) for i in range(rows)])

    def results(self, tuned: pd.DataFrame, champion: pd.DataFrame) -> EvaluationResults:
        """Results in which the tuned model is clearly better than its base."""
        found = compare(self.test, {"tuned": tuned, "champion": champion}, samples=200)
        found.differences["base"] = BETTER
        return results_of(**dict(found), placeholders={"tuned": "keep", "champion": "keep"})


def _quantile(share: float | np.ndarray) -> Any:
    from scipy.stats import norm

    return norm.ppf(share)


def test_a_model_compared_with_itself_is_never_promoted() -> None:
    for seed in range(10):
        simulation = Simulation(seed)
        itself = simulation.model()
        results = simulation.results(itself, itself.copy())
        bits = results.differences["champion"]["bits_per_character"]
        assert bits is not None
        assert bits.high == 0
        assert len(results.intents) > INTENTS / 2
        decision = decide_promotion(results)
        assert not decision.promote
        assert "does not clearly need fewer bits per character than the champion (+0.000" in decision.reason


def test_of_200_equal_models_at_most_five_percent_are_promoted() -> None:
    promoted = 0
    for seed in range(200):
        simulation = Simulation(seed)
        promoted += decide_promotion(simulation.results(simulation.model(), simulation.model())).promote
    # 2.5 % of the intervals, 5 of 200, lie on the better side by chance. The other gates can only reduce that number.
    assert 0 < promoted <= 10


def test_a_better_model_is_promoted() -> None:
    promoted = 0
    for seed in range(20):
        simulation = Simulation(seed)
        promoted += decide_promotion(simulation.results(simulation.model(bits=0.46), simulation.model())).promote
    # The models are equal in everything else. Some are unlucky in one of the twelve figures that may not be worse.
    assert promoted >= 12


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_is_better_overall_but_worse_somewhere_is_not_promoted(seed: int) -> None:
    simulation = Simulation(seed)
    company, intent = (
        (simulation.test[column] == value).to_numpy()
        for column, value in (("source", "company"), ("intent", "intent 3"))
    )
    champion = simulation.model()
    only_bitext = simulation.results(simulation.model(bits=np.where(company, 0.56, 0.42)), champion)
    assert not decide_promotion(only_bitext).promote
    everywhere = only_bitext.differences["champion"]["bits_per_character"]
    on_company = only_bitext.slices["company"].differences["champion"]["bits_per_character"]
    assert everywhere is not None
    assert everywhere.high < 0
    assert on_company is not None
    assert on_company.low > 0
    unsafe = simulation.model(bits=0.46, right=0.97, safe=0.85)
    assert not decide_promotion(simulation.results(unsafe, champion)).promote
    loses_one = simulation.results(simulation.model(bits=0.46, right=np.where(intent, 0.2, 0.97)), champion)
    assert not decide_promotion(loses_one).promote
    to_champion = {name: part.differences["champion"]["right_intent"] for name, part in loses_one.intents.items()}
    assert [name for name, right in to_champion.items() if right and right.high < -MAX_INTENT_LOSS] == ["intent 3"]
