"""Assets and checks of the ingest stage."""

import os
from collections import Counter
from dataclasses import asdict
from datetime import date

import dagster as dg

from cs_pipeline.core.lake import file_sha256
from cs_pipeline.defs.metadata import count_table, data_check, markdown_table, table_result
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.ingest import checks
from cs_pipeline.ingest.sources import BITEXT, LICENCE, SOURCES

bitext_dataset = dg.AssetSpec(
    "bitext_dataset",
    group_name="ingest",
    kinds={"csv"},
    description="The Bitext customer-support dataset as published by Bitext. The lineage begins here.",
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
    """The raw turns in the files that the company delivered on a day. Unreadable records are quarantined with a reason.

    Contains personal data: the files are readable by their owner only and deleted after company.yaml's retention_days.
    """
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.interactions import ingest_day

    day = date.fromisoformat(context.partition_key)
    files = ingest_day(lake.lake, load_company(lake.lake), day)
    reasons: Counter[str] = Counter()
    rows = []
    for file in files:
        reasons.update(file.quarantined)
        quarantined = sum(file.quarantined.values())
        rows.append((file.name, file.format, file.records, file.kept, quarantined, file.forgotten))
        context.log.info(
            f"{file.name}: {file.format}, {file.records:,} records, {file.kept:,} kept, {quarantined:,} quarantined"
        )
        if file.problem:
            context.log.warning(file.problem)
    path = lake.lake.table("ingest", f"company_interactions/{day}")
    # No preview and no texts: Dagster keeps metadata permanently and shows it to everyone who can open its UI.
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(file.turns for file in files),
            "dagster/uri": path.as_uri(),
            "files": markdown_table(["file", "format", "records", "kept", "quarantined", "forgotten"], rows),
            "quarantined": count_table(reasons),
        },
        data_version=dg.DataVersion(file_sha256(path)[:16]),
    )


ASSETS = [bitext_dataset, bitext_conversations, company_interactions]
CHECKS = [
    data_check(bitext_conversations, checks.row_ids_unique),
    data_check(bitext_conversations, checks.schema_agreed),
    data_check(company_interactions, checks.few_bad_records),
    data_check(company_interactions, checks.records_reconcile, name="counts_reconcile"),
]
