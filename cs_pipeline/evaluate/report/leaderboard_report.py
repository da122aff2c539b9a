"""The leaderboard as a table, as one HTML file with pictures, and as Markdown for the UI."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cs_pipeline.core.lake import DataLake, atomic_file
from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.report.leaderboard import (
    BEHIND_FIRST,
    LEADERBOARD_METRICS,
    LEADERBOARD_SCHEMA,
    RANKED_BY,
    Leaderboard,
    gather_leaderboard,
)
from cs_pipeline.evaluate.report.pictures import Picture
from cs_pipeline.evaluate.report.plots import Mark, as_image, interval_picture
from cs_pipeline.evaluate.report.rendering import BETTER, NO_FIGURE, escape_markdown, figure, page_template
from cs_pipeline.evaluate.results import evaluations_lock
from cs_pipeline.evaluate.scoring.metrics import METRICS

_MODES = (
    "Figures are comparable only within one placeholder mode. Each mode has its own reference texts: {{Order Number}} is not "
    "as hard to predict as ORD-98765, and a text without either is shorter. So bits per character, ROUGE, BLEU and chrF "
    "measure something different in each mode, and the classifier that judges intents was trained on different answers."
)
_ORDER = (
    "Fewest bits per character first. Two recipes with overlapping intervals may still differ clearly: both answered the "
    "same questions, so the interval of their difference decides, which is in the column “behind the first”."
)

_PICTURED = (RANKED_BY, "right_intent", "rougeL")
_MARKDOWN_METRICS = (RANKED_BY, "right_intent", "rougeL", "chrf", "placeholder_recall", "stop_rate")

_Row = dict[str, Any]  # with the columns of LEADERBOARD_SCHEMA


@dataclass(frozen=True)
class Board:
    """The leaderboard, the path of its page, and the parts of its Markdown by title."""

    leaderboard: Leaderboard
    path: Path
    markdown: dict[str, str]


@dataclass(frozen=True)
class Cell:
    """A figure with its interval, its difference from another, and whether that is better, worse or unclear."""

    figure: str
    ends: str
    change: str
    word: str


@dataclass(frozen=True)
class BoardLine:
    """A recipe in the table of its mode: the difference from the first (``behind``), and its ``cells`` by metric."""

    recipe: str
    note: str
    behind: Cell
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Group:
    """The recipes of one placeholder mode, best first, and their pictures."""

    mode: str
    lines: list[BoardLine]
    pictures: list[Picture]


def write_leaderboard(recipes: Sequence[str], lake: DataLake) -> Board:
    """Writes ``evaluate/leaderboard.parquet`` and ``leaderboard.html`` from the last evaluations of ``recipes``.

    Concurrent runs write it one after the other, each from everything that exists, so the last one shows all.
    """
    path = lake.path("evaluate", "leaderboard.html")
    with evaluations_lock(lake):
        board = gather_leaderboard(recipes, lake)
        rows: list[_Row] = board.rows.to_pylist()
        groups = [_group(mode, list(of_mode)) for mode, of_mode in groupby(rows, lambda row: row["placeholders"])]
        html = page_template("leaderboard.html.jinja").render(
            board=board,
            groups=groups,
            modes=_MODES,
            order=_ORDER,
            metrics=LEADERBOARD_METRICS,
            names=[row["recipe"] for row in rows],
            settings=_texts(_SETTINGS, rows),
            cost=_texts(_COST, rows),
            reported={report.stem for report in lake.path("evaluate", "evaluation_report").glob("*.html")},
        )
        lake.write("evaluate", "leaderboard", board.rows, LEADERBOARD_SCHEMA)
        with atomic_file(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    return Board(board, path, _markdown(board, groups, rows))


def _group(mode: str, rows: list[_Row]) -> Group:
    lines = [
        BoardLine(
            row["recipe"], row["note"], _behind(row), {metric: _cell(row, metric) for metric in LEADERBOARD_METRICS}
        )
        for row in rows
    ]
    return Group(mode, lines, _pictures(mode, rows))


def _cell(row: _Row, metric: str) -> Cell:
    difference, low, high = _minus_base(row, metric)
    change = "" if difference is None else figure(metric, difference, signed=True)
    word = "" if difference is None else judgement(metric, low, high)
    return Cell(figure(metric, row[metric]), _ends(metric, row[f"{metric}_low"], row[f"{metric}_high"]), change, word)


def _behind(row: _Row) -> Cell:
    difference, low, high = (row[name] for name in BEHIND_FIRST)
    if difference is None:
        return Cell("first", "", "", "")
    word = judgement(RANKED_BY, low, high)
    return Cell(figure(RANKED_BY, difference, signed=True), _ends(RANKED_BY, low, high, signed=True), "", word)


def _ends(metric: str, low: float | None, high: float | None, signed: bool = False) -> str:
    return "" if low is None else f"{figure(metric, low, signed)} to {figure(metric, high, signed)}"


def _minus_base(row: _Row, metric: str) -> tuple[Any, Any, Any]:
    """The difference from the base with its interval; all None where there is none."""
    difference, low, high = (row[f"{metric}_minus_base{end}"] for end in ("", "_low", "_high"))
    return difference, low, high


def _pictures(mode: str, rows: list[_Row]) -> list[Picture]:
    """For each pictured metric the scores of the tuned models, then the differences from their bases."""

    def score(row: _Row, metric: str) -> Mark:
        value, low, high = (row[metric + end] for end in ("", "_low", "_high"))
        return Mark(row["recipe"], "tuned", None if value is None else (value, low, high), figure(metric, value))

    def change(row: _Row, metric: str) -> Mark:
        difference, low, high = _minus_base(row, metric)
        if difference is None:
            return Mark(row["recipe"], "unclear", None, NO_FIGURE)
        text = figure(metric, difference, signed=True)
        return Mark(row["recipe"], judgement(metric, low, high), (difference, low, high), text)

    def pictures_of(kind: str, mark: Callable[[_Row, str], Mark]) -> list[Picture]:
        about = {name: f"{METRICS[name].label}{kind}" for name in _PICTURED}
        return [
            Picture(
                about[name],
                "" if kind else BETTER[METRICS[name].better],
                interval_picture([mark(row, name) for row in rows], f"{about[name]}, placeholders {mode}"),
            )
            for name in _PICTURED
        ]

    return [*pictures_of("", score), *pictures_of(", tuned minus base", change)]


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


def _markdown(board: Leaderboard, groups: list[Group], rows: list[_Row]) -> dict[str, str]:
    results = [_MODES, _ORDER, "In brackets: 95 % intervals."]
    for group in groups:
        head = [f"{METRICS[name].label} {BETTER[METRICS[name].better][0]}" for name in _MARKDOWN_METRICS]
        table = [(line.recipe, *(_cell_text(line.cells[name]) for name in _MARKDOWN_METRICS)) for line in group.lines]
        table = [(*cells, _cell_text(line.behind)) for cells, line in zip(table, group.lines, strict=True)]
        results.append(f"**Placeholders: {group.mode}** (after each figure: tuned minus base)")
        results.append(_table(["recipe", *head, "bits behind the first"], table))
        results += [f"- {escape_markdown(line.recipe)}: {line.note}" for line in group.lines if line.note]
        for shown in (group.pictures[0], group.pictures[len(_PICTURED)]):
            results += [f"**{shown.title}**", f"![{shown.title}]({as_image(shown.svg)})"]
    results += [
        f"- Not comparable: **{escape_markdown(name)}**, {escape_markdown(reason)}"
        for name, reason in board.not_comparable.items()
    ]
    if board.not_evaluated:
        results.append(f"Not evaluated yet: {', '.join(map(escape_markdown, board.not_evaluated))}")
    about = {"results": "\n\n".join(results)}
    for name, columns in (("settings", _SETTINGS), ("cost", _COST)):
        cells = zip((row["recipe"] for row in rows), *_texts(columns, rows).values(), strict=True)
        about[name] = _table(["recipe", *columns], list(cells))
    return about


def _cell_text(cell: Cell) -> str:
    ends = f" [{cell.ends}]" if cell.ends else ""
    change = f"; {cell.change}" if cell.change else ""
    return f"{cell.figure}{ends}{change}{f' {cell.word}' if cell.word else ''}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(escape_markdown, row))} |" for row in rows)])
