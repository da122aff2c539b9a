"""The checks of the ingest stage, as plain functions of the lake."""

from datetime import date

import pyarrow.compute as pc

from cs_pipeline.company import load_company
from cs_pipeline.core.checks import CheckOutcome
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import CONVERSATION, check_schema
from cs_pipeline.ingest.interactions import day_facts


def row_ids_unique(lake: DataLake) -> CheckOutcome:
    """``bitext_conversations`` has rows, and each has an id of its own."""
    ids = lake.read("ingest", "bitext_conversations", ["row_id"]).column("row_id")
    distinct = pc.count_distinct(ids).as_py()
    return CheckOutcome(distinct == len(ids) > 0, {"rows": len(ids), "distinct": distinct})


def bitext_schema_valid(lake: DataLake) -> CheckOutcome:
    """``bitext_conversations`` has the columns and types of CONVERSATION, and no null where there must not be one."""
    try:
        check_schema(lake.read("ingest", "bitext_conversations"), CONVERSATION, "bitext_conversations")
    except PipelineError as error:
        return CheckOutcome(False, {}, str(error))
    return CheckOutcome(True, {})


def few_bad_records(lake: DataLake, day: date) -> CheckOutcome:
    """No file of ``day`` has a larger share of unusable records than company.yaml's bad_share."""
    limit = load_company(lake).bad_share
    problems = [
        f"{file.name}: {file.problem or f'{file.bad_share:.0%} of its records are unusable'}"
        for file in day_facts(lake, day).files
        if file.bad_share > limit
    ]
    fix = "Fix the export and land it under the same name, or raise bad_share in company.yaml."
    return CheckOutcome(not problems, {"max_bad_share": limit}, f"{'; '.join(problems)}. {fix}" if problems else None)


def records_reconcile(lake: DataLake, day: date) -> CheckOutcome:
    """Every record of the day's files is kept, quarantined or forgotten, and the tables have as many rows as counted."""
    files = day_facts(lake, day).files
    facts = {
        "records": sum(file.records for file in files),
        "kept": sum(file.kept for file in files),
        "quarantined": sum(sum(file.quarantined.values()) for file in files),
        "forgotten": sum(file.forgotten for file in files),
        "turns": lake.read("ingest", f"company_interactions/{day}", ["turn"]).num_rows,
        "quarantine_rows": lake.read("ingest", f"company_quarantine/{day}", ["source_row"]).num_rows,
    }
    reconciled = facts["records"] == facts["kept"] + facts["quarantined"] + facts["forgotten"]
    written = facts["turns"] == sum(file.turns for file in files) and facts["quarantine_rows"] == facts["quarantined"]
    return CheckOutcome(reconciled and written, facts)
