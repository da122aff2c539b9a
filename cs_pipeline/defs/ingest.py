"""Assets of the ingest stage."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import date, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from cs_pipeline.core.lake import file_sha256
from cs_pipeline.defs.metadata import cell, counts, table_result
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.ingest.sources import BITEXT, LICENCE, SOURCES

if TYPE_CHECKING:
    from cs_pipeline.ingest.interactions import FileFacts

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


DAYS = dg.DailyPartitionsDefinition(start_date="2026-01-01", end_offset=1)
"""Days of delivery, UTC; today's is there from its first minute on."""


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


@dg.asset(
    group_name="ingest",
    kinds={"parquet"},
    partitions_def=DAYS,
    code_version="1",
    tags={"contains": "personal-data"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=60), warn_window=timedelta(days=14)),
)
def company_interactions(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """What the company's files of a day hold, turn by turn, raw; what cannot be read is quarantined with a reason.

    Holds personal data: the files are readable by the owner alone and deleted after company.yaml's retention_days.
    """
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.interactions import ingest_day

    day = date.fromisoformat(context.partition_key)
    facts = ingest_day(lake.lake, load_company(lake.lake), day)
    for file in facts.files:
        bad = sum(file.quarantined.values())
        context.log.info(
            f"{file.name}: {file.format}, {file.records:,} records, {file.kept:,} kept, {bad:,} quarantined"
        )
        if file.problem:
            context.log.warning(file.problem)
    path = lake.lake.table("ingest", f"company_interactions/{day}")
    reasons: Counter[str] = Counter()
    for file in facts.files:
        reasons.update(file.quarantined)
    # No preview and no text: what the UI shows is kept for good and read by everybody.
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(file.turns for file in facts.files),
            "dagster/uri": path.as_uri(),
            "files": dg.MetadataValue.md(_files(facts.files)),
            **counts("quarantined", reasons),
        },
        data_version=dg.DataVersion(file_sha256(path)[:16]),
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
    from cs_pipeline.core.errors import PipelineError
    from cs_pipeline.core.schema import CONVERSATION, check_schema

    try:
        check_schema(lake.lake.read("ingest", "bitext_conversations"), CONVERSATION, "bitext_conversations")
    except PipelineError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    return dg.AssetCheckResult(passed=True)


@dg.asset_check(asset=company_interactions, blocking=True)
def few_bad_records(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """No file of the day has more unusable records than company.yaml's bad_share allows."""
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.interactions import day_facts

    most = load_company(lake.lake).bad_share
    facts = day_facts(lake.lake, date.fromisoformat(context.op_execution_context.partition_key))
    over = {
        file.name: file.problem or f"{file.bad_share:.0%} unusable" for file in facts.files if file.bad_share > most
    }
    told = "; ".join(f"{name}: {why}" for name, why in over.items())
    fix = "Fix the export and land it under the same name, or raise bad_share in company.yaml"
    return dg.AssetCheckResult(
        passed=not over, metadata={"most": most}, description=f"{told}. {fix}." if over else None
    )


@dg.asset_check(asset=company_interactions, blocking=True, name="counts_reconcile")
def records_reconcile(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The day's tables hold what the counts of its files say: records in are kept, quarantined or forgotten."""
    from cs_pipeline.ingest.interactions import day_facts

    day = context.op_execution_context.partition_key
    files = day_facts(lake.lake, date.fromisoformat(day)).files
    turns = lake.lake.read("ingest", f"company_interactions/{day}", ["turn"]).num_rows
    bad = lake.lake.read("ingest", f"company_quarantine/{day}", ["source_row"]).num_rows
    figures = {
        "records": sum(file.records for file in files),
        "kept": sum(file.kept for file in files),
        "quarantined": sum(sum(file.quarantined.values()) for file in files),
        "forgotten": sum(file.forgotten for file in files),
    }
    passed = figures["records"] == figures["kept"] + figures["quarantined"] + figures["forgotten"]
    whole = turns == sum(file.turns for file in files) and bad == figures["quarantined"]
    return dg.AssetCheckResult(passed=passed and whole, metadata={**figures, "turns": turns, "quarantine_rows": bad})


def _files(files: "Iterable[FileFacts]") -> str:
    lines = ["| file | format | records | kept | quarantined | forgotten |", "|---|---|---:|---:|---:|---:|"]
    lines += [
        f"| {cell(f.name)} | {f.format} | {f.records:,} | {f.kept:,} | {sum(f.quarantined.values()):,} | {f.forgotten:,} |"
        for f in files
    ]
    return "\n".join(lines)


ASSETS = [bitext_dataset, bitext_conversations, company_interactions]
CHECKS = [row_ids_unique, schema_agreed, few_bad_records, records_reconcile]
