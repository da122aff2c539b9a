"""How sure a score, or a difference of two systems, is: a paired bootstrap over clusters of near-duplicate questions.

Rows of one cluster say nearly the same, so they are drawn together: taken as independent they would make every interval
too narrow. All systems are drawn alike, so what makes a row hard for two of them cancels out. Intervals are percentiles
of the samples (Efron and Tibshirani 1993, chapter 13; for BLEU Koehn 2004).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from cs_pipeline.errors import PipelineError
from cs_pipeline.evaluate.metrics import METRICS, corpus_scores


@dataclass(frozen=True)
class Interval:
    """A score of one system on all its rows, and the ends of the 95 % interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A score of system a minus that of system b on the same rows, and the ends of the 95 % interval.

    Of one of several comparisons it is the interval by which all of them together hold in 95 % (Bonferroni).
    ``share_above_zero`` is the share of the samples in which a has the higher score, be higher better or worse.
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

    ``stats`` has the columns of row_statistics, ``clusters`` the cluster of each row. None where corpus_scores is None,
    and where so few rows have something to judge that a sample has none. Raises PipelineError as corpus_scores does,
    and when a row has no cluster or there are fewer than two clusters.
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

    As for intervals, and with a column ``row_id``; None where a or b has none. This is one of ``comparisons``, all of which
    shall hold together. Raises PipelineError too when a and b are not the same rows in the same order.
    """
    if stats_a["row_id"].tolist() != stats_b["row_id"].tolist():
        raise PipelineError(
            f"Two systems cannot be compared: their {len(stats_a)} and {len(stats_b)} rows are not the same in order.",
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


def _sampled_scores(
    stats: pd.DataFrame, clusters: Sequence[str], samples: int, seed: int, metrics: Collection[str]
) -> dict[str, tuple[float, np.ndarray] | None]:
    """The score on all rows and the scores [samples] of as many clusters drawn with replacement, by metric."""
    cluster, names = pd.factorize(np.asarray(clusters, dtype=object))
    if len(cluster) != len(stats) or (cluster < 0).any() or len(names) < 2:
        raise PipelineError(
            f"{len(stats)} rows with {len(cluster)} clusters given, {len(names)} of them distinct and"
            f" {(cluster < 0).sum()} null: no interval can be told.",
            "Each row needs its cluster_id, and the test split at least two clusters: materialise the splits again.",
        )
    point = corpus_scores(stats, metrics)
    columns = sorted({column for name in point if point[name] is not None for column in METRICS[name].columns})
    sums = np.zeros((len(names), len(columns)))
    np.add.at(sums, cluster, stats[columns].to_numpy(float))
    drawn = pd.DataFrame(_draws(len(names), samples, seed) @ sums, columns=columns)
    results: dict[str, tuple[float, np.ndarray] | None] = dict.fromkeys(point)
    for name, score in point.items():
        if score is not None:
            scores = METRICS[name].scores(drawn[list(METRICS[name].columns)].to_numpy())
            results[name] = None if scores is None else (score, scores)
    return results


@lru_cache(maxsize=2)
def _draws(clusters: int, samples: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each sample, [samples, clusters]; equal arguments, equal draws."""
    draws = (
        np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=samples).astype(float)
    )
    draws.setflags(write=False)
    return draws


def _ends(scores: np.ndarray, comparisons: int = 1) -> tuple[float, float]:
    low, high = np.percentile(scores, [2.5 / comparisons, 100 - 2.5 / comparisons])
    return float(low), float(high)
