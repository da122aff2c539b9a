"""Compares the evaluated version with the other systems on the same test rows: all rows, by source and by intent."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.results import (
    ComparisonResults,
    Differences,
    HeldOutResults,
    IntentResults,
    Scores,
    SliceResults,
)
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import detectable_difference, intervals, paired_bootstrap

MIN_CLUSTERS = 10
"""A slice with fewer clusters gets no figures and cannot stop a promotion: its intervals would be too narrow."""

MIN_INTENT_ROWS = 20
"""An intent with fewer test rows is not compared."""

_COMPARED_BY_INTENT = ("base", "champion")
_INTENT_SAMPLE_FACTOR = 10  # the ends of simultaneous intervals are far out in the tails and need more samples


class Figures(TypedDict):
    """Scores by system, and the differences of the evaluated version from each other system."""

    scores: dict[str, Scores]
    differences: dict[str, Differences]


def compare(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], samples: int = 1000) -> ComparisonResults:
    """Scores every system, and subtracts each other system's score from the evaluated version's: on all rows and by source.

    ``test`` has the columns source, intent and cluster_id. ``stats`` holds the row statistics of each system, including
    ``tuned``, on the same rows in the same order.

    By intent, only the differences in ``right_intent`` from the base and from the champion are computed. Their 95 %
    intervals are simultaneous (Bonferroni): each has the level 1 - 0.05 / number of intents. Raises PipelineError in the
    same cases as ``intervals`` and ``paired_bootstrap``.
    """
    figures = scores_and_differences(test, stats, np.ones(len(test), bool), samples)
    return ComparisonResults(
        **figures,
        detectable={
            system: {name: detectable_difference(value) if value else None for name, value in differences.items()}
            for system, differences in figures["differences"].items()
        },
        slices={
            source: _slice(test, stats, (test["source"] == source).to_numpy(), samples)
            for source in sorted(set(test["source"]))
        },
        intents=_by_intent(test, stats, samples),
    )


def compare_held_out(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], intents: Sequence[str], samples: int = 1000
) -> HeldOutResults | None:
    """Scores and differences on the rows of ``intents``; None if ``intents`` is empty.

    The other arguments are as for ``compare``.
    """
    if not intents:
        return None
    results = _slice(test, stats, test["intent"].isin(intents).to_numpy(), samples)
    return HeldOutResults(**dict(results), intents=list(intents))


def judgement(metric: str, low: float, high: float) -> str:
    """Judges a difference by its 95 % interval, ``low`` to ``high``: "better", "worse", or "unclear" if it contains zero.

    Returns "" for a metric where neither higher nor lower is better, such as the length ratio.
    """
    sign = {"higher": 1, "lower": -1, "none": 0}[METRICS[metric].better]
    if sign == 0:
        return ""
    if sign * low > 0 and sign * high > 0:
        return "better"
    return "worse" if sign * low < 0 and sign * high < 0 else "unclear"


def _slice(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], rows: np.ndarray, samples: int) -> SliceResults:
    clusters = test["cluster_id"][rows].nunique()
    gates = clusters >= MIN_CLUSTERS  # enough for figures, which can stop a promotion
    figures = scores_and_differences(test, stats, rows, samples) if gates else Figures(scores={}, differences={})
    return SliceResults(rows=int(rows.sum()), clusters=clusters, gates=gates, **figures)


def scores_and_differences(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], rows: np.ndarray, samples: int = 1000
) -> Figures:
    """Scores and differences as in ``Figures``, on those rows for which ``rows`` [rows] is True.

    The other arguments and errors are those of ``compare``.
    """
    clusters = test["cluster_id"][rows].tolist()
    frames = {system: frame[rows] for system, frame in stats.items()}
    return {
        "scores": {system: intervals(frame, clusters, samples) for system, frame in frames.items()},
        "differences": {
            system: paired_bootstrap(frames["tuned"], frame, clusters, samples)
            for system, frame in frames.items()
            if system != "tuned"
        },
    }


def _by_intent(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], samples: int) -> dict[str, IntentResults]:
    groups = test.groupby("intent")["cluster_id"].agg(["size", "nunique"])
    # A single cluster has no interval, however many rows it has.
    compared = groups[(groups["size"] >= MIN_INTENT_ROWS) & (groups["nunique"] > 1)]
    intents = {}
    for intent, size in compared["size"].items():
        rows = (test["intent"] == intent).to_numpy()
        differences = {
            other: paired_bootstrap(
                stats["tuned"][rows],
                stats[other][rows],
                test["cluster_id"][rows].tolist(),
                _INTENT_SAMPLE_FACTOR * samples,
                metrics=("right_intent",),
                comparisons=len(compared),
            )
            for other in _COMPARED_BY_INTENT
            if other in stats
        }
        intents[str(intent)] = IntentResults(rows=int(size), differences=differences)
    return intents
