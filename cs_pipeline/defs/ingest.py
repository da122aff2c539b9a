"""Assets of the ingest stage."""

import os
from dataclasses import asdict

import dagster as dg

from cs_pipeline.defs.metadata import table_result
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.ingest.sources import BITEXT, LICENCE, SOURCES

bitext_dataset = dg.AssetSpec(
    "bitext_dataset",
    group_name="ingest",
    kinds={"csv"},
    description="The Bitext customer-support dataset as its makers publish it; lineage begins here.",
    metadata={
        "url": dg.MetadataValue.url(BITEXT.url),
        "revision": BITEXT.revision,
        "sha256": str(BITEXT.sha256),
        "licence": LICENCE,
    },
)


class BitextConfig(dg.Config):
    """Where the rows come from."""

    source: str = ""
    """sample, download, hub@REVISION, or the path of a file; empty: what CS_BITEXT says, else sample."""


@dg.asset(
    group_name="ingest", kinds={"parquet"}, deps=[bitext_dataset], code_version="1", tags={"contains": "conversations"}
)
def bitext_conversations(
    context: dg.AssetExecutionContext, config: BitextConfig, lake: LakeResource
) -> dg.MaterializeResult:
    """The raw rows as Parquet, nothing changed, each with a stable row_id."""
    from cs_pipeline.ingest.bitext import load_bitext
    from cs_pipeline.lake import write_json
    from cs_pipeline.schema import CONVERSATION

    source = config.source or os.environ.get("CS_BITEXT") or "sample"
    table, provenance = load_bitext(source, lake.lake.path("ingest", "cache"))
    lake.lake.write("ingest", "bitext_conversations", table, CONVERSATION)
    write_json(lake.lake.path("ingest", "bitext_conversations.json"), asdict(provenance))
    context.log.info(f"{table.num_rows:,} rows from {provenance.address}")
    return table_result(
        lake.lake.table("ingest", "bitext_conversations"),
        table,
        {
            "source": provenance.kind,
            "address": provenance.address,
            "source_sha256": provenance.sha256,
            "licence": provenance.licence,
            "choices": SOURCES,
        },
    )


@dg.asset_check(asset=bitext_conversations, blocking=True)
def row_ids_unique(lake: LakeResource) -> dg.AssetCheckResult:
    """Every row has an id of its own, and there is at least one."""
    import pyarrow.compute as pc

    ids = lake.lake.read("ingest", "bitext_conversations", ["row_id"]).column("row_id")
    distinct = pc.count_distinct(ids).as_py()
    return dg.AssetCheckResult(passed=distinct == len(ids) > 0, metadata={"rows": len(ids), "distinct": distinct})


@dg.asset_check(asset=bitext_conversations, blocking=True)
def schema_agreed(lake: LakeResource) -> dg.AssetCheckResult:
    """The file has the columns and types that every later step reads, and no id is null."""
    from cs_pipeline.errors import PipelineError
    from cs_pipeline.schema import CONVERSATION, check_schema

    try:
        check_schema(lake.lake.read("ingest", "bitext_conversations"), CONVERSATION, "bitext_conversations")
    except PipelineError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    return dg.AssetCheckResult(passed=True)


ASSETS = [bitext_dataset, bitext_conversations]
CHECKS = [row_ids_unique, schema_agreed]
