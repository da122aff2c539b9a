"""Parquet files of conversations, read and redacted in batches of rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.company import Columns, Company
from cs_pipeline.core.lake import PRIVATE, atomic_file
from cs_pipeline.ingest.exports.records import BadRecord, Record, UnusableError
from cs_pipeline.ingest.exports.source import EXCERPT_LENGTH, MAX_RECORD_BYTES, TOO_LONG
from cs_pipeline.ingest.exports.tables import UNKNOWN_COLUMNS, columns_of, record_of_row

_INVALID = "is not valid Parquet from here on"
_BATCH_ROWS = 1_000

_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)
"""Raised by Arrow for damaged pages and for values that Python cannot represent."""


def read_parquet(path: Path, company: Company) -> Iterator[Record | BadRecord]:
    """The record of each row, except rows of nulls. After a damaged page, the rest of its row group is one BadRecord."""
    try:
        file = _open(path)
    except _ERRORS:
        yield BadRecord(0, None, _INVALID, "")
        return
    if sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)) > company.file_bytes:
        yield BadRecord(0, None, "is larger, when unpacked, than file_bytes in company.yaml", "")
        return
    names = file.schema_arrow.names
    columns = columns_of(names, company)
    columns_to_read = names if columns is None else [name for name in columns.model_dump().values() if name is not None]
    first = 0
    for group in range(file.num_row_groups):
        index, end = first, first + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns_to_read):
                for row in _rows(batch):
                    if (item := _to_record(index, row, columns, company)) is not None:
                        yield item
                    index += 1
            damaged = index < end  # with a damaged page, a column may end too early without an error
        except _ERRORS:
            damaged = True
        if damaged:
            yield BadRecord(index, None, _INVALID, "")
        first = end


def parquet_columns(path: Path) -> list[str] | None:
    """The names of the columns; None if the file is not Parquet."""
    try:
        return _open(path).schema_arrow.names
    except _ERRORS:
        return None


def redact_parquet(path: Path, indices: set[int]) -> None:
    """Sets the rows at ``indices`` to null in every column. Rows that cannot be read become null too."""
    try:
        file = _open(path)
    except _ERRORS:
        with atomic_file(path, PRIVATE) as temporary:
            temporary.write_bytes(b" " * path.stat().st_size)
        return
    schema = pa.schema([pa.field(field.name, _without_dictionary(field.type)) for field in file.schema_arrow])
    with atomic_file(path, PRIVATE) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        first = 0
        for group in range(file.num_row_groups):
            index, end = first, first + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    rows_to_take = [None if index + row in indices else row for row in range(batch.num_rows)]
                    redacted = pa.Table.from_batches([batch]).take(pa.array(rows_to_take, pa.int64()))
                    # A dictionary-encoded column would still contain the redacted values.
                    columns = [column.cast(field.type) for column, field in zip(redacted.columns, schema, strict=True)]
                    writer.write_table(pa.table(columns, schema=schema))
                    index += batch.num_rows
            except _ERRORS:
                pass  # the rows that could not be read become null
            for start in range(index, end, _BATCH_ROWS):
                writer.write_table(schema.empty_table().take(pa.nulls(min(_BATCH_ROWS, end - start), pa.int64())))
            first = end


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


def _to_record(
    index: int, row: dict[str, Any] | str, columns: Columns | None, company: Company
) -> Record | BadRecord | None:
    if isinstance(row, str):
        return BadRecord(index, None, row, "")
    if all(value is None for value in row.values()):
        return None
    try:
        if columns is None:
            raise UnusableError(UNKNOWN_COLUMNS)
        if sum(len(value) for value in row.values() if isinstance(value, str)) > MAX_RECORD_BYTES:
            raise UnusableError(TOO_LONG)
        return record_of_row((index, None, None), row, columns, company)
    except UnusableError as error:
        return BadRecord(index, None, str(error), str(row)[:EXCERPT_LENGTH])


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows as Python values. For a row that Python cannot represent, the reason as text."""
    try:
        yield from batch.to_pylist()
    except _ERRORS:
        for row in range(batch.num_rows):
            try:
                yield from batch.slice(row, 1).to_pylist()
            except _ERRORS:
                yield "holds a value that cannot be read"


def _without_dictionary(data_type: pa.DataType) -> pa.DataType:
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type
