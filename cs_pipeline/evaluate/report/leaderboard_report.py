"""The leaderboard as a table, as one HTML file with pictures, and as Markdown for the UI."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cs_pipeline.core.lake import DataLake, atomic_file
from cs_pipeline.evaluate.report.leaderboard import (
    LEADERBOARD_METRICS,
    LEADERBOARD_SCHEMA,
    RANKED_BY,
    Leaderboard,
    gather_leaderboard,
)
from cs_pipeline.evaluate.report.pictures import Picture, difference_mark, score_mark
from cs_pipeline.evaluate.report.plots import as_image, interval_picture
from cs_pipeline.evaluate.report.rendering import (
    BETTER,
    NO_FIGURE,
    difference_text,
    escape_markdown,
    figure,
    interval_text,
    page_template,
)
from cs_pipeline.evaluate.results import EvaluationResults, evaluations_lock
from cs_pipeline.evaluate.scoring.metrics import METRICS

_MODES = (
    "Figures are comparable only within one placeholder mode. Each mode has its own reference texts: {{Order Number}} is "
    "not as hard to predict as ORD-98765, and a text without either is shorter. So bits per character, ROUGE, BLEU and "
    "chrF measure something different in each mode, and the classifier that judges intents was trained on different answers."
)
_ORDER = (
    "Fewest bits per character first. Two recipes with overlapping intervals may still differ clearly: both answered the "
    "same questions, so the interval of their difference decides, which is in the column “behind the first”."
)

_PICTURED_METRICS = (RANKED_BY, "right_intent", "rougeL")
_MARKDOWN_METRICS = (RANKED_BY, "right_intent", "rougeL", "chrf", "placeholder_recall", "stop_rate")

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

    Concurrent runs write it one after the other, each from all evaluations that exist by then, so the last one is complete.
    """
    path = lake.path("evaluate", "leaderboard.html")
    with evaluations_lock(lake):
        board = gather_leaderboard(recipes, lake)
        rows: list[_Row] = board.rows.to_pylist()
        by_mode = {mode: list(ranked) for mode, ranked in groupby(rows, lambda row: row["placeholders"])}
        rankings = [ModeRanking(mode, ranked, _pictures(board, mode, ranked)) for mode, ranked in by_mode.items()]
        html = page_template("leaderboard.html.jinja").render(
            board=board,
            rankings=rankings,
            modes=_MODES,
            order=_ORDER,
            metrics=LEADERBOARD_METRICS,
            ranked_by=RANKED_BY,
            names=[row["recipe"] for row in rows],
            settings=_texts(_SETTINGS, rows),
            cost=_texts(_COST, rows),
            reported={report.stem for report in lake.path("evaluate", "evaluation_report").glob("*.html")},
        )
        lake.write("evaluate", "leaderboard", board.rows, LEADERBOARD_SCHEMA)
        with atomic_file(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    return LeaderboardReport(board, path, _markdown(board, rankings, rows))


def _pictures(board: Leaderboard, mode: str, rows: list[_Row]) -> list[Picture]:
    """For each pictured metric the scores of the tuned models, then the differences from their bases."""
    results = {row["recipe"]: board.results[row["recipe"]] for row in rows}
    scores = {
        m: [score_mark(name, "tuned", m, r.scores["tuned"][m]) for name, r in results.items()]
        for m in _PICTURED_METRICS
    }
    changes = {
        m: [difference_mark(name, m, r.differences["base"][m]) for name, r in results.items()]
        for m in _PICTURED_METRICS
    }
    pictures = []
    for kind, by_metric in (("", scores), (", tuned minus base", changes)):
        for metric, marks in by_metric.items():
            title, note = f"{METRICS[metric].label}{kind}", "" if kind else BETTER[METRICS[metric].better]
            pictures.append(Picture(title, note, interval_picture(marks, f"{title}, placeholders {mode}")))
    return pictures


def _abbreviated(number: int) -> str:
    """A number of weights with three digits."""
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
"""Columns by title, and the text of a cell."""


def _texts(columns: dict[str, Callable[[_Row], str]], rows: list[_Row]) -> dict[str, list[str]]:
    return {title: [text_of(row) for row in rows] for title, text_of in columns.items()}


def _markdown(board: Leaderboard, rankings: list[ModeRanking], rows: list[_Row]) -> dict[str, str]:
    results = [_MODES, _ORDER, "In brackets: 95 % intervals."]
    head = [f"{METRICS[name].label} {BETTER[METRICS[name].better][0]}" for name in _MARKDOWN_METRICS]
    for ranking in rankings:
        names = [row["recipe"] for row in ranking.rows]
        table = [
            (n, *(_score_text(m, board.results[n]) for m in _MARKDOWN_METRICS), _behind_text(board, n)) for n in names
        ]
        results.append(f"**Placeholders: {ranking.mode}** (after each figure: tuned minus base)")
        results.append(_table(["recipe", *head, "bits behind the first"], table))
        results += [f"- {escape_markdown(row['recipe'])}: {row['note']}" for row in ranking.rows if row["note"]]
        for shown in (ranking.pictures[0], ranking.pictures[len(_PICTURED_METRICS)]):
            results += [f"**{shown.title}**", f"![{shown.title}]({as_image(shown.svg)})"]
    results += [
        f"- Not comparable: **{escape_markdown(name)}**, {escape_markdown(reason)}"
        for name, reason in board.not_comparable.items()
    ]
    if board.not_evaluated:
        results.append(f"Not evaluated yet: {', '.join(map(escape_markdown, board.not_evaluated))}")
    about = {"results": "\n\n".join(results)}
    for title, columns in (("settings", _SETTINGS), ("cost", _COST)):
        cells = zip((row["recipe"] for row in rows), *_texts(columns, rows).values(), strict=True)
        about[title] = _table(["recipe", *columns], list(cells))
    return about


def _score_text(metric: str, results: EvaluationResults) -> str:
    score, change = results.scores["tuned"][metric], results.differences["base"][metric]
    text = f"{figure(metric, score.score)} [{interval_text(metric, score)}]" if score else NO_FIGURE
    return text + (f"; {difference_text(metric, change)}" if change else "")


def _behind_text(board: Leaderboard, name: str) -> str:
    if (behind := board.behind.get(name)) is None:
        return "first"
    return f"{difference_text(RANKED_BY, behind)} [{interval_text(RANKED_BY, behind, signed=True)}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(escape_markdown, row))} |" for row in rows)])
