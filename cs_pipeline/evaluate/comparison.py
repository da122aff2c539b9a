"""The figures of all systems on the same test rows: all together, by source and by intent."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.statistics import Difference, detectable, intervals, paired_bootstrap

FEWEST_CLUSTERS = 10
"""A slice with fewer clusters has no figures and gates nothing: intervals from so few are too narrow to be believed."""

FEWEST_ROWS = 20
"""An intent with fewer test rows is not compared."""

_JUDGED = ("base", "champion")
_INTENT_SAMPLES = 10  # times as many: intervals that hold for all intents at once end far out in the tails


def compare(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], samples: int = 1000) -> dict[str, Any]:
    """``scores``, ``differences`` (tuned minus each other system) with the smallest ``detectable`` ones, ``slices`` and
    ``intents`` for ``evaluation.json``.

    ``test`` has the columns source, intent and cluster_id, ``stats`` the row statistics of each system on the same rows in
    the same order, ``tuned`` among them. A slice is the rows of one source; ``gates`` says whether it has enough clusters
    for figures. The intervals of the intents are 95 % for all of them together (Bonferroni): each is one of
    1 - 0.05 / their number. Raises PipelineError as intervals and paired_bootstrap do.
    """

    slices = {
        source: _slice(test, stats, (test["source"] == source).to_numpy(), samples)
        for source in sorted(set(test["source"]))
    }
    whole = _figures(test, stats, np.ones(len(test), bool), samples)
    smallest = {
        system: {name: detectable(Difference(**value)) if value else None for name, value in found.items()}
        for system, found in whole["differences"].items()
    }
    return {
        **whole,
        "detectable": smallest,
        "slices": slices,
        "intents": _by_intent(test, stats, samples),
    }


def on_intents(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], intents: Sequence[str], samples: int = 1000
) -> dict[str, Any] | None:
    """The slice of the rows of these ``intents``, as those of ``compare``; None without any."""
    if not intents:
        return None
    return {"intents": list(intents), **_slice(test, stats, test["intent"].isin(intents).to_numpy(), samples)}


def judgement(metric: str, difference: dict[str, Any]) -> str:
    """better, worse or unclear, by which side of zero the 95 % interval lies on; empty where no side is the better."""
    sign = {"higher": 1, "lower": -1, "none": 0}[METRICS[metric].better]
    if sign == 0:
        return ""
    if sign * difference["low"] > 0 and sign * difference["high"] > 0:
        return "better"
    return "worse" if sign * difference["low"] < 0 and sign * difference["high"] < 0 else "unclear"


def _slice(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], rows: np.ndarray, samples: int) -> dict[str, Any]:
    clusters = test["cluster_id"][rows].nunique()
    gates = clusters >= FEWEST_CLUSTERS
    figures = _figures(test, stats, rows, samples) if gates else {"scores": {}, "differences": {}}
    return {"rows": int(rows.sum()), "clusters": clusters, "gates": gates, **figures}


def _figures(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], rows: np.ndarray, samples: int) -> dict[str, Any]:
    clusters = test["cluster_id"][rows].tolist()
    those = {system: frame[rows] for system, frame in stats.items()}
    return {
        "scores": {s: _plain(intervals(frame, clusters, samples)) for s, frame in those.items()},
        "differences": {
            s: _plain(paired_bootstrap(those["tuned"], frame, clusters, samples))
            for s, frame in those.items()
            if s != "tuned"
        },
    }


def _by_intent(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], samples: int) -> dict[str, Any]:
    groups = test.groupby("intent")["cluster_id"].agg(["size", "nunique"])
    # A single cluster has no interval, however many rows it has.
    compared = groups[(groups["size"] >= FEWEST_ROWS) & (groups["nunique"] > 1)]
    intents = {}
    for intent, size in compared["size"].items():
        rows = (test["intent"] == intent).to_numpy()
        differences = {
            other: _plain(
                paired_bootstrap(
                    stats["tuned"][rows],
                    stats[other][rows],
                    test["cluster_id"][rows].tolist(),
                    _INTENT_SAMPLES * samples,
                    metrics=("right_intent",),
                    comparisons=len(compared),
                )
            )
            for other in _JUDGED
            if other in stats
        }
        intents[str(intent)] = {"rows": int(size), "differences": differences}
    return intents


def _plain(results: dict[str, Any]) -> dict[str, Any]:
    return {name: None if result is None else asdict(result) for name, result in results.items()}
