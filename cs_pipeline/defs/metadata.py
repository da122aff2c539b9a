"""How tables, files and checks appear in the Dagster UI."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from cs_pipeline.core.errors import CheckOutcome
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.defs.resources import LakeResource

if TYPE_CHECKING:
    import pyarrow as pa

_PREVIEW_ROWS = 5
_MAX_CELL_CHARACTERS = 120


def table_result(
    path: Path,
    table: "pa.Table",
    metadata: Mapping[str, Any],
    *,
    lineage: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> dg.MaterializeResult:
    """The result of an asset that is a Parquet file: row count, schema, URI, preview, and its hash as data version.

    ``lineage`` maps a column to the (asset, column) pairs that it is derived from.
    """
    sha256 = file_sha256(path)
    columns = [name for name in table.column_names if table.column(name).null_count < table.num_rows]
    preview = table.select(columns).slice(0, _PREVIEW_ROWS).to_pylist()
    entries = {
        "dagster/row_count": table.num_rows,
        "dagster/column_schema": column_schema(table.schema),
        "dagster/uri": path.as_uri(),
        "sha256": sha256,
        "preview": markdown_table(columns, ([str(row[name]) for name in columns] for row in preview)),
        **metadata,
    }
    if lineage:
        entries["dagster/column_lineage"] = column_lineage(lineage)
    return dg.MaterializeResult(metadata=entries, data_version=dg.DataVersion(sha256[:16]))


def column_schema(schema: "pa.Schema") -> dg.TableSchema:
    """The columns of ``schema`` with their types and whether they may be null."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
            for field in schema
        ]
    )


def column_lineage(lineage: Mapping[str, Sequence[tuple[str, str]]]) -> dg.TableColumnLineage:
    """Dagster's form of ``lineage``, which maps a column to the (asset, column) pairs that it is derived from."""
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=name) for asset, name in sources]
            for column, sources in lineage.items()
        }
    )


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str | int]]) -> dg.MetadataValue:
    """A Markdown table, or "none" without rows. Whole numbers are right-aligned; texts come from data and are escaped."""
    rows = list(rows)
    if not rows:
        return dg.MetadataValue.text("none")
    lines = [columns, ["---:" if isinstance(value, int) else "---" for value in rows[0]]]
    lines += [[f"{value:,}" if isinstance(value, int) else cell(value) for value in row] for row in rows]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def count_table(counts: Mapping[str, int]) -> dg.MetadataValue:
    """A table of names and row counts, largest first."""
    largest_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return markdown_table(["what", "rows"], largest_first)


def rows_by_reason(lake: DataLake, name: str) -> dg.MetadataValue:
    """A table of the reasons in the table ``name`` of prepare, with their row counts."""
    counts = lake.read("prepare", name, ["reason"]).column("reason").value_counts().to_pylist()
    return count_table({count["values"]: count["counts"] for count in counts})


def data_check(
    asset: dg.AssetsDefinition, check: Callable[..., CheckOutcome], *, name: str | None = None, blocking: bool = True
) -> dg.AssetChecksDefinition:
    """An asset check of ``asset`` that calls ``check`` with the lake and, if ``asset`` is partitioned, the partition.

    The docstring of ``check`` becomes the description. A check that does not block only warns.
    """
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    @dg.asset_check(asset=asset, name=name or check.__name__, description=check.__doc__, blocking=blocking)
    def asset_check(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
        partition = [context.op_execution_context.partition_key] if asset.partitions_def else []
        outcome = check(lake.lake, *partition)
        return dg.AssetCheckResult(
            passed=outcome.passed, severity=severity, metadata=dict(outcome.facts), description=outcome.problem
        )

    return asset_check


def cell(value: Any) -> str:
    """Text from data as one cell of a Markdown table: on one line, shortened, escaped."""
    text = " ".join(str(value).split())
    text = text if len(text) <= _MAX_CELL_CHARACTERS else f"{text[:_MAX_CELL_CHARACTERS]}…"
    text = escape(text, quote=False)
    for character in "\\|`*_[]":
        text = text.replace(character, f"\\{character}")
    return text
