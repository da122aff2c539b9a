"""Files in the Bitext schema: read with their text exactly as it stands, or refused with what is wrong and where."""

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

FIELDS = ("flags", "instruction", "category", "intent", "response")
"""The columns of the Bitext schema, in the order of its own file."""

BITEXT_ROW = pa.schema([pa.field(name, pa.string(), nullable=False) for name in FIELDS])

_SUFFIXES = (".csv.gz", ".csv", ".parquet")
_WHOLE_COPY = "Copy or download the file again."


def read_bitext_file(path: Path) -> pa.Table:
    """The rows of a csv, csv.gz or parquet file as a table with the schema ``BITEXT_ROW``, in the order of the file.

    The columns may stand in any order and others beside them are ignored. Text is kept exactly: line breaks, spaces,
    "NA" and "null"; an empty field, and a null of a parquet file, is the empty text. A CSV file is UTF-8, with or
    without byte order mark, fields between commas and quoted with doubled quotes (RFC 4180).

    Raises PipelineError, which names the file and the byte, row or column, for anything that is not such a file.
    """
    try:
        with path.open("rb") as file:
            suffix = next((known for known in _SUFFIXES if path.name.lower().endswith(known)), None)
            if suffix is None:
                raise PipelineError(
                    f"{path} does not end in .csv, .csv.gz or .parquet.",
                    "Give a file of one of these kinds, or rename this one if it is of one.",
                )
            data = file.read()
    except FileNotFoundError:
        raise PipelineError(f"{path} is not there.", "Check the path; a relative one starts at {Path.cwd()}.") from None
    except IsADirectoryError:
        raise PipelineError(f"{path} is a folder.", "Give the path of one csv, csv.gz or parquet file.") from None
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror}.", "Check its rights, its links and its disk."
        ) from error

    if suffix == ".csv.gz":
        data = _unpacked(path, data)
    if not data:
        raise PipelineError(f"{path} is empty.", _WHOLE_COPY)
    table = _parquet_table(path, data) if suffix == ".parquet" else _csv_table(path, data)
    if not table.num_rows:
        raise PipelineError(f"{path} has a header but no rows.", "Give a file with at least one row.")
    return table


def csv_bytes(rows: pa.Table) -> bytes:
    """The one way to write rows of the schema ``BITEXT_ROW`` as CSV, so that equal rows give equal bytes."""
    text = io.StringIO(newline="")
    # Everything quoted: csv leaves a lone carriage return bare, which would read back as the end of the row.
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows(zip(*(rows.column(name).to_pylist() for name in FIELDS), strict=True))
    return text.getvalue().encode()


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise PipelineError(f"{path} is cut off: its gzip stream does not end.", _WHOLE_COPY) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise PipelineError(
            f"{path} is not sound gzip: {error}.", f"{_WHOLE_COPY} If it is not compressed, name it .csv."
        ) from error


def _csv_table(path: Path, data: bytes) -> pa.Table:
    # Python's reader instead of Arrow's: it says on which line a broken row begins, and 24,000 rows take 0.3 s.
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
                    f"{path}: row {len(rows) + 1}, on line {line}, has {len(row)} fields, the header {len(header)}.",
                    "Put fields that hold commas or line breaks in quotes, and double the quotes inside them.",
                )
            elif row:
                rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        where = f"row {len(rows) + 1}, on line {line}" if header else f"the header, on line {line}"
        if "unexpected end" in str(error):
            raise PipelineError(
                f"{path} ends inside a quoted field of {where}: it is cut off, or a quote is never closed.",
                f"{_WHOLE_COPY} If it was whole, close the quote.",
            ) from error
        raise PipelineError(
            f"{path}: {where}, is not sound CSV: {error}.",
            "Close every quote before a comma or line break, and double the quotes inside a field.",
        ) from error
    if not header:
        raise PipelineError(f"{path} is empty: it holds only blank lines.", _WHOLE_COPY)
    places = [header.index(name) for name in FIELDS]
    return pa.table([pa.array([row[place] for row in rows], pa.string()) for place in places], schema=BITEXT_ROW)


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
            f"{path} holds a NUL byte, at byte {nul}, on line {_line(data, nul)}.",
            f"{_WHOLE_COPY} If it is UTF-16, save it in UTF-8.",
        )
    return text.removeprefix("\ufeff")


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _parquet_table(path: Path, data: bytes) -> pa.Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        schema = file.schema_arrow
        _check_columns(path, schema.names)
        for name in FIELDS:
            if not _is_text(schema.field(name).type):
                raise PipelineError(
                    f"{path}: column '{name}' holds {schema.field(name).type}, not text.",
                    "Write the file with that column as text (a string column).",
                )
        table = file.read(columns=list(FIELDS))
        table.validate(full=True)
        columns = [table.column(name).cast(pa.string()).combine_chunks() for name in FIELDS]
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} is not a sound Parquet file: {error}.", _WHOLE_COPY) from error
    for name, column in zip(FIELDS, columns, strict=True):
        row = pc.index(pc.match_substring(column, "\0"), True).as_py()
        if row >= 0:
            raise PipelineError(
                f"{path}: row {row + 1}, column '{name}', holds a NUL character.", "Remove it from the text."
            )
    return pa.table([pc.fill_null(column, "") for column in columns], schema=BITEXT_ROW)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_columns(path: Path, found: Sequence[str]) -> None:
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise PipelineError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(map(repr, found))}.",
            f"It needs {', '.join(FIELDS)}; a CSV file names them in its first line, between commas.",
        )
    twice = [name for name in FIELDS if found.count(name) > 1]
    if twice:
        raise PipelineError(f"{path} has the columns {', '.join(twice)} more than once.", "Keep one of each.")
