from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.scoring.metrics import METRICS, corpus_scores, row_statistics
from cs_pipeline.evaluate.scoring.statistics import (
    POWER,
    Difference,
    Interval,
    cohen_kappa,
    detectable_difference,
    holm,
    intervals,
    krippendorff_alpha,
    paired_bootstrap,
    wilson,
)

COLUMNS = sorted({column for metric in METRICS.values() for column in metric.columns})


def simulated(**known: object) -> pd.DataFrame:
    """Row statistics of a system that reports only these columns."""
    stats = pd.DataFrame(dict.fromkeys(COLUMNS, np.nan) | known)
    return stats.assign(rows=1, labelled=1, row_id=[f"row {i}" for i in range(len(stats))])


def own_clusters(stats: pd.DataFrame) -> list[str]:
    return stats["row_id"].tolist()


def interval_of(stats: pd.DataFrame, clusters: list[str], name: str) -> Interval:
    interval = intervals(stats, clusters, samples=400)[name]
    assert interval is not None
    return interval


def difference_of(a: pd.DataFrame, b: pd.DataFrame, clusters: list[str], name: str, seed: int = 0) -> Difference:
    difference = paired_bootstrap(a, b, clusters, samples=400, seed=seed)[name]
    assert difference is not None
    return difference


@pytest.fixture(scope="module")
def texts() -> pd.DataFrame:
    """Row statistics of 60 written answers that share between none and all of their words with the reference."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(40)])
    references = ["{{Order Number}} " + " ".join(rng.choice(words, 20)) for _ in range(60)]
    answers = [" ".join([*r.split()[: i % 23], *rng.choice(words, 5)]) for i, r in enumerate(references)]
    return row_statistics([""] * 60, answers, references).assign(
        row_id=[str(i) for i in range(60)],
        nll=rng.uniform(10, 90, 60),
        answer_tokens=25,
        answer_chars=140,
        right_intent=rng.integers(0, 2, 60),
        stopped=1,
    )


def test_a_system_does_not_differ_from_itself(texts: pd.DataFrame) -> None:
    clusters = [str(i // 3) for i in range(60)]
    differences = paired_bootstrap(texts, texts.copy(), clusters)
    assert set(differences) == set(METRICS)
    compared = {d for d in differences.values() if d is not None}
    assert compared == {Difference(0.0, 0.0, 0.0, 0.0, rows=60, clusters=20)}


def test_the_interval_contains_the_score_for_every_metric(texts: pd.DataFrame) -> None:
    scores = corpus_scores(texts)
    for name, interval in intervals(texts, [str(i // 3) for i in range(60)]).items():
        if interval is not None:
            assert interval.score == scores[name]
            assert interval.low <= interval.score <= interval.high, name


def test_equal_seeds_give_equal_intervals(texts: pd.DataFrame) -> None:
    clusters = own_clusters(texts)
    assert intervals(texts, clusters, seed=1) == intervals(texts, clusters, seed=1)
    assert intervals(texts, clusters, seed=1) != intervals(texts, clusters, seed=2)


def test_a_clear_gain_is_found(texts: pd.DataFrame) -> None:
    better = texts.assign(nll=texts["nll"] * 0.8)
    gain = difference_of(better, texts, own_clusters(texts), "bits_per_character")
    assert gain.low < gain.difference < gain.high < 0
    assert gain.share_above_zero == 0
    loss = difference_of(texts, better, own_clusters(texts), "bits_per_character")
    assert (loss.difference, loss.share_above_zero) == (-gain.difference, 1)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    hardness = rng.uniform(0, 100, 300)
    a, b = (simulated(rougeL=hardness + rng.normal(shift, 1, 300)) for shift in (1, 0))
    alone, paired = interval_of(a, own_clusters(a), "rougeL"), difference_of(a, b, own_clusters(a), "rougeL")
    assert paired.low > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 5


def test_equally_good_systems_differ_in_five_percent_of_the_cases() -> None:
    rng = np.random.default_rng(2)
    significant = 0
    for seed in range(200):
        hardness = rng.uniform(0, 100, 200)
        a, b = (simulated(rougeL=hardness + rng.normal(0, 10, 200)) for _ in range(2))
        difference = difference_of(a, b, own_clusters(a), "rougeL", seed)
        significant += difference.low > 0 or difference.high < 0
    # 10 of 200 are expected; Binomial(200, 0.05) is outside 2 to 20 with less than 1 in 500 on either side.
    assert 2 <= significant <= 20


def test_the_interval_covers_the_true_ratio_in_95_percent_of_the_cases() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        chars = rng.integers(50, 500, 200)
        stats = simulated(nll=np.log(2) * chars * rng.gamma(4, 0.5 / 4, 200), answer_tokens=chars, answer_chars=chars)
        interval = interval_of(stats, own_clusters(stats), "bits_per_character")
        covered += interval.low <= 0.5 <= interval.high
    assert 180 <= covered <= 198


def test_intervals_of_several_comparisons_hold_jointly() -> None:
    """Ten equal intents: the chance that any interval excludes zero is that of one comparison, not of ten."""
    rng = np.random.default_rng(5)
    alone, together = 0, 0
    for seed in range(25):
        pairs = [[simulated(rougeL=rng.normal(50, 10, 60)) for _ in range(2)] for _ in range(10)]
        for count, comparisons in ((1, 1), (10, 10)):
            found = [
                paired_bootstrap(a, b, own_clusters(a), 2000, seed, metrics=("rougeL",), comparisons=comparisons)[
                    "rougeL"
                ]
                for a, b in pairs
            ]
            outside = sum(d is not None and (d.low > 0 or d.high < 0) for d in found)
            alone += outside if count == 1 else 0
            together += bool(outside) if count == 10 else 0
    assert 5 <= alone <= 25  # 12 of 250 expected
    assert together <= 5  # 1 of 25 expected; with plain intervals 10


def test_only_the_requested_metrics_are_compared(texts: pd.DataFrame) -> None:
    clusters = own_clusters(texts)
    some = paired_bootstrap(texts, texts.assign(stopped=0.5), clusters, metrics=("stop_rate", "chrf"))
    every = paired_bootstrap(texts, texts.assign(stopped=0.5), clusters)
    assert list(some) == ["stop_rate", "chrf"]
    assert some == {name: every[name] for name in some}


def test_rows_of_one_cluster_do_not_count_as_independent() -> None:
    values = np.repeat(np.random.default_rng(4).uniform(0, 100, 100), 4)
    stats = simulated(rougeL=values)
    by_row, by_cluster = (
        interval_of(stats, c, "rougeL") for c in (own_clusters(stats), [str(i // 4) for i in range(400)])
    )
    # Four equal rows carry the information of one, so the interval is twice as wide.
    assert (by_cluster.high - by_cluster.low) / (by_row.high - by_row.low) == pytest.approx(2, rel=0.2)


def test_an_input_missing_in_some_rows_raises(texts: pd.DataFrame) -> None:
    broken = texts.assign(nll=texts["nll"].where(texts.index != 7))
    for compare in (
        lambda: intervals(broken, own_clusters(texts)),
        lambda: paired_bootstrap(texts, broken, own_clusters(texts)),
    ):
        with pytest.raises(PipelineError, match=r"'nll' is not a number in 1 of 60 rows"):
            compare()


def test_a_metric_that_one_system_lacks_has_no_difference(texts: pd.DataFrame) -> None:
    differences = paired_bootstrap(texts, texts.assign(nll=np.nan), own_clusters(texts))
    whole = paired_bootstrap(texts, texts, own_clusters(texts))
    lost = {name for name, d in differences.items() if d is None and whole[name] is not None}
    assert lost == {"bits_per_character", "perplexity"}


def test_too_few_placeholders_for_a_sample_have_no_interval(texts: pd.DataFrame) -> None:
    one = texts.assign(answer_placeholders=0, matched_placeholders=0, invented_placeholders=0)
    one.loc[0, ["answer_placeholders", "matched_placeholders"]] = 1
    assert corpus_scores(one)["placeholder_precision"] == 100
    assert intervals(one, own_clusters(one))["placeholder_precision"] is None
    assert paired_bootstrap(one, texts, own_clusters(one))["placeholder_precision"] is None


def test_other_rows_or_another_order_cannot_be_compared(texts: pd.DataFrame) -> None:
    for other in (texts.iloc[::-1], texts.iloc[:-1]):
        with pytest.raises(PipelineError, match="rows differ, or their order does"):
            paired_bootstrap(texts, other, own_clusters(texts))


@pytest.mark.parametrize("clusters", [["one"] * 60, ["a", "b"], [None, *"ab" * 29, "a"]], ids=["one", "short", "null"])
def test_rows_without_clusters_have_no_interval(texts: pd.DataFrame, clusters: list[str]) -> None:
    with pytest.raises(PipelineError, match="no interval can be computed"):
        intervals(texts, clusters)


def noisy_pair(seed: int, shift: float) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Two systems on 150 rows in 75 clusters, the second better by ``shift`` on average."""
    rng = np.random.default_rng((seed, 7))
    a, b = (simulated(rougeL=rng.normal(50 + by, 10, 150), right_intent=rng.integers(0, 2, 150)) for by in (0, shift))
    return a, b, [str(row // 2) for row in range(150)]


def false_alarms(
    stats_a: pd.DataFrame,
    stats_b: pd.DataFrame,
    clusters: Sequence[str],
    metrics: Collection[str],
    seeds: int = 100,
    samples: int = 1000,
) -> dict[str, int]:
    """How many of ``seeds`` pairs of equally good systems are called different, by metric; about 5 of 100 is right.

    For each seed a and b are swapped in a random half of the clusters. Of the two resulting systems neither is better, and
    their rows differ as much as those of a and b. Arguments and errors as for paired_bootstrap.
    """
    cluster, names = pd.factorize(np.asarray(clusters, dtype=object))
    columns = sorted({column for name in metrics for column in METRICS[name].columns})
    a, b = stats_a[["row_id", *columns]], stats_b[["row_id", *columns]]
    alarms = dict.fromkeys(metrics, 0)
    for seed in range(seeds):
        swap = pd.Series(np.random.default_rng((seed, 1)).random(len(names))[cluster] < 0.5, index=a.index)
        one, other = a.mask(swap, b.set_axis(a.index)), b.set_axis(a.index).mask(swap, a)
        for name, found in paired_bootstrap(one, other, clusters, samples, seed, metrics=metrics).items():
            alarms[name] += found is not None and not found.low <= 0 <= found.high
    return alarms


def test_two_equal_models_differ_in_about_five_of_a_hundred_seeds() -> None:
    a, b, clusters = noisy_pair(0, shift=8)
    (clear,) = paired_bootstrap(a, b, clusters, 200, metrics=("rougeL",)).values()
    assert clear is not None
    assert clear.high < 0, "the systems themselves do differ"
    alarms = false_alarms(a, b, clusters, ("rougeL", "right_intent"), seeds=100, samples=200)
    assert set(alarms) == {"rougeL", "right_intent"}
    for metric, count in alarms.items():
        assert 1 <= count <= 12, (
            f"{metric}: {count} of 100; if the rate is 5 %, the count is outside 1 to 12 in 1 of 100 evaluations"
        )


def test_a_detectable_difference_is_found_in_four_of_five_cases() -> None:
    a, b, clusters = noisy_pair(0, shift=0)
    least = detectable_difference(difference_of(a, b, clusters, "rougeL"))
    assert least is not None
    assert least == pytest.approx((1.96 + 0.84) * 10 * np.sqrt(2 / 150), rel=0.2)
    found = 0
    for seed in range(1, 101):
        a, b, clusters = noisy_pair(seed, shift=least)
        (difference,) = paired_bootstrap(b, a, clusters, 200, metrics=("rougeL",)).values()
        assert difference is not None
        found += difference.low > 0
    assert POWER - 0.12 < found / 100 < POWER + 0.12


def test_systems_that_never_differ_have_no_detectable_difference() -> None:
    assert detectable_difference(Difference(0.0, 0.0, 0.0, 0.0, rows=60, clusters=20)) is None


def test_holm_by_hand() -> None:
    # Smallest times 4, next times 3, next times 2, last unchanged; none smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("count", "rows", "low", "high"),
    # Wilson 1927, by its formula with z = 1.959964.
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_follow_the_formula_of_1927(count: int, rows: int, low: float, high: float) -> None:
    assert wilson(count, rows) == pytest.approx((low, high), abs=1e-4)


KRIPPENDORFF = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]
"""Krippendorff (2011), section D: four observers, twelve units; alpha is 0.743 nominal and 0.815 ordinal."""


def judgements(observers: list[str]) -> tuple[list[int], list[int]]:
    given = [(unit, value) for row in observers for unit, value in enumerate(row.split()) if value != "."]
    return [unit for unit, _ in given], [int(value) for _, value in given]


def test_alpha_of_the_published_example() -> None:
    units, values = judgements(KRIPPENDORFF)
    assert krippendorff_alpha(units, values, "nominal") == pytest.approx(0.743, abs=0.0005)
    assert krippendorff_alpha(units, values, "ordinal") == pytest.approx(0.815, abs=0.0005)


def test_alpha_depends_on_neither_order_nor_names() -> None:
    units, values = judgements(KRIPPENDORFF)
    shuffled = np.random.default_rng(0).permutation(len(units))
    names = [f"unit {units[i]}" for i in shuffled]
    stretched = [10 * values[i] ** 2 for i in shuffled]  # the ranks stay the same
    expected = krippendorff_alpha(units, values, "ordinal")
    assert krippendorff_alpha(names, stretched, "ordinal") == pytest.approx(expected)


def test_alpha_of_full_agreement_chance_and_no_judgements() -> None:
    assert krippendorff_alpha(["x", "x", "y", "y"], [1, 1, 5, 5], "ordinal") == 1
    assert krippendorff_alpha(["x", "x", "y", "y"], ["a", "b", "a", "b"], "nominal") == pytest.approx(-0.5)
    rng = np.random.default_rng(0)
    chance = krippendorff_alpha([i // 3 for i in range(3000)], rng.integers(1, 6, 3000).tolist(), "ordinal")
    assert chance == pytest.approx(0, abs=0.05)
    assert krippendorff_alpha([], [], "ordinal") is None
    assert krippendorff_alpha(["x", "y"], [1, 2], "ordinal") is None, "no unit was judged twice"
    assert krippendorff_alpha(["x", "x"], [3, 3], "ordinal") is None, "all values are equal"


def test_kappa_equals_a_hand_computed_value_and_scikit_learn() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: 0.7 observed, 0.5 by chance.
    one, other = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.choice(["a", "b", "tie"], 30).tolist(), rng.choice(["a", "tie"], 30).tolist()
        assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))


def test_kappa_of_full_agreement_and_no_cases() -> None:
    assert cohen_kappa(["a", "b", "tie"], ["a", "b", "tie"]) == 1
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa(["a", "a"], ["b", "b"]) == 0
