"""CSV files that people open in a spreadsheet and send back.

A cell that a spreadsheet would read as a formula gets a leading apostrophe (CSV injection, CWE-1236). Reading removes it
again, so cells survive the round trip unchanged.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_file

# Full-width signs too: East Asian spreadsheets read them like the ASCII ones. Cells that already begin with apostrophes are
# escaped as well, so that reading restores them.
_FORMULA = re.compile(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")


_MAX_FAULTS_SHOWN = 20
"""A message lists at most this many faults of a sheet."""


def write_sheet(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes ``rows`` under ``columns`` atomically, as UTF-8 with the byte order mark that Excel expects.

    Texts are escaped, numbers are not; None is an empty cell.
    """
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_escaped(cell) for cell in row] for row in rows)


def read_sheet(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows, each with the number of its first line (from 1) and the cells of ``columns``. Empty rows are skipped.

    The delimiter may be a comma, a semicolon or a tab, because it depends on the spreadsheet's country settings. Raises
    PipelineError when the file cannot be read as a table or lacks a column.
    """
    try:
        # A spreadsheet may save another encoding. This damages the texts, but not the ids and scores, which are ASCII.
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error}.", "Name a CSV file that this user may read.") from error
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    rows = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if missing := [column for column in columns if names.count(column) != 1]:
            raise PipelineError(
                f"{path} must have the column '{missing[0]}' once, but has it {names.count(missing[0])} times.",
                "Save the sheet as CSV (UTF-8) with its original first line.",
            )
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                row = dict(zip(names, cells, strict=False))
                rows.append((line, {column: _unescaped(row.get(column, "")) for column in columns}))
            line = reader.line_num + 1
    except csv.Error as error:
        raise PipelineError(
            f"{path} cannot be read as a table: {error} in line {reader.line_num}.", "Save the sheet as CSV (UTF-8)."
        ) from error
    return rows


def refuse_faults(path: Path, faults: Sequence[str], fix: str) -> None:
    """Raises PipelineError, with the first ``faults`` of a sheet and how to fix them, if there are any."""
    if faults:
        more = f"; and {len(faults) - _MAX_FAULTS_SHOWN} more" if len(faults) > _MAX_FAULTS_SHOWN else ""
        raise PipelineError(f"Nothing was imported from {path}: {'; '.join(faults[:_MAX_FAULTS_SHOWN])}{more}.", fix)


def _escaped(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _unescaped(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
