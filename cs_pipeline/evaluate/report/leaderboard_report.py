"""The leaderboard as a table, as one HTML file with pictures, and as Markdown for the Dagster UI."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cs_pipeline.core.lake import DataLake, atomic_file
from cs_pipeline.evaluate.report.leaderboard import (
    LEADERBOARD_METRICS,
    LEADERBOARD_SCHEMA,
    PICTURED_METRICS,
    RANKED_BY,
    Leaderboard,
    gather_leaderboard,
)
from cs_pipeline.evaluate.report.pictures import Picture, difference_mark, score_mark
from cs_pipeline.evaluate.report.plots import as_image, interval_picture
from cs_pipeline.evaluate.report.rendering import BETTER, NO_FIGURE, page_template
from cs_pipeline.evaluate.results import evaluations_lock
from cs_pipeline.evaluate.scoring.metrics import METRICS

_Row = dict[str, Any]  # with the columns of LEADERBOARD_SCHEMA


@dataclass(frozen=True)
class LeaderboardReport:
    """The leaderboard, the path of its page, and the parts of its Markdown by title."""

    leaderboard: Leaderboard
    path: Path
    markdown: dict[str, str]


@dataclass(frozen=True)
class ModeRanking:
    """The rows of one placeholder mode, best first, and their pictures."""

    mode: str
    rows: list[_Row]
    pictures: list[Picture]


def write_leaderboard(recipes: Sequence[str], lake: DataLake) -> LeaderboardReport:
    """Writes ``evaluate/leaderboard.parquet`` and ``leaderboard.html`` from the last evaluations of ``recipes``.

    Concurrent runs take turns, and each reads all evaluations that exist by then, so the last leaderboard is complete.
    """
    path = lake.path("evaluate", "leaderboard.html")
    with evaluations_lock(lake):
        board = gather_leaderboard(recipes, lake)
        rows: list[_Row] = board.rows.to_pylist()
        by_mode = {mode: list(ranked) for mode, ranked in groupby(rows, lambda row: row["placeholders"])}
        rankings = [ModeRanking(mode, ranked, _pictures(board, mode, ranked)) for mode, ranked in by_mode.items()]
        values = {
            "board": board,
            "rankings": rankings,
            "metrics": LEADERBOARD_METRICS,
            "ranked_by": RANKED_BY,
            "names": [row["recipe"] for row in rows],
            "settings": _cells(_SETTINGS, rows),
            "cost": _cells(_COST, rows),
            "reported": {report.stem for report in lake.path("evaluate", "evaluation_report").glob("*.html")},
            "as_image": as_image,
        }
        html = page_template("leaderboard.html.jinja").render(values)
        lake.write("evaluate", "leaderboard", board.rows, LEADERBOARD_SCHEMA)
        with atomic_file(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    markdown = page_template("leaderboard.md.jinja")
    parts = {part: markdown.render(values, part=part).strip() for part in ("results", "settings", "cost")}
    return LeaderboardReport(board, path, parts)


def _pictures(board: Leaderboard, mode: str, rows: list[_Row]) -> list[Picture]:
    """Plots of the tuned models' scores, one per pictured metric, then plots of the differences from their bases."""
    results = {row["recipe"]: board.results[row["recipe"]] for row in rows}
    scores = {
        m: [score_mark(name, "tuned", m, r.scores["tuned"][m]) for name, r in results.items()] for m in PICTURED_METRICS
    }
    changes = {
        m: [difference_mark(name, m, r.differences["base"][m]) for name, r in results.items()] for m in PICTURED_METRICS
    }
    pictures = []
    for kind, by_metric in (("", scores), (", tuned minus base", changes)):
        for metric, marks in by_metric.items():
            title, note = f"{METRICS[metric].label}{kind}", "" if kind else BETTER[METRICS[metric].better]
            pictures.append(Picture(title, note, interval_picture(marks, f"{title}, placeholders {mode}")))
    return pictures


def _abbreviated(number: int) -> str:
    """``number`` with three significant digits and a unit."""
    for unit, word in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {word}"
    return str(number)


_SETTINGS: dict[str, Callable[[_Row], str]] = {
    "Base": lambda row: row["base"],
    "Weights": lambda row: _abbreviated(row["parameters"]),
    "Method": lambda row: row["method"],
    "Quantization": lambda row: row["quantization"],
    "r / alpha": lambda row: NO_FIGURE if row["r"] is None else f"{row['r']} / {row['lora_alpha']}",
    "Learning rate": lambda row: f"{row['learning_rate']:g}",
    "Effective batch": lambda row: f"{row['effective_batch']}",
    "Epochs": lambda row: f"{row['epochs']:.3g}",
    "Steps": lambda row: f"{row['steps']:,}",
    "Rows": lambda row: f"{row['rows']:,}",
    "Maximum length": lambda row: f"{row['max_length']:,} tokens",
    "Placeholders": lambda row: row["placeholders"],
    "Template": lambda row: "the base's own" if row["template"] == "model" else row["template"],
    "Intent in the prompt": lambda row: "yes" if row["route"] == "intent" else "no",
    "Starts from": lambda row: row["start"],
}
_COST: dict[str, Callable[[_Row], str]] = {
    "Training": lambda row: f"{row['seconds']:,.0f} s",
    "Tokens per second": lambda row: f"{row['tokens_per_second']:,.0f}",
    "Peak memory": lambda row: f"{row['peak_memory_gib']:.1f} GiB",
    "Trained weights": lambda row: _abbreviated(row["trainable_parameters"]),
    "Adapter": lambda row: f"{row['adapter_mib']:,.1f} MiB",
    "Evaluation": lambda row: f"{row['evaluation_seconds']:,.0f} s",
}
"""The columns of the tables "settings" and "cost": the title, and a function that writes a row's cell."""


def _cells(columns: dict[str, Callable[[_Row], str]], rows: list[_Row]) -> dict[str, list[str]]:
    return {title: [text_of(row) for row in rows] for title, text_of in columns.items()}
