"""The figures of all systems on the same test rows: all together, by source and by intent."""

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
"""A slice with fewer clusters gets no figures and gates nothing: intervals from so few are too narrow to be believed."""

MIN_INTENT_ROWS = 20
"""An intent with fewer test rows is not compared."""

_REFERENCE_SYSTEMS = ("base", "champion")
_INTENT_SAMPLES = 10  # times as many: intervals that hold for all intents at once end far out in the tails


class _Figures(TypedDict):
    scores: dict[str, Scores]
    differences: dict[str, Differences]


def compare(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], samples: int = 1000) -> ComparisonResults:
    """Scores, and differences of the tuned model from each other system, on all rows, by source and by intent.

    ``test`` has the columns source, intent and cluster_id; ``stats`` holds the row statistics of each system on the same
    rows in the same order, ``tuned`` among them. The intervals of the intents are 95 % for all of them together
    (Bonferroni): each is one of 1 - 0.05 / their number. Raises PipelineError as intervals and paired_bootstrap do.
    """
    figures = _figures(test, stats, np.ones(len(test), bool), samples)
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
    """The figures on the rows of these ``intents``, None without any; arguments as for ``compare``."""
    if not intents:
        return None
    part = _slice(test, stats, test["intent"].isin(intents).to_numpy(), samples)
    return HeldOutResults(**dict(part), intents=list(intents))


def judgement(metric: str, low: float, high: float) -> str:
    """better, worse or unclear, by the side of zero on which the 95 % interval of a difference lies.

    Empty for a metric of which neither more nor less is better.
    """
    sign = {"higher": 1, "lower": -1, "none": 0}[METRICS[metric].better]
    if sign == 0:
        return ""
    if sign * low > 0 and sign * high > 0:
        return "better"
    return "worse" if sign * low < 0 and sign * high < 0 else "unclear"


def _slice(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], rows: np.ndarray, samples: int) -> SliceResults:
    clusters = test["cluster_id"][rows].nunique()
    gates = clusters >= MIN_CLUSTERS
    figures = _figures(test, stats, rows, samples) if gates else _Figures(scores={}, differences={})
    return SliceResults(rows=int(rows.sum()), clusters=clusters, gates=gates, **figures)


def _figures(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], rows: np.ndarray, samples: int) -> _Figures:
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
                _INTENT_SAMPLES * samples,
                metrics=("right_intent",),
                comparisons=len(compared),
            )
            for other in _REFERENCE_SYSTEMS
            if other in stats
        }
        intents[str(intent)] = IntentResults(rows=int(size), differences=differences)
    return intents
