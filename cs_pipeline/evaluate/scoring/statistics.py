"""The uncertainty of scores and of differences between systems, and the agreement between judges.

Intervals come from a bootstrap over clusters of near-duplicate questions. Rows of a cluster are drawn together: treating
them as independent would make every interval too narrow. All systems get the same draws, so differences are paired and the
difficulty of a row cancels out. The ends are percentiles of the samples (Efron and Tibshirani 1993, chapter 13; for BLEU
Koehn 2004). Seeds are fixed, so equal input gives equal intervals.

Multiple comparisons are corrected for in two places: the intervals of the intents are simultaneous (Bonferroni,
``comparisons``), and p-values are adjusted (``holm``) before a slice is called weak. The intervals in tables of scores are
not corrected: each of them is a separate 95 % interval.
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.scoring.metrics import METRICS, corpus_scores


@dataclass(frozen=True)
class Interval:
    """A score of one system on all its rows, with the 95 % interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A score of system a minus that of system b on the same rows, with the 95 % interval.

    If it is one of several comparisons, the interval is widened so that all of them hold simultaneously at 95 %
    (Bonferroni). ``share_above_zero`` is the share of samples in which a has the higher score, whether higher is better or
    worse.
    """

    difference: float
    low: float
    high: float
    share_above_zero: float
    rows: int
    clusters: int


def intervals(
    stats: pd.DataFrame, clusters: Sequence[str], samples: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """The scores of a system with their intervals, by the names of METRICS.

    ``stats`` has the columns of ``row_statistics``, ``clusters`` the cluster of each row. A score is None where
    ``corpus_scores`` gives None, and where so few rows have something to score that a sample drew none of them. Raises
    PipelineError as ``corpus_scores`` does, and when a row has no cluster or there are fewer than two clusters.
    """
    results: dict[str, Interval | None] = {}
    for name, sampled in _sampled_scores(stats, clusters, samples, seed, METRICS).items():
        results[name] = None if sampled is None else Interval(sampled[0], *_ends(sampled[1]))
    return results


def paired_bootstrap(
    stats_a: pd.DataFrame,
    stats_b: pd.DataFrame,
    clusters: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    *,
    metrics: Collection[str] = tuple(METRICS),
    comparisons: int = 1,
) -> dict[str, Difference | None]:
    """The differences a - b with their intervals, by the names of ``metrics``.

    The arguments are as for ``intervals``; ``stats_a`` and ``stats_b`` also need a column ``row_id``. A difference is None
    where a or b has no interval. ``comparisons`` is the number of comparisons, including this one, that must hold
    simultaneously. Raises PipelineError as ``intervals`` does, and when a and b are not the same rows in the same order.
    """
    if stats_a["row_id"].tolist() != stats_b["row_id"].tolist():
        raise PipelineError(
            f"Two systems cannot be compared: their {len(stats_a)} and {len(stats_b)} rows differ, or their order does.",
            "Evaluate both systems again on the same test split.",
        )
    sampled_a = _sampled_scores(stats_a, clusters, samples, seed, metrics)
    sampled_b = _sampled_scores(stats_b, clusters, samples, seed, metrics)
    results: dict[str, Difference | None] = {}
    for name in metrics:
        a, b = sampled_a[name], sampled_b[name]
        if a is None or b is None:
            results[name] = None
            continue
        drawn = a[1] - b[1]
        above = float((drawn > 0).mean())
        results[name] = Difference(a[0] - b[0], *_ends(drawn, comparisons), above, len(stats_a), len(set(clusters)))
    return results


POWER = 0.8
"""A true difference as large as the detectable one is found with this probability."""


def detectable_difference(difference: Difference) -> float | None:
    """The smallest true difference that this number of test clusters can show, in the metric's unit.

    If the true difference is that large, its 95 % interval excludes zero with probability POWER. It equals (z of the
    interval's ends + z of POWER) standard errors (Bloom 1995). The standard error is derived from the width of the interval.
    None if the systems do not differ in any sample: the standard error is then unknown.
    """
    half = (difference.high - difference.low) / 2
    if half == 0:
        return None
    z = NormalDist().inv_cdf(0.975)
    return half * (z + NormalDist().inv_cdf(POWER)) / z


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for multiple tests, in the order given (Holm 1979).

    If values below 0.05 count as findings, at most 5 % of evaluations contain a false finding, no matter how the tests
    depend on each other.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def wilson(successes: float, cases: int) -> tuple[float, float] | None:
    """The ends of the 95 % interval of a share of independent cases (Wilson 1927), 0 to 1; None without cases."""
    if cases == 0:
        return None
    z = NormalDist().inv_cdf(0.975)
    share = successes / cases
    centre = share + z**2 / (2 * cases)
    half = z * (share * (1 - share) / cases + z**2 / (4 * cases**2)) ** 0.5
    low, high = (centre - half) / (1 + z**2 / cases), (centre + half) / (1 + z**2 / cases)
    # For a share of 0 or 1 one end equals the share exactly; avoid rounding errors there.
    return 0.0 if successes == 0 else low, 1.0 if successes == cases else high


def sampled_sums(values: np.ndarray, clusters: Sequence[str], samples: int = 1000, seed: int = 0) -> np.ndarray:
    """Bootstrap sums [samples, columns] of ``values`` [rows, columns].

    Each sample draws clusters with replacement, as many as there are.

    Raises PipelineError when a row has no cluster or there are fewer than two clusters.
    """
    cluster, names = pd.factorize(np.asarray(clusters, dtype=object))
    if len(cluster) != len(values) or (cluster < 0).any() or len(names) < 2:
        raise PipelineError(
            f"{len(values)} rows with {len(cluster)} clusters given, {len(names)} of them distinct and"
            f" {(cluster < 0).sum()} null: no interval can be computed.",
            "Each row needs its cluster_id, and the test split at least two clusters: materialise the splits again.",
        )
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, cluster, values)
    return _draws(len(names), samples, seed) @ sums


def _sampled_scores(
    stats: pd.DataFrame, clusters: Sequence[str], samples: int, seed: int, metrics: Collection[str]
) -> dict[str, tuple[float, np.ndarray] | None]:
    """The score on all rows, and the scores [samples] of the bootstrap samples, by metric."""
    on_all_rows = corpus_scores(stats, metrics)
    scored = [METRICS[name] for name, score in on_all_rows.items() if score is not None]
    columns = sorted({column for metric in scored for column in metric.columns})
    drawn = pd.DataFrame(sampled_sums(stats[columns].to_numpy(float), clusters, samples, seed), columns=columns)
    results: dict[str, tuple[float, np.ndarray] | None] = dict.fromkeys(on_all_rows)
    for name, score in on_all_rows.items():
        if score is not None:
            scores = METRICS[name].scores(METRICS[name].values(drawn))
            results[name] = None if scores is None else (score, scores)
    return results


@lru_cache(maxsize=2)
def _draws(cluster_count: int, samples: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each sample, [samples, clusters]; equal arguments give equal draws."""
    shares = np.full(cluster_count, 1 / cluster_count)
    draws = np.random.default_rng(seed).multinomial(cluster_count, shares, size=samples).astype(float)
    draws.setflags(write=False)
    return draws


def _ends(scores: np.ndarray, comparisons: int = 1) -> tuple[float, float]:
    low, high = np.percentile(scores, [2.5 / comparisons, 100 - 2.5 / comparisons])
    return float(low), float(high)


def krippendorff_alpha(
    units: Sequence[Hashable], values: Sequence[float | str], level: Literal["nominal", "ordinal"]
) -> float | None:
    """Krippendorff's alpha: 1 is full agreement, 0 is chance. ``values[i]`` is one judge's value for ``units[i]``.

    Units with a single value are ignored. It does not matter which judge gave a value. With ``ordinal`` the distance between
    two values depends on how many judgements lie between them. None if no unit has two values or all values are equal.
    Source: Krippendorff (2011), Computing Krippendorff's Alpha-Reliability.
    """
    counts = _value_counts(units, values)
    sizes = counts.sum(axis=1, keepdims=True)
    counts, sizes = counts[sizes[:, 0] > 1], sizes[sizes[:, 0] > 1]
    if not len(counts):
        return None
    coincidences = counts.T @ (counts / (sizes - 1)) - np.diag((counts / (sizes - 1)).sum(axis=0))
    totals = coincidences.sum(axis=1)
    if level == "nominal":
        distances = 1.0 - np.eye(len(totals))
    else:
        # All values between the two categories count, and half of those in each of the two.
        middle = np.cumsum(totals) - totals / 2
        distances = (middle[:, None] - middle[None, :]) ** 2
    by_chance = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    expected = float((by_chance * distances).sum())
    return 1 - float((coincidences * distances).sum()) / expected if expected else None


def _value_counts(units: Sequence[Hashable], values: Sequence[float | str]) -> np.ndarray:
    """How often each unit got each value: [units, values], the values sorted."""
    unit, names = pd.factorize(np.asarray(units, dtype=object))
    value, kinds = pd.factorize(np.asarray(values), sort=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (unit, value), 1)
    return counts


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Cohen's kappa of two judges' categories for the same cases (Cohen 1960), unweighted.

    None without cases, and when both judges always use the same single category, so that chance explains all agreement.
    """
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(one, other)) if len({*one, *other}) > 1 else None
