"""Assets and checks of the ingest stage."""

import os
from collections import Counter
from dataclasses import asdict
from datetime import date

import dagster as dg

from cs_pipeline.core.lake import file_sha256
from cs_pipeline.defs.metadata import check_result, count_table, markdown_table, table_result
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.ingest.sources import BITEXT, LICENCE, SOURCES

bitext_dataset = dg.AssetSpec(
    "bitext_dataset",
    group_name="ingest",
    kinds={"csv"},
    description="The Bitext customer-support dataset as published by Bitext: where the lineage begins.",
    metadata={
        "url": dg.MetadataValue.url(BITEXT.url),
        "revision": BITEXT.revision,
        "sha256": str(BITEXT.sha256),
        "licence": LICENCE,
    },
)


DAYS = dg.DailyPartitionsDefinition(start_date="2026-01-01", end_offset=1)
"""Days of delivery in UTC. Today's partition exists from midnight on."""


class BitextConfig(dg.Config):
    """Where the Bitext rows come from."""

    source: str = ""
    """sample, download, hub@REVISION or a file's path; empty: CS_BITEXT, else sample."""


@dg.asset(group_name="ingest", kinds={"parquet"}, deps=[bitext_dataset], tags={"contains": "conversations"})
def bitext_conversations(
    context: dg.AssetExecutionContext, config: BitextConfig, lake: LakeResource
) -> dg.MaterializeResult:
    """The raw Bitext rows as Parquet, unchanged, each with a stable row_id."""
    from cs_pipeline.core.lake import write_json
    from cs_pipeline.core.schema import CONVERSATION
    from cs_pipeline.ingest.bitext import load_bitext

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


@dg.asset(group_name="ingest", kinds={"parquet"}, partitions_def=DAYS, tags={"contains": "personal-data"})
def company_interactions(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The raw turns in the company's files of a day. Unreadable records are quarantined with a reason.

    Contains personal data: the files are readable by their owner only and deleted after company.yaml's retention_days.
    """
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.interactions import ingest_day

    day = date.fromisoformat(context.partition_key)
    files = ingest_day(lake.lake, load_company(lake.lake), day).files
    reasons: Counter[str] = Counter()
    rows = []
    for file in files:
        reasons.update(file.quarantined)
        counted = (file.records, file.kept, sum(file.quarantined.values()), file.forgotten)
        rows.append((file.name, file.format, *counted))
        context.log.info(
            f"{file.name}: {file.format}, {file.records:,} records, {file.kept:,} kept, {counted[2]:,} quarantined"
        )
        if file.problem:
            context.log.warning(file.problem)
    path = lake.lake.table("ingest", f"company_interactions/{day}")
    # No preview and no texts: what the UI shows is stored for good and visible to all its users.
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(file.turns for file in files),
            "dagster/uri": path.as_uri(),
            "files": markdown_table(["file", "format", "records", "kept", "quarantined", "forgotten"], rows),
            "quarantined": count_table(reasons),
        },
        data_version=dg.DataVersion(file_sha256(path)[:16]),
    )


@dg.asset_check(asset=bitext_conversations, blocking=True)
def row_ids_unique(lake: LakeResource) -> dg.AssetCheckResult:
    """There are rows, and each has an id of its own."""
    from cs_pipeline.ingest import checks

    return check_result(checks.row_ids_unique(lake.lake))


@dg.asset_check(asset=bitext_conversations, blocking=True)
def schema_agreed(lake: LakeResource) -> dg.AssetCheckResult:
    """The table has the columns and types that every later step reads, and no null row_id."""
    from cs_pipeline.ingest import checks

    return check_result(checks.bitext_schema_valid(lake.lake))


@dg.asset_check(asset=company_interactions, blocking=True)
def few_bad_records(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """No file of the day has a larger share of unusable records than company.yaml's bad_share."""
    from cs_pipeline.ingest import checks

    return check_result(checks.few_bad_records(lake.lake, _day(context)))


@dg.asset_check(asset=company_interactions, blocking=True, name="counts_reconcile")
def records_reconcile(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Every record of the day's files is kept, quarantined or forgotten."""
    from cs_pipeline.ingest import checks

    return check_result(checks.records_reconcile(lake.lake, _day(context)))


def _day(context: dg.AssetCheckExecutionContext) -> date:
    return date.fromisoformat(context.op_execution_context.partition_key)


ASSETS = [bitext_dataset, bitext_conversations, company_interactions]
CHECKS = [row_ids_unique, schema_agreed, few_bad_records, records_reconcile]
