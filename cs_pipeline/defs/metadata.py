"""How a table or a file shows itself in the Dagster UI, the same for every asset."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from cs_pipeline.core.lake import file_sha256

if TYPE_CHECKING:
    import pyarrow as pa

_PREVIEW_ROWS = 5
_PREVIEW_CHARACTERS = 120


def table_result(
    path: Path,
    table: "pa.Table",
    metadata: Mapping[str, Any],
    *,
    asset_key: str | None = None,
    lineage: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> dg.MaterializeResult:
    """The result of an asset that is a Parquet file: counts, schema, address, preview, and its content as data version.

    ``lineage`` maps a column to the (asset, column) pairs it is made of.
    """
    sha256 = file_sha256(path)
    shown = {
        "dagster/row_count": table.num_rows,
        "dagster/column_schema": column_schema(table.schema),
        "dagster/uri": path.as_uri(),
        "sha256": sha256,
        "preview": dg.MetadataValue.md(_preview(table)),
        **metadata,
    }
    if lineage:
        shown["dagster/column_lineage"] = dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=name) for asset, name in made_of]
                for column, made_of in lineage.items()
            }
        )
    return dg.MaterializeResult(asset_key=asset_key, metadata=shown, data_version=dg.DataVersion(sha256[:16]))


def column_schema(schema: "pa.Schema") -> dg.TableSchema:
    """The columns of ``schema``, their types, and which may be empty."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
            for field in schema
        ]
    )


def counts(name: str, values: Mapping[str, int]) -> dict[str, Any]:
    """A metadata entry: a small table of names and numbers, largest first."""
    lines = [f"| {cell(key)} | {value:,} |" for key, value in sorted(values.items(), key=lambda kv: (-kv[1], kv[0]))]
    return {name: dg.MetadataValue.md("\n".join(["| what | rows |", "|---|---:|", *lines])) if lines else "none"}


def cell(value: Any) -> str:
    """Text from data as one cell of a Markdown table: escaped, on one line, cut with a mark."""
    text = " ".join(str(value).split())
    text = text if len(text) <= _PREVIEW_CHARACTERS else f"{text[:_PREVIEW_CHARACTERS]}…"
    text = escape(text, quote=False)
    for sign in "\\|`*_[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def _preview(table: "pa.Table") -> str:
    columns = [name for name in table.column_names if table.column(name).null_count < table.num_rows]
    rows = table.select(columns).slice(0, _PREVIEW_ROWS).to_pylist()
    lines = ["| " + " | ".join(cell(row[c]) for c in columns) + " |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *lines])
