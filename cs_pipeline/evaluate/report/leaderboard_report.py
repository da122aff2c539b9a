"""The leaderboard as a table, as one HTML file with pictures, and as Markdown for the UI."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cs_pipeline.core.lake import DataLake, atomic_file
from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.evaluation import settled
from cs_pipeline.evaluate.report.leaderboard import BEHIND, RANKED_BY, SCHEMA, SHOWN, Leaderboard, gather
from cs_pipeline.evaluate.report.pages import plain, template
from cs_pipeline.evaluate.report.plots import Mark, as_image, interval_picture
from cs_pipeline.evaluate.report.tables import BETTER, Picture
from cs_pipeline.evaluate.report.verdict import NONE, figure
from cs_pipeline.evaluate.scoring.metrics import METRICS

MODES = (
    "Figures compare within one placeholder mode alone. Another mode writes other reference texts: to foresee "
    "{{Order Number}} is one thing, to foresee ORD-98765 another, and a text without either is shorter. Bits per character, "
    "ROUGE, BLEU and chrF measure something else there, and what judges the intents has learnt from other answers."
)
ORDER = (
    "Fewest bits per character first. Two recipes whose intervals overlap may still differ clearly: both answered the same "
    "questions, so what counts is the interval of their difference, which stands under “behind the first”."
)

_PICTURED = (RANKED_BY, "right_intent", "rougeL")
_IN_MARKDOWN = (RANKED_BY, "right_intent", "rougeL", "chrf", "placeholder_recall", "stop_rate")

_Row = dict[str, Any]  # a row of SCHEMA


@dataclass(frozen=True)
class Board:
    """The leaderboard, where its page lies, and the parts of its Markdown by title."""

    leaderboard: Leaderboard
    path: Path
    markdown: dict[str, str]


@dataclass(frozen=True)
class Cell:
    """A figure with the ends of its interval, and how it stands to another, with the word for that."""

    figure: str
    ends: str
    change: str
    word: str


@dataclass(frozen=True)
class BoardLine:
    """A recipe in the table of its mode: ``behind`` the first, and its ``cells`` by metric."""

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
    """Writes ``evaluate/leaderboard.parquet`` and ``leaderboard.html`` of the last evaluations of ``recipes``.

    Runs of several recipes at once write it one after the other, each of all there is, so the last one shows all.
    """
    path = lake.path("evaluate", "leaderboard.html")
    with settled(lake):
        board = gather(recipes, lake)
        rows: list[_Row] = board.rows.to_pylist()
        groups = [_group(mode, list(of_mode)) for mode, of_mode in groupby(rows, lambda row: row["placeholders"])]
        html = template("leaderboard.html.jinja").render(
            board=board,
            groups=groups,
            modes=MODES,
            order=ORDER,
            shown=SHOWN,
            names=[row["recipe"] for row in rows],
            settings=_told(_SETTINGS, rows),
            cost=_told(_COST, rows),
            reported={report.stem for report in lake.path("evaluate", "evaluation_report").glob("*.html")},
        )
        lake.write("evaluate", "leaderboard", board.rows, SCHEMA)
        with atomic_file(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    return Board(board, path, _markdown(board, groups, rows))


def _group(mode: str, rows: list[_Row]) -> Group:
    lines = [
        BoardLine(row["recipe"], row["note"], _behind(row), {metric: _cell(row, metric) for metric in SHOWN})
        for row in rows
    ]
    return Group(mode, lines, _pictures(mode, rows))


def _cell(row: _Row, metric: str) -> Cell:
    minus = _minus_base(row, metric)
    change, word = (figure(metric, minus["difference"], signed=True), judgement(metric, minus)) if minus else ("", "")
    return Cell(figure(metric, row[metric]), _ends(metric, row[f"{metric}_low"], row[f"{metric}_high"]), change, word)


def _behind(row: _Row) -> Cell:
    difference, low, high = (row[name] for name in BEHIND)
    if difference is None:
        return Cell("first", "", "", "")
    word = judgement(RANKED_BY, {"low": low, "high": high})
    return Cell(figure(RANKED_BY, difference, signed=True), _ends(RANKED_BY, low, high, signed=True), "", word)


def _ends(metric: str, low: float | None, high: float | None, signed: bool = False) -> str:
    return "" if low is None else f"{figure(metric, low, signed)} to {figure(metric, high, signed)}"


def _minus_base(row: _Row, metric: str) -> dict[str, float] | None:
    columns = {"difference": "", "low": "_low", "high": "_high"}
    values = {name: row[f"{metric}_minus_base{column}"] for name, column in columns.items()}
    return None if values["difference"] is None else values


def _pictures(mode: str, rows: list[_Row]) -> list[Picture]:
    """For each pictured metric the scores of the tuned models, then what the training has changed."""

    def score(row: _Row, metric: str) -> Mark:
        value, low, high = (row[metric + end] for end in ("", "_low", "_high"))
        return Mark(row["recipe"], "tuned", None if value is None else (value, low, high), figure(metric, value))

    def change(row: _Row, metric: str) -> Mark:
        minus = _minus_base(row, metric)
        if minus is None:
            return Mark(row["recipe"], "unclear", None, NONE)
        text = figure(metric, minus["difference"], signed=True)
        return Mark(row["recipe"], judgement(metric, minus), (minus["difference"], minus["low"], minus["high"]), text)

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


def _many(number: int) -> str:
    """A number of weights in three digits."""
    for unit, word in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {word}"
    return str(number)


_SETTINGS: dict[str, Callable[[_Row], str]] = {
    "Base": lambda row: row["base"],
    "Weights": lambda row: _many(row["parameters"]),
    "Method": lambda row: row["method"],
    "Quantisation": lambda row: row["quantization"],
    "r / alpha": lambda row: NONE if row["r"] is None else f"{row['r']} / {row['lora_alpha']}",
    "Learning rate": lambda row: f"{row['learning_rate']:g}",
    "Effective batch": lambda row: f"{row['effective_batch']}",
    "Epochs": lambda row: f"{row['epochs']:.3g}",
    "Steps": lambda row: f"{row['steps']:,}",
    "Rows": lambda row: f"{row['rows']:,}",
    "Longest row": lambda row: f"{row['max_length']:,} tokens",
    "Placeholders": lambda row: row["placeholders"],
    "Template": lambda row: "the model's" if row["template"] == "model" else row["template"],
    "Intent in the prompt": lambda row: "yes" if row["route"] == "intent" else "no",
    "Begun at": lambda row: row["start"],
}
_COST: dict[str, Callable[[_Row], str]] = {
    "Training": lambda row: f"{row['seconds']:,.0f} s",
    "Tokens per second": lambda row: f"{row['tokens_per_second']:,.0f}",
    "Peak memory": lambda row: f"{row['peak_memory_gib']:.1f} GiB",
    "Trained weights": lambda row: _many(row["trainable_parameters"]),
    "Adapter": lambda row: f"{row['adapter_mib']:,.1f} MiB",
    "Evaluation": lambda row: f"{row['evaluation_seconds']:,.0f} s",
}
"""Columns by title, and what stands in them."""


def _told(columns: dict[str, Callable[[_Row], str]], rows: list[_Row]) -> dict[str, list[str]]:
    return {title: [tell(row) for row in rows] for title, tell in columns.items()}


def _markdown(board: Leaderboard, groups: list[Group], rows: list[_Row]) -> dict[str, str]:
    results = [MODES, ORDER, "In brackets: 95 % intervals."]
    for group in groups:
        head = [f"{METRICS[name].label} {BETTER[METRICS[name].better][0]}" for name in _IN_MARKDOWN]
        table = [(line.recipe, *(_written(line.cells[name]) for name in _IN_MARKDOWN)) for line in group.lines]
        table = [(*cells, _written(line.behind)) for cells, line in zip(table, group.lines, strict=True)]
        results.append(f"**Placeholders: {group.mode}** (after each figure: tuned minus base)")
        results.append(_table(["recipe", *head, "bits behind the first"], table))
        results += [f"- {plain(line.recipe)}: {line.note}" for line in group.lines if line.note]
        for shown in (group.pictures[0], group.pictures[len(_PICTURED)]):
            results += [f"**{shown.title}**", f"![{shown.title}]({as_image(shown.svg)})"]
    results += [f"- Not comparable: **{plain(name)}**, {plain(why)}" for name, why in board.apart.items()]
    if board.waiting:
        results.append(f"Not judged yet: {', '.join(map(plain, board.waiting))}")
    about = {"results": "\n\n".join(results)}
    for name, columns in (("settings", _SETTINGS), ("cost", _COST)):
        told = zip((row["recipe"] for row in rows), *_told(columns, rows).values(), strict=True)
        about[name] = _table(["recipe", *columns], list(told))
    return about


def _written(cell: Cell) -> str:
    ends = f" [{cell.ends}]" if cell.ends else ""
    change = f"; {cell.change}" if cell.change else ""
    return f"{cell.figure}{ends}{change}{f' {cell.word}' if cell.word else ''}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(plain, row))} |" for row in rows)])
