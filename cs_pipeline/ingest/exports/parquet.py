"""Parquet files of conversations: read and redacted a few rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.company import Columns, Company
from cs_pipeline.core.lake import PRIVATE, atomic_file
from cs_pipeline.ingest.exports.records import Bad, Record, UnusableError
from cs_pipeline.ingest.exports.source import LONGEST, SAMPLE, TOO_LONG
from cs_pipeline.ingest.exports.tables import UNKNOWN_COLUMNS, columns_of, record_of_row

NOT_SOUND = "is no sound Parquet from here on"
_ROWS = 1_000
"""Rows held in memory at a time."""

_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)
"""What Arrow raises for broken pages, and for values that Python cannot hold."""


def read_parquet(path: Path, company: Company) -> Iterator[Record | Bad]:
    """The rows; one whose columns that matter are all null is none. A row group that breaks is bad from there on."""
    try:
        file = _opened(path)
    except _ERRORS:
        yield Bad(0, None, NOT_SOUND, "")
        return
    if sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)) > company.file_bytes:
        yield Bad(0, None, "is longer, unpacked, than company.yaml's file_bytes", "")
        return
    names = file.schema_arrow.names
    columns = columns_of(names, company)
    wanted = names if columns is None else [name for name in columns.model_dump().values() if name is not None]
    first = 0
    for group in range(file.num_row_groups):
        place, end = first, first + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=wanted):
                for row in _rows(batch):
                    if (item := _item(place, row, columns, company)) is not None:
                        yield item
                    place += 1
            broken = place < end  # a broken page may end a column early without an error
        except _ERRORS:
            broken = True
        if broken:
            yield Bad(place, None, NOT_SOUND, "")
        first = end


def parquet_columns(path: Path) -> list[str] | None:
    """The names of the columns; None where the file is no Parquet."""
    try:
        return _opened(path).schema_arrow.names
    except _ERRORS:
        return None


def redact_parquet(path: Path, places: set[int]) -> None:
    """Makes the rows at ``places`` null in every column. Rows that cannot be read become null too."""
    try:
        file = _opened(path)
    except _ERRORS:
        with atomic_file(path, PRIVATE) as temporary:
            temporary.write_bytes(b" " * path.stat().st_size)
        return
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in file.schema_arrow])
    with atomic_file(path, PRIVATE) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        first = 0
        for group in range(file.num_row_groups):
            place, end = first, first + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(_ROWS, row_groups=[group]):
                    kept = [None if place + row in places else row for row in range(batch.num_rows)]
                    taken = pa.Table.from_batches([batch]).take(pa.array(kept, pa.int64()))
                    # A dictionary would keep the values that no row has any more.
                    columns = [column.cast(field.type) for column, field in zip(taken.columns, schema, strict=True)]
                    writer.write_table(pa.table(columns, schema=schema))
                    place += batch.num_rows
            except _ERRORS:
                pass  # what could not be read becomes null, as does what a broken page left out
            for start in range(place, end, _ROWS):
                writer.write_table(schema.empty_table().take(pa.nulls(min(_ROWS, end - start), pa.int64())))
            first = end


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


def _item(place: int, row: dict[str, Any] | str, columns: Columns | None, company: Company) -> Record | Bad | None:
    if isinstance(row, str):
        return Bad(place, None, row, "")
    if all(value is None for value in row.values()):
        return None
    try:
        if columns is None:
            raise UnusableError(UNKNOWN_COLUMNS)
        if sum(len(value) for value in row.values() if isinstance(value, str)) > LONGEST:
            raise UnusableError(TOO_LONG)
        return record_of_row((place, None, None), row, columns, company)
    except UnusableError as error:
        return Bad(place, None, str(error), str(row)[:SAMPLE])


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows as Python values; instead of one that Python cannot hold, why."""
    try:
        yield from batch.to_pylist()
    except _ERRORS:
        for row in range(batch.num_rows):
            try:
                yield from batch.slice(row, 1).to_pylist()
            except _ERRORS:
                yield "holds a value that cannot be read"


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
