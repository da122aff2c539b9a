"""What is known of how good a version is: from its run in MLflow, and the leaderboard from the lake."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cs_pipeline.evaluate.exhibits import BETTER, Picture
from cs_pipeline.evaluate.leaderboard import BEHIND, RANKED_BY, SHOWN
from cs_pipeline.evaluate.metrics import METRICS
from cs_pipeline.evaluate.plots import Mark, interval_picture, loss_picture
from cs_pipeline.evaluate.verdict import NONE, figure, judged
from cs_pipeline.lake import DataLake
from cs_pipeline.serve.refusals import UnknownModel
from cs_pipeline.tracking import find_versions, open_store

_LOSSES = ("train.steps", "train.validation_loss_before", "train.validation_loss_after")
_PICTURED = ("bits_per_character", "right_intent", "rougeL")


@dataclass(frozen=True)
class Score:
    """A metric of the test rows as people read it: with its 95 % interval, its base's, and the word for the difference."""

    label: str
    note: str
    score: str
    ends: str
    base: str
    change: str
    word: str


@dataclass(frozen=True)
class Performance:
    """A version's figures. ``settings`` are its recipe's; ``loss`` is an SVG, empty where nothing is known of it."""

    version: int
    recipe: str
    scores: list[Score]
    pictures: list[Picture]
    loss: str
    settings: list[tuple[str, str]]
    has_report: bool


def performance(version: int, lake: DataLake) -> Performance:
    """The figures of ``version``. Raises UnknownModel, and PipelineError where the store does not answer."""
    client = open_store(lake)
    registered = _registered(client, version)
    run = client.get_run(registered.run_id)
    figures: dict[str, float] = run.data.metrics
    return Performance(
        version,
        registered.tags["cs.recipe"],
        [_score(name, figures) for name in SHOWN if f"test.{name}" in figures],
        [_picture(name, figures) for name in _PICTURED if f"test.{name}" in figures],
        _loss(client, registered.run_id, figures),
        sorted(run.data.params.items()),
        _report(registered) in _artifacts(client, registered),
    )


def leaderboard(lake: DataLake) -> list[dict[str, str]]:
    """All recipes that were judged on the present test rows, as texts: recipe, placeholders, and each metric with its ends.

    Empty where none was judged yet.
    """
    if not lake.table("evaluate", "leaderboard").exists():
        return []
    rows: list[dict[str, Any]] = lake.read("evaluate", "leaderboard").to_pylist()
    return [
        {"Recipe": row["recipe"], "Placeholders": row["placeholders"]}
        | {METRICS[name].label: _with_ends(name, row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in SHOWN}
        | {"Behind the first": _behind(row)}
        for row in rows
    ]


def report_file(version: int, lake: DataLake) -> Path | None:
    """The evaluation report of ``version`` on this disk, None where it has none. Raises UnknownModel."""
    import mlflow

    client = open_store(lake)
    registered = _registered(client, version)
    path = _report(registered)
    if path not in _artifacts(client, registered):
        return None
    return Path(mlflow.artifacts.download_artifacts(run_id=registered.run_id, artifact_path=path))


def _report(registered: Any) -> str:
    return f"report/{registered.tags['cs.recipe']}.html"


def _artifacts(client: Any, registered: Any) -> list[str]:
    return [file.path for file in client.list_artifacts(registered.run_id, "report")]


def _registered(client: Any, version: int) -> Any:
    known = {int(v.version): v for v in find_versions(client)}
    if version not in known:
        raise UnknownModel(list(map(str, known)))
    return known[version]


def _score(name: str, figures: dict[str, float]) -> Score:
    metric = METRICS[name]
    low, high = (figures.get(f"test.{name}.{end}") for end in ("low", "high"))
    difference = {key: figures.get(f"test.minus_base.{name}.{key}") for key in ("difference", "low", "high")}
    known = None not in difference.values()
    return Score(
        metric.label,
        BETTER[metric.better],
        figure(name, figures[f"test.{name}"]),
        "" if low is None else f"{figure(name, low)} to {figure(name, high)}",
        figure(name, figures.get(f"test.base.{name}")),
        figure(name, difference["difference"], signed=True) if known else "",
        judged(name, difference) if known else "",
    )


def _picture(name: str, figures: dict[str, float]) -> Picture:
    """The version's score with its interval, and its base's without, which the registry does not hold."""
    ends = [figures.get(f"test.{name}{end}") for end in ("", ".low", ".high")]
    base = figures.get(f"test.base.{name}")
    known = None if None in ends else tuple(ends)
    marks = [
        Mark("tuned", "tuned", known, figure(name, ends[0])),  # type: ignore[arg-type]
        Mark("base", "base", None if base is None else (base, base, base), figure(name, base)),
    ]
    metric = METRICS[name]
    return Picture(metric.label, BETTER[metric.better], interval_picture(marks, f"{metric.label}, tuned and base"))


def _loss(client: Any, run_id: str, figures: dict[str, float]) -> str:
    if any(name not in figures for name in _LOSSES):
        return ""
    steps, before, after = (figures[name] for name in _LOSSES)
    curve = [{"step": point.step, "loss": point.value} for point in client.get_metric_history(run_id, "loss")]
    about = "Training loss by step, validation loss before and after"
    return loss_picture(sorted(curve, key=lambda point: point["step"]), int(steps), before, after, about)


def _with_ends(name: str, score: float | None, low: float | None, high: float | None) -> str:
    return NONE if score is None else f"{figure(name, score)} ({figure(name, low)} to {figure(name, high)})"


def _behind(row: dict[str, Any]) -> str:
    difference, low, high = (row[name] for name in BEHIND)
    if difference is None or pd.isna(difference):
        return "first"
    return f"{figure(RANKED_BY, difference, True)} ({figure(RANKED_BY, low, True)} to {figure(RANKED_BY, high, True)})"
