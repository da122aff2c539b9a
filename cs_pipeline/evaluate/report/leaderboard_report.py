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
from cs_pipeline.evaluate.results import LOOKUP, evaluations_lock
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
    """Plots of the recipes' scores, one per pictured metric, then plots of the differences from the free look-up."""
    results = {row["recipe"]: board.results[row["recipe"]] for row in rows}
    scores = {
        m: [score_mark(name, "tuned", m, r.scores["tuned"][m]) for name, r in results.items()] for m in PICTURED_METRICS
    }
    changes = {
        m: [difference_mark(name, m, r.differences[LOOKUP][m]) for name, r in results.items()] for m in PICTURED_METRICS
    }
    pictures = []
    for kind, by_metric in (("", scores), (", minus the free look-up", changes)):
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


def _text(column: str, form: str = "{}") -> Callable[[_Row], str]:
    """Writes the cell of ``column`` in the format ``form``; a look-up has no figure in most columns."""
    return lambda row: NO_FIGURE if row[column] is None else form.format(row[column])


def _number(column: str) -> Callable[[_Row], str]:
    return lambda row: NO_FIGURE if row[column] is None else _abbreviated(row[column])


_SETTINGS: dict[str, Callable[[_Row], str]] = {
    "Base": _text("base"),
    "Weights": _number("parameters"),
    "Method": _text("method"),
    "Quantization": _text("quantization"),
    "r / alpha": lambda row: NO_FIGURE if row["r"] is None else f"{row['r']} / {row['lora_alpha']}",
    "Learning rate": _text("learning_rate", "{:g}"),
    "Effective batch": _text("effective_batch"),
    "Epochs": _text("epochs", "{:.3g}"),
    "Steps": _text("steps", "{:,}"),
    "Rows": _text("rows", "{:,}"),
    "Maximum length": _text("max_length", "{:,} tokens"),
    "Placeholders": _text("placeholders"),
    "Template": lambda row: "the base's own" if row["template"] == "model" else row["template"] or NO_FIGURE,
    "Intent of the question": lambda row: "yes" if row["route"] == "intent" else "no",
    "Starts from": _text("start"),
}
_COST: dict[str, Callable[[_Row], str]] = {
    "Training": _text("seconds", "{:,.0f} s"),
    "Tokens per second": _text("tokens_per_second", "{:,.0f}"),
    "Peak memory": _text("peak_memory_gib", "{:.1f} GiB"),
    "Trained weights": _number("trainable_parameters"),
    "Adapter": lambda row: f"{row['adapter_mib']:,.1f} MiB" if row["adapter_mib"] else NO_FIGURE,
    "Evaluation": _text("evaluation_seconds", "{:,.0f} s"),
}
"""The columns of the tables "settings" and "cost": the title, and a function that writes a row's cell."""


def _cells(columns: dict[str, Callable[[_Row], str]], rows: list[_Row]) -> dict[str, list[str]]:
    return {title: [text_of(row) for row in rows] for title, text_of in columns.items()}
