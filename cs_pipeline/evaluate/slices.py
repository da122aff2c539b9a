"""All scores on slices of the test rows, the slices on which a system is weak, and the intents that need examples.

All functions take the test rows (columns row_id, source, category, intent, flags, cluster_id, nearest_train_similarity) and
row statistics of systems on the same rows in the same order.

The 95 % intervals in the table are not corrected for the number of slices. Weaknesses are corrected: a slice is called
weak if its difference from all other rows is significant after Holm's correction for all slices and metrics that are
tested together.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.schema import SLICE_SCORE
from cs_pipeline.evaluate.comparison import MIN_CLUSTERS
from cs_pipeline.evaluate.people.sheet import write_sheet
from cs_pipeline.evaluate.results import Weakness
from cs_pipeline.evaluate.scoring.metrics import METRICS, Metric
from cs_pipeline.evaluate.scoring.statistics import holm, sampled_sums
from cs_pipeline.retrieval.similarity import count_near

FLAGS = {
    "B": "basic structure",
    "C": "coordinated clauses",
    "E": "expanded abbreviations",
    "I": "question",
    "K": "keywords",
    "L": "other words",
    "M": "other word forms",
    "N": "negation",
    "P": "polite",
    "Q": "colloquial",
    "W": "rude",
    "Z": "typos",
}
"""The meaning of the letters in ``flags``, by Bitext's description of its data. Other letters are shown as they are."""

MIN_NEAR_SIMILARITY = 0.6
"""A training question is near if its cosine is at least this. In 12,000 Bitext rows, 90 % of near questions had the
same intent."""

_WEAKNESS_METRICS = ("right_intent", "chrf", "bits_per_character")
"""The metrics that can make a slice weak. They measure intent, wording, and how unexpected the reference is to the model."""

_WEAK_INTENT_COLUMNS = (
    *("category", "intent", "metric", "score", "elsewhere", "p_holm"),
    *("test_rows", "train_rows", "near", "near_elsewhere", "advice"),
)


@dataclass(frozen=True)
class SlicePart:
    """A slice of the test rows; ``mask`` [test rows] is True for the rows in it."""

    kind: str
    name: str
    mask: np.ndarray


def count_near_train_rows(questions: Sequence[str], train_questions: Sequence[str]) -> np.ndarray:
    """How many training questions are near each test question (cosine MIN_NEAR_SIMILARITY or more): [questions]."""
    return count_near(questions, train_questions, MIN_NEAR_SIMILARITY)


def slice_parts(test: pd.DataFrame, reference_words: Sequence[int]) -> list[SlicePart]:
    """The slices of the test rows: ``all``, then by source, category, intent, flag, similarity and answer length.

    Similarity and length (words of the reference) are cut into quarters of about equally many rows. A part that holds all
    rows or none is left out.
    """
    found = [SlicePart("all", "all", np.ones(len(test), bool))]
    for kind in ("source", "category", "intent"):
        values = test[kind].fillna("none").to_numpy(str)
        found += [SlicePart(kind, name, values == name) for name in sorted(set(values))]
    flags = test["flags"].fillna("").to_numpy(str)
    for letter in sorted(set("".join(flags))):
        found.append(SlicePart("flag", FLAGS.get(letter, letter), np.char.find(flags, letter) >= 0))
    similarity = test["nearest_train_similarity"].to_numpy(float)
    found += [SlicePart("similarity", name, mask) for name, mask in _quarters(similarity, 2)]
    words = np.asarray(reference_words, float)
    found += [SlicePart("answer_length", f"{name} words", mask) for name, mask in _quarters(words, 0)]
    return [part for part in found if part.kind == "all" or 0 < part.mask.sum() < len(test)]


def slice_scores(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], samples: int = 1000, seed: int = 0) -> pa.Table:
    """All METRICS of all systems on all slices (schema SLICE_SCORE).

    Raises PipelineError when ``stats`` do not belong to the rows of ``test``, or when an input is missing in some of them.
    """
    measured = {system: [m for m in METRICS.values() if m.has_inputs(frame)] for system, frame in stats.items()}
    columns = _columns(METRICS.values())
    values = np.hstack([_values(test, frame, columns) for frame in stats.values()])
    clusters = test["cluster_id"].to_numpy(object)
    rows: list[tuple[Any, ...]] = []
    for part in slice_parts(test, next(iter(stats.values()))["reference_words"].tolist()):
        within = clusters[part.mask].tolist()
        figures: dict[tuple[str, str], np.ndarray] = {}
        if len(set(within)) >= MIN_CLUSTERS:
            sums = _sums(values[part.mask], within, samples, seed).reshape(1 + samples, len(stats), len(columns))
            for i, system in enumerate(stats):
                for metric in measured[system]:
                    scores = metric.scores(sums[:, i, [columns[name] for name in metric.columns]])
                    if scores is not None:
                        figures[system, metric.name] = scores
        intervals = _with_intervals(figures)
        about = (part.kind, part.name, len(within), len(set(within)))
        rows += [(*about, *key, *intervals.get(key, (None, None, None))) for key in product(stats, METRICS)]
    arrays = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SLICE_SCORE, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SLICE_SCORE)


def weaknesses(
    test: pd.DataFrame,
    stats: pd.DataFrame,
    near_counts: np.ndarray,
    train_intents: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
) -> list[Weakness]:
    """The slices on which the system with the row statistics ``stats`` is significantly worse than elsewhere, worst first.

    ``near_counts`` [test rows] is from count_near_train_rows, ``train_intents`` the intent of each training row. Right
    intent, chrF and bits per character (if the system has them) are tested, one-sided, on every slice that has at least
    MIN_CLUSTERS clusters inside and outside it. If no slice is truly worse, the chance that any is returned is at most 5 %.

    The standard error of the difference (rest minus slice) comes from the bootstrap, but is never smaller than that of the
    same number of clusters drawn from all rows: a slice whose rows all fail in the same way has no spread of its own. The
    distribution is Student's t; its degrees of freedom are the slice's number of clusters minus one. Raises PipelineError as
    slice_scores does.
    """
    from scipy.stats import t as student

    metrics = [METRICS[name] for name in _WEAKNESS_METRICS if METRICS[name].has_inputs(stats)]
    clusters = test["cluster_id"].to_numpy(object)
    parts = slice_parts(test, stats["reference_words"].tolist())
    compared = [part for part in parts if _has_enough_clusters(part, clusters)]
    if not compared:
        return []
    columns = _columns(metrics)
    values = _values(test, stats, columns)
    overall = _sums(values, clusters.tolist(), samples, seed)
    by_slice = np.hstack([values * part.mask[:, None] for part in compared])
    of_slices = _sums(by_slice, clusters.tolist(), samples, seed).reshape(1 + samples, len(compared), len(columns))
    train_counts = Counter(train_intents)
    found = []
    for i, part in enumerate(compared):
        size = len(set(clusters[part.mask]))
        for metric in metrics:
            used = [columns[name] for name in metric.columns]
            inside, outside, all_rows = (
                _scores_or_nan(metric, sums[:, used], sums[:, columns["rows"]])
                for sums in (of_slices[:, i], overall - of_slices[:, i], overall)
            )
            loss = (outside - inside) * (1 if metric.better == "higher" else -1)
            if not np.isfinite(loss[0]):
                continue  # no row inside the slice, or none outside it, has a known intent
            minimum = np.nanstd(all_rows[1:]) * (len(set(clusters)) / size) ** 0.5
            error = max(float(np.nanstd(loss[1:])), float(minimum))
            weakness = Weakness(
                kind=part.kind,
                slice=part.name,
                rows=int(part.mask.sum()),
                clusters=size,
                metric=metric.name,
                score=float(inside[0]),
                rest=float(outside[0]),
                p=float(student.sf(loss[0] / error, size - 1)) if error else 1.0,  # no spread at all: no difference
                train_rows=train_counts[part.name] if part.kind == "intent" else None,
                near=float(np.median(near_counts[part.mask])),
                near_rest=float(np.median(near_counts[~part.mask])),
            )
            found.append(weakness)
    adjusted = zip(found, holm([weakness.p for weakness in found]), strict=True)
    significant = [replace(weakness, p=p) for weakness, p in adjusted if p < 0.05]
    return sorted(significant, key=lambda weakness: (-weakness.shortfall, weakness.kind, weakness.slice))


def write_weak_intents(path: Path, weak: Sequence[Weakness], categories: Mapping[str, str]) -> int:
    """Writes the intents among ``weak`` as a CSV for the authors of new examples; returns how many there are.

    One line per intent and metric, worst first; ``categories`` is the category of each intent. The file contains no
    test questions: an example modelled on one would join its cluster, and so the test split.
    """
    intents = [weakness for weakness in weak if weakness.kind == "intent"]
    rows = (
        [
            *(categories.get(w.slice), w.slice, METRICS[w.metric].label, round(w.score, 3), round(w.rest, 3), w.p),
            *(w.rows, w.train_rows, w.near, w.near_rest, w.advice),
        ]
        for w in intents
    )
    write_sheet(path, _WEAK_INTENT_COLUMNS, rows)
    return len({weakness.slice for weakness in intents})


def _columns(metrics: Iterable[Metric]) -> dict[str, int]:
    """The position of each input column of ``metrics``, and of the number of rows."""
    names = {"rows"}.union(*(metric.columns for metric in metrics))
    return {name: i for i, name in enumerate(sorted(names))}


def _values(test: pd.DataFrame, stats: pd.DataFrame, columns: Iterable[str]) -> np.ndarray:
    if test["row_id"].tolist() != stats["row_id"].tolist():
        raise PipelineError(
            f"The {len(stats)} scored rows are not the {len(test)} test rows in the same order.",
            "Evaluate the system again on the current test split.",
        )
    return stats[list(columns)].to_numpy(float)


def _sums(values: np.ndarray, clusters: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """Sums [1 + samples, columns]: first of all rows, then of each bootstrap sample."""
    return np.vstack([values.sum(axis=0), sampled_sums(values, clusters, samples, seed)])


def _with_intervals(figures: Mapping[Any, np.ndarray]) -> dict[Any, tuple[float, float, float]]:
    """By key, the score and the ends of its 95 % interval. ``figures`` holds scores [1 + samples] by key."""
    if not figures:
        return {}
    scores = np.array(list(figures.values()))
    low, high = np.percentile(scores[:, 1:], [2.5, 97.5], axis=1)
    return dict(zip(figures, zip(scores[:, 0].tolist(), low.tolist(), high.tolist(), strict=True), strict=True))


def _scores_or_nan(metric: Metric, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores of sums [1 + samples, columns]; NaN for a sample without a row of the slice."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rows > 0, metric.function(sums), np.nan)


def _has_enough_clusters(part: SlicePart, clusters: np.ndarray) -> bool:
    """Whether the slice and the rest each have enough clusters."""
    return min(len(set(clusters[part.mask])), len(set(clusters[~part.mask]))) >= MIN_CLUSTERS


def _quarters(values: np.ndarray, digits: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and masks of the quarters of ``values``, the lowest first. Equal values stay together; NaN is in none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    quarter = np.where(np.isfinite(values), np.searchsorted(edges, values, side="left"), -1)
    for number in sorted(set(quarter.tolist()) - {-1}):
        mask = quarter == number
        yield f"{number + 1}: {values[mask].min():.{digits}f} to {values[mask].max():.{digits}f}", mask
