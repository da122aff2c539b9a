"""The plots of the report, each with its caption, and the data of its heat maps."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.report.plots import Line, Mark, interval_picture, lines_picture
from cs_pipeline.evaluate.report.rendering import BETTER, NO_FIGURE, figure
from cs_pipeline.evaluate.results import LOOKUP, EvaluationResults
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Difference, Interval, intervals

_PICTURED_METRICS = (
    *("quality", "right_intent", "placeholder_f1", "fabricates", "chrf", "rougeL"),
    *("bits_per_character", "stop_rate"),
)
_SIMILARITY_METRICS, _SIMILARITY_BINS = ("quality", "right_intent", "chrf"), 6
SIMILARITY_SYSTEMS = ("base", LOOKUP, "tuned")
"""The systems in the plots by similarity; a look-up has no base."""

HEAT_MAP_METRICS = ("quality", "right_intent")
"""The metrics of the heat maps. Both range from 0 to 100."""


@dataclass(frozen=True)
class Picture:
    """A plot as an SVG element, and the two parts of its caption: ``title`` and ``note``."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class HeatRow:
    """A row of a heat map: an intent or a slice with its number of test ``rows``.

    For each metric, ``cells`` has the value of each system, from 0 to 100; None if the system has no value.
    """

    name: str
    rows: int
    cells: dict[str, list[float | None]]


def score_mark(label: str, colour_key: str, metric: str, score: Interval | None) -> Mark:
    """The mark for a score with its interval, in the colour of ``colour_key``."""
    if score is None:
        return Mark(label, colour_key, None, NO_FIGURE)
    return Mark(label, colour_key, (score.score, score.low, score.high), figure(metric, score.score))


def difference_mark(label: str, metric: str, difference: Difference | None) -> Mark:
    """The mark for a difference with its interval, in the colour of its judgement (better, worse or unclear)."""
    if difference is None:
        return Mark(label, "unclear", None, NO_FIGURE)
    ends = (difference.difference, difference.low, difference.high)
    colour_key = judgement(metric, difference.low, difference.high)
    return Mark(label, colour_key, ends, figure(metric, difference.difference, signed=True))


def score_pictures(results: EvaluationResults, systems: Sequence[str]) -> list[Picture]:
    """One plot per metric: the score of each system with its 95 % interval."""
    return _interval_pictures("95 % intervals", lambda m: [score_mark(s, s, m, results.scores[s][m]) for s in systems])


def difference_pictures(results: EvaluationResults, systems: Sequence[str]) -> list[Picture]:
    """One plot per metric: this version minus each other system, with the 95 % interval of the difference."""
    others = [system for system in systems if system != "tuned"]
    return _interval_pictures(
        "this version minus each other system",
        lambda m: [difference_mark(s, m, results.differences[s][m]) for s in others],
    )


def _interval_pictures(what: str, marks: Callable[[str], list[Mark]]) -> list[Picture]:
    by_metric = {metric: marks(metric) for metric in _PICTURED_METRICS}
    return [
        Picture(METRICS[m].label, BETTER[METRICS[m].better], interval_picture(shown, f"{METRICS[m].label}: {what}"))
        for m, shown in by_metric.items()
        if any(mark.interval for mark in shown)  # a look-up has no likelihood, and so no bits per character
    ]


def similarity_pictures(answers: pd.DataFrame) -> list[Picture]:
    """One plot per metric: the score by similarity to the nearest training question.

    The questions are in bins of about equal size. Each point is the score on the rows of one bin, with the 95 % interval of
    a bootstrap over clusters.
    """
    known = answers.dropna(subset="nearest_train_similarity")
    similarity = known["nearest_train_similarity"].to_numpy(float)
    edges = np.quantile(similarity, np.linspace(0, 1, _SIMILARITY_BINS + 1)[1:-1]) if len(known) else []
    known = known.assign(bin=np.searchsorted(np.unique(edges), similarity, side="right"))
    points: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for system in SIMILARITY_SYSTEMS:
        for _, rows in known[known["system"] == system].groupby("bin"):
            if rows["cluster_id"].nunique() < 2:
                continue  # a single cluster has no interval
            scores = intervals(rows, rows["cluster_id"].tolist())
            mean_similarity = float(rows["nearest_train_similarity"].mean())
            for metric in _SIMILARITY_METRICS:
                if (score := scores[metric]) is not None:
                    points.setdefault((metric, system), []).append(
                        (mean_similarity, score.score, score.low, score.high)
                    )
    pictures = []
    for metric in _SIMILARITY_METRICS:
        lines = [Line(name, *map(list, zip(*line, strict=True))) for (m, name), line in points.items() if m == metric]
        if lines:
            alt_text = f"{METRICS[metric].label} by similarity to the nearest training question"
            svg = lines_picture(lines, "cosine to the nearest training question", alt_text)
            pictures.append(Picture(METRICS[metric].label, BETTER[METRICS[metric].better], svg))
    return pictures


def scores_by_intent(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per intent and system: ``intent``, ``system``, ``rows``, ``quality`` and ``right_intent`` (percent).

    ``right_intent`` is NaN if the intent of no row is known (``has_known_intent``).
    """
    groups = answers.groupby(["intent", "system"], sort=True)
    sums = groups[["quality", "right_intent", "labelled"]].sum()
    shares = {"quality": sums["quality"] / groups.size(), "right_intent": sums["right_intent"] / sums["labelled"]}
    return (100 * pd.DataFrame(shares)).assign(rows=groups.size()).reset_index()


def intent_heat_map(intents: pd.DataFrame, systems: Sequence[str]) -> list[HeatRow]:
    """One row per intent of ``scores_by_intent``, this version's weakest intents first."""
    tuned = intents[intents["system"] == "tuned"].sort_values([*HEAT_MAP_METRICS, "intent"])
    return _heat_rows(intents.rename(columns={"intent": "name"}), tuned["intent"], systems)


def slice_heat_map(slices: pd.DataFrame, systems: Sequence[str]) -> list[HeatRow]:
    """One row per slice that has scores, without the intents and without the slice of all rows."""
    shown = ~slices["kind"].isin(["intent", "all"]) & slices["metric"].isin(HEAT_MAP_METRICS)
    known = slices[shown].dropna(subset="score")
    known = known.assign(name=known["kind"].str.replace("_", " ") + " " + known["slice"])
    by_metric = known.pivot(index=["name", "rows", "system"], columns="metric", values="score").reset_index()
    return _heat_rows(by_metric, known["name"].unique(), systems)


def _heat_rows(scores: pd.DataFrame, names: Iterable[str], systems: Sequence[str]) -> list[HeatRow]:
    """``scores`` has one row per name and system, with the columns ``rows`` and HEAT_MAP_METRICS."""
    rows = []
    for name in names:
        of_name = scores[scores["name"] == name].set_index("system")
        cells = {}
        for metric in HEAT_MAP_METRICS:
            values = of_name[metric].reindex(list(systems))
            cells[metric] = [None if pd.isna(value) else float(value) for value in values]
        rows.append(HeatRow(name, int(of_name["rows"].iloc[0]), cells))
    return rows
