"""The figures on all rows, by source and by intent are those of a bootstrap over these rows alone."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.evaluate.comparison import MIN_CLUSTERS, MIN_INTENT_ROWS, compare
from cs_pipeline.evaluate.scoring.metrics import row_statistics
from cs_pipeline.evaluate.scoring.statistics import intervals, paired_bootstrap

SAMPLES = 100


def rows_of(company: int = 40) -> pd.DataFrame:
    """120 rows, the last of them from a company, in clusters of two; three intents, the last of 19 rows."""
    return pd.DataFrame(
        {
            "cluster_id": [f"cluster {i // 2}" for i in range(120)],
            "source": ["bitext"] * (120 - company) + ["company"] * company,
            "intent": ["a", "b"] * 50 + ["a"] + ["c"] * (MIN_INTENT_ROWS - 1),
        }
    )


@pytest.fixture(scope="module")
def stats() -> dict[str, pd.DataFrame]:
    """Row statistics of three models and a baseline, which has no likelihoods and does not report whether it stopped."""
    random = np.random.default_rng(0)
    references = [f"word{i} and {{{{Order Number}}}} and more" for i in range(120)]
    found = {}
    for system, share in (("tuned", 0.9), ("base", 0.4), ("champion", 0.8), ("nearest", 0.7)):
        answers = [reference if random.random() < share else "nothing" for reference in references]
        known: dict[str, Any] = {"right_intent": random.random(120) < share}
        if system != "nearest":
            known |= {"nll": random.uniform(10, 20, 120) / share, "answer_chars": 30, "answer_tokens": 9, "stopped": 1}
        frame = row_statistics([""] * 120, answers, references).assign(**known, row_id=[str(i) for i in range(120)])
        found[system] = frame.astype({"right_intent": float})
    return found


def test_a_slice_has_the_figures_of_its_rows_alone(stats: dict[str, pd.DataFrame]) -> None:
    test = rows_of(company=40)
    found = compare(test, stats, SAMPLES)
    assert found.scores["tuned"] == intervals(stats["tuned"], test["cluster_id"].tolist(), SAMPLES)
    assert set(found.differences) == {"base", "champion", "nearest"}
    assert list(found.slices) == ["bitext", "company"]
    for source, selected, rows in (("bitext", slice(0, 80), 80), ("company", slice(80, 120), 40)):
        part = found.slices[source]
        assert (part.rows, part.clusters, part.gates) == (rows, rows // 2, True)
        frames = {system: frame[selected] for system, frame in stats.items()}
        clusters = test["cluster_id"][selected].tolist()
        for system in stats:
            assert part.scores[system] == intervals(frames[system], clusters, SAMPLES)
        for other in ("base", "champion", "nearest"):
            difference = paired_bootstrap(frames["tuned"], frames[other], clusters, SAMPLES)
            assert part.differences[other] == difference
    assert found.slices["company"].scores != found.slices["bitext"].scores


@pytest.mark.parametrize(("company", "gates"), [(2 * MIN_CLUSTERS, True), (2 * MIN_CLUSTERS - 2, False), (1, False)])
def test_a_slice_of_few_clusters_is_named_and_has_no_figures(
    stats: dict[str, pd.DataFrame], company: int, gates: bool
) -> None:
    part = compare(rows_of(company), stats, SAMPLES).slices["company"]
    assert (part.rows, part.gates) == (company, gates)
    assert bool(part.scores) is bool(part.differences) is gates


def test_without_company_rows_the_only_slice_is_all_rows(stats: dict[str, pd.DataFrame]) -> None:
    found = compare(rows_of(company=0), stats, SAMPLES)
    assert list(found.slices) == ["bitext"]
    assert found.slices["bitext"].scores == found.scores
    assert found.slices["bitext"].differences == found.differences


def test_intents_with_enough_rows_are_compared_with_base_and_champion(stats: dict[str, pd.DataFrame]) -> None:
    test = rows_of()
    intents = compare(test, stats, SAMPLES).intents
    assert {intent: part.rows for intent, part in intents.items()} == {"a": 51, "b": 50}
    for intent, part in intents.items():
        rows = (test["intent"] == intent).to_numpy()
        assert set(part.differences) == {"base", "champion"}
        for other, differences in part.differences.items():
            a, b = (stats[system]["right_intent"][rows].mean() for system in ("tuned", other))
            right = differences["right_intent"]
            assert right is not None
            assert right.difference == pytest.approx(100 * (a - b))
            clusters = test["cluster_id"][rows].tolist()
            (alone,) = paired_bootstrap(
                stats["tuned"][rows], stats[other][rows], clusters, 1000, metrics=("right_intent",)
            ).values()
            assert alone is not None
            # Two intents are compared, so each has the wider interval of 97.5 %.
            assert right.low <= alone.low
            assert right.high >= alone.high
            assert right.high > alone.high or right.low < alone.low


def test_without_a_champion_intents_are_compared_with_the_base(stats: dict[str, pd.DataFrame]) -> None:
    found = compare(rows_of(), {system: stats[system] for system in ("tuned", "base")}, SAMPLES)
    assert set(found.intents["a"].differences) == {"base"}


def test_an_intent_that_is_one_cluster_is_not_compared(stats: dict[str, pd.DataFrame]) -> None:
    test = rows_of()
    test.loc[test["intent"] == "b", "cluster_id"] = "one"
    assert set(compare(test, stats, SAMPLES).intents) == {"a"}
