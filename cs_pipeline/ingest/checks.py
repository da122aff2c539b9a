"""The checks of the ingest stage. Their imports are inside the functions, because Dagster loads this module."""

from datetime import date

from cs_pipeline.core.errors import CheckOutcome, PipelineError
from cs_pipeline.core.lake import DataLake


def row_ids_unique(lake: DataLake) -> CheckOutcome:
    """The table has rows, and no two rows have the same id."""
    import pyarrow.compute as pc

    ids = lake.read("ingest", "bitext_conversations", ["row_id"]).column("row_id")
    distinct = pc.count_distinct(ids).as_py()
    return CheckOutcome(distinct == len(ids) > 0, {"rows": len(ids), "distinct": distinct})


def schema_agreed(lake: DataLake) -> CheckOutcome:
    """The table has the columns and types that later steps read, and no null row_id."""
    from cs_pipeline.core.schema import CONVERSATION, check_schema

    try:
        check_schema(lake.read("ingest", "bitext_conversations"), CONVERSATION, "bitext_conversations")
    except PipelineError as error:
        return CheckOutcome(False, {}, str(error))
    return CheckOutcome(True, {})


def few_bad_records(lake: DataLake, day: str) -> CheckOutcome:
    """No file of the day has a larger share of unusable records than company.yaml's bad_share."""
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.interactions import day_facts

    limit = load_company(lake).bad_share
    problems = [
        f"{file.name}: {file.problem or f'{file.bad_share:.0%} of its records are unusable'}"
        for file in day_facts(lake, date.fromisoformat(day))
        if file.bad_share > limit
    ]
    fix = "Fix the export and land it under the same name, or raise bad_share in company.yaml."
    return CheckOutcome(not problems, {"max_bad_share": limit}, f"{'; '.join(problems)}. {fix}" if problems else None)


def records_reconcile(lake: DataLake, day: str) -> CheckOutcome:
    """Every record of the day's files is kept, quarantined or forgotten. The tables have as many rows as were counted."""
    from cs_pipeline.ingest.interactions import day_facts

    files = day_facts(lake, date.fromisoformat(day))
    facts = {
        "records": sum(file.records for file in files),
        "kept": sum(file.kept for file in files),
        "quarantined": sum(sum(file.quarantined.values()) for file in files),
        "forgotten": sum(file.forgotten for file in files),
        "turns": lake.read("ingest", f"company_interactions/{day}", ["turn"]).num_rows,
        "quarantine_rows": lake.read("ingest", f"company_quarantine/{day}", ["source_row"]).num_rows,
    }
    records_match = facts["records"] == facts["kept"] + facts["quarantined"] + facts["forgotten"]
    turns_match = facts["turns"] == sum(file.turns for file in files)
    return CheckOutcome(records_match and turns_match and facts["quarantine_rows"] == facts["quarantined"], facts)
