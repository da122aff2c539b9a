"""Formats a version's logged metrics, and the leaderboard in the lake, as texts and plots for a page."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import BEHIND_FIRST
from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.report.leaderboard import LEADERBOARD_METRICS, LEADERBOARD_SCHEMA, PICTURED_METRICS, RANKED_BY
from cs_pipeline.evaluate.report.pictures import Picture
from cs_pipeline.evaluate.report.plots import Mark, interval_picture, loss_picture
from cs_pipeline.evaluate.report.rendering import BETTER, NO_FIGURE, figure
from cs_pipeline.evaluate.scoring.metrics import METRICS

_LOSSES = ("train.steps", "train.validation_loss_before", "train.validation_loss_after")


@dataclass(frozen=True)
class LoggedScore:
    """A metric on the test rows as text, with its 95 % interval, the base's score, and how the two differ.

    ``note`` says which direction is better, ``verdict`` whether the score is better or worse than the base's.
    """

    label: str
    note: str
    score: str
    interval: str
    base: str
    difference: str
    verdict: str


def logged_scores(figures: dict[str, float]) -> list[LoggedScore]:
    """The scores in a run's metrics, which ``register`` logs as ``test.*``."""
    return [_score(name, figures) for name in LEADERBOARD_METRICS if f"test.{name}" in figures]


def logged_pictures(figures: dict[str, float]) -> list[Picture]:
    """Pictures of the main scores in a run's metrics."""
    return [_picture(name, figures) for name in PICTURED_METRICS if f"test.{name}" in figures]


def logged_loss(figures: dict[str, float], losses: Iterable[Any]) -> str:
    """An SVG of the training loss, "" if ``figures`` lacks the losses before and after. ``losses`` comes from MLflow."""
    if any(name not in figures for name in _LOSSES):
        return ""
    steps, before, after = (figures[name] for name in _LOSSES)
    curve = [{"step": point.step, "loss": point.value} for point in losses]
    about = "Training loss by step, validation loss before and after"
    return loss_picture(sorted(curve, key=lambda point: point["step"]), int(steps), before, after, about)


def leaderboard_rows(lake: DataLake) -> list[dict[str, str]]:
    """The leaderboard as texts, by column title: recipe, placeholders, metrics with intervals, distance to the first.

    Empty if no recipe was evaluated yet. Raises PipelineError if another release wrote the leaderboard.
    """
    path = lake.table("evaluate", "leaderboard")
    if not path.exists():
        return []
    table = lake.read("evaluate", "leaderboard")
    if missing := [name for name in LEADERBOARD_SCHEMA.names if name not in table.column_names]:
        raise PipelineError(
            f"{path} was written by another release: it has no column '{missing[0]}'.",
            "Build it again: dagster asset materialize --select leaderboard -m cs_pipeline.definitions",
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return [
        {"Recipe": row["recipe"], "Placeholders": row["placeholders"]}
        | {
            METRICS[name].label: _with_interval(name, row[name], row[f"{name}_low"], row[f"{name}_high"])
            for name in LEADERBOARD_METRICS
        }
        | {"Behind the first": _behind(row)}
        for row in rows
    ]


def _score(name: str, figures: dict[str, float]) -> LoggedScore:
    metric = METRICS[name]
    low, high = (figures.get(f"test.{name}.{end}") for end in ("low", "high"))
    keys = ("difference", "low", "high")
    change, change_low, change_high = (figures.get(f"test.minus_base.{name}.{key}") for key in keys)
    return LoggedScore(
        metric.label,
        BETTER[metric.better],
        figure(name, figures[f"test.{name}"]),
        "" if low is None else f"{figure(name, low)} to {figure(name, high)}",
        figure(name, figures.get(f"test.base.{name}")),
        "" if change is None else figure(name, change, signed=True),
        "" if change_low is None or change_high is None else judgement(name, change_low, change_high),
    )


def _picture(name: str, figures: dict[str, float]) -> Picture:
    """The version's score with its interval, and the base's score without one: the run has no interval for the base.

    A look-up has no base.
    """
    ends = [figures.get(f"test.{name}{end}") for end in ("", ".low", ".high")]
    base = figures.get(f"test.base.{name}")
    interval = None if None in ends else tuple(ends)
    marks = [Mark("tuned", "tuned", interval, figure(name, ends[0]))]  # type: ignore[arg-type]
    if base is not None:
        marks.append(Mark("base", "base", (base, base, base), figure(name, base)))
    metric = METRICS[name]
    systems = " and ".join(mark.label for mark in marks)
    return Picture(metric.label, BETTER[metric.better], interval_picture(marks, f"{metric.label}, {systems}"))


def _with_interval(name: str, score: float | None, low: float | None, high: float | None) -> str:
    return NO_FIGURE if score is None else f"{figure(name, score)} ({figure(name, low)} to {figure(name, high)})"


def _behind(row: dict[str, Any]) -> str:
    difference, low, high = (row[name] for name in BEHIND_FIRST)
    if difference is None or pd.isna(difference):
        return "first"
    return f"{figure(RANKED_BY, difference, True)} ({figure(RANKED_BY, low, True)} to {figure(RANKED_BY, high, True)})"
