"""Reads files in the Bitext schema without changing their text. Errors state what is wrong and where in the file."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cs_pipeline.core.errors import PipelineError

BITEXT_COLUMNS = ("flags", "instruction", "category", "intent", "response")
"""The columns of the Bitext file, in its order.

``flags`` holds letters: B basic structure (always), C coordinated clauses, E expanded abbreviations, I interrogative,
K keywords, L lexical variation, M morphological variation, N negation, P polite, Q colloquial, W offensive, Z noise such
as typing errors.
"""

BITEXT_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in BITEXT_COLUMNS])

_SUFFIXES = (".csv.gz", ".csv", ".parquet")
_COPY_AGAIN = "Copy or download the file again."


def read_bitext_file(path: Path) -> pa.Table:
    """The rows of a csv, csv.gz or parquet file as a table with the schema ``BITEXT_SCHEMA``, in file order.

    The columns may be in any order; other columns are ignored. Text is kept exactly, including line breaks, spaces, "NA"
    and "null"; an empty field, or a null in Parquet, becomes the empty string. A CSV file is UTF-8 with or without a byte
    order mark, with fields separated by commas; quotes inside a quoted field are doubled (RFC 4180).

    Raises PipelineError, naming the file and the byte, row or column, for any other file.
    """
    try:
        with path.open("rb") as file:
            suffix = next((known for known in _SUFFIXES if path.name.lower().endswith(known)), None)
            if suffix is None:
                raise PipelineError(
                    f"{path} does not end in .csv, .csv.gz or .parquet.",
                    "Give a file of one of these types. If this file is of one of them, correct its suffix.",
                )
            data = file.read()
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist.", "Check the path.") from None
    except IsADirectoryError:
        raise PipelineError(f"{path} is a folder.", "Give the path of one csv, csv.gz or parquet file.") from None
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions, its links and its disk."
        ) from error

    if suffix == ".csv.gz":
        data = _unpacked(path, data)
    if not data:
        raise PipelineError(f"{path} is empty.", _COPY_AGAIN)
    table = _parquet_table(path, data) if suffix == ".parquet" else _csv_table(path, data)
    if not table.num_rows:
        raise PipelineError(f"{path} has a header but no rows.", "Give a file with at least one row.")
    return table


def csv_bytes(rows: pa.Table) -> bytes:
    """Rows of the schema ``BITEXT_SCHEMA`` as CSV; equal rows give equal bytes."""
    text = io.StringIO(newline="")
    # Quote everything: csv.writer would leave a lone carriage return unquoted, and a reader would end the row there.
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(BITEXT_COLUMNS)
    writer.writerows(zip(*(rows.column(name).to_pylist() for name in BITEXT_COLUMNS), strict=True))
    return text.getvalue().encode()


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise PipelineError(f"{path} is truncated: its gzip stream does not end.", _COPY_AGAIN) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise PipelineError(
            f"{path} is not valid gzip: {error}.", f"{_COPY_AGAIN} If it is not compressed, name it .csv."
        ) from error


def _csv_table(path: Path, data: bytes) -> pa.Table:
    # Python's reader, unlike Arrow's, reports the line of a broken row. 24,000 rows take 0.3 s.
    reader = csv.reader(io.StringIO(_text(path, data), newline=""), strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    line = 1
    try:
        for row in reader:
            if row and not header:
                header = row
                _check_columns(path, header)
            elif row and len(row) != len(header):
                raise PipelineError(
                    f"{path}: row {len(rows) + 1}, on line {line}, has {len(row)} fields, but the header has {len(header)}.",
                    "Quote fields that contain commas or line breaks, and double the quotes inside them.",
                )
            elif row:
                rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        where = f"row {len(rows) + 1}, on line {line}" if header else f"the header, on line {line}"
        if "unexpected end" in str(error):
            raise PipelineError(
                f"{path} ends inside a quoted field of {where}: it is truncated, or a quote is never closed.",
                f"{_COPY_AGAIN} If it is complete, close the quote.",
            ) from error
        raise PipelineError(
            f"{path}: {where}, is not valid CSV: {error}.",
            "Close every quote before a comma or line break, and double the quotes inside fields.",
        ) from error
    if not header:
        raise PipelineError(f"{path} is empty: it has only blank lines.", _COPY_AGAIN)
    columns = [header.index(name) for name in BITEXT_COLUMNS]
    return pa.table([pa.array([row[column] for row in rows], pa.string()) for column in columns], schema=BITEXT_SCHEMA)


def _text(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PipelineError(
            f"{path} is not UTF-8: byte {error.start}, on line {_line(data, error.start)}, is "
            f"0x{data[error.start]:02X} ({error.reason}).",
            "Save it as CSV in UTF-8 (spreadsheets call it 'CSV UTF-8').",
        ) from error
    nul = data.find(b"\0")
    if nul >= 0:
        raise PipelineError(
            f"{path} contains a NUL byte, at byte {nul}, on line {_line(data, nul)}.",
            f"{_COPY_AGAIN} If it is UTF-16, save it in UTF-8.",
        )
    return text.removeprefix("\ufeff")


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _parquet_table(path: Path, data: bytes) -> pa.Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        schema = file.schema_arrow
        _check_columns(path, schema.names)
        for name in BITEXT_COLUMNS:
            if not _is_text(schema.field(name).type):
                raise PipelineError(
                    f"{path}: column '{name}' has type {schema.field(name).type}, not text.",
                    "Write that column as text (a string column).",
                )
        table = file.read(columns=list(BITEXT_COLUMNS))
        table.validate(full=True)
        columns = [table.column(name).cast(pa.string()).combine_chunks() for name in BITEXT_COLUMNS]
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} is not a valid Parquet file: {error}.", _COPY_AGAIN) from error
    for name, column in zip(BITEXT_COLUMNS, columns, strict=True):
        row = pc.index(pc.match_substring(column, "\0"), True).as_py()
        if row >= 0:
            raise PipelineError(
                f"{path}: row {row + 1}, column '{name}', contains a NUL character.", "Remove it from the text."
            )
    return pa.table([pc.fill_null(column, "") for column in columns], schema=BITEXT_SCHEMA)


def _is_text(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in BITEXT_COLUMNS if name not in columns]
    if missing:
        raise PipelineError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(map(repr, columns))}.",
            f"It needs {', '.join(BITEXT_COLUMNS)}; in a CSV file, the first line names them, separated by commas.",
        )
    repeated = [name for name in BITEXT_COLUMNS if columns.count(name) > 1]
    if repeated:
        raise PipelineError(f"{path} has the columns {', '.join(repeated)} more than once.", "Keep one of each.")
