"""Jobs, and the sensors and schedules that start them."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from cs_pipeline.core.lake import DataLake
from cs_pipeline.defs.evaluate import human_ratings
from cs_pipeline.defs.ingest import company_interactions
from cs_pipeline.defs.prepare import clean_interactions
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.defs.retrieval import knowledge_base, retrieval_index

MAX_ATTEMPTS = 3
"""Number of runs for one day's deliveries, or for one state of the articles, before a person has to fix the cause."""

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

support_model = dg.define_asset_job(
    "support_model",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(company_interactions, clean_interactions),
    description="All assets for one recipe, from raw rows to the promotion decision, except those partitioned by day.",
)

ingest_company = dg.define_asset_job(
    "ingest_company",
    selection=dg.AssetSelection.assets(company_interactions, clean_interactions),
    description="Reads one day's deliveries, replaces personal data, pairs questions with answers and flags poison.",
)

collect_ratings = dg.define_asset_job(
    "collect_ratings",
    selection=dg.AssetSelection.assets(human_ratings),
    description="Writes people's ratings of answers, without personal data, to a table.",
)

daily_ratings = dg.ScheduleDefinition(
    name="daily_ratings",
    job=collect_ratings,
    cron_schedule="30 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night, so that no rating is stored with personal data for more than a day.",
)

read_articles = dg.define_asset_job(
    "read_articles",
    selection=dg.AssetSelection.assets(knowledge_base, retrieval_index),
    description="Reads the current help articles into the retrieval index.",
)


@dg.sensor(
    job=ingest_company,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Picks up landed files and ingests each day's deliveries.",
)
def landed_files(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
    """Scans the landing folder once and requests a run for each day whose deliveries are not ingested yet."""
    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.landing import process_landing
    from cs_pipeline.ingest.ledger import Ledger

    notes = process_landing(lake.lake, load_company(lake.lake), datetime.now(UTC))
    requests = []
    with Ledger(lake.lake) as ledger:
        days = ledger.pending_days()
        if days and not lake.lake.path("prepare", "intent_classifier").exists():
            notes.append("ingestion waits for the intent classifier: run the full pipeline with make demo")
            days = []
        running = {run.tags.get("dagster/partition") for run in _unfinished_runs(context.instance, ingest_company.name)}
        for day in days:
            if str(day) in running:
                notes.append(f"{day} is being ingested")
            elif ledger.attempts(day) >= MAX_ATTEMPTS:
                notes.append(
                    f"{day} was tried {MAX_ATTEMPTS} times: look at its last run of {ingest_company.name}, fix what it "
                    f"reports, and launch that job for the partition {day}"
                )
            else:
                attempt = ledger.count_attempt(day)
                requests.append(dg.RunRequest(partition_key=str(day), tags={"cs.attempt": str(attempt)}))
    if not requests:
        return dg.SkipReason("; ".join(notes))
    context.log.info("; ".join(notes))
    return dg.SensorResult(run_requests=requests)


@dg.sensor(
    job=read_articles,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Picks up help articles that are added, changed or deleted in landing/knowledge/.",
)
def changed_articles(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
    """Compares the files with those that were read, and requests a run once two scans in a row see the same files.

    The cursor holds a hash of the files that the last scan saw and the number of runs requested for them.
    """
    from cs_pipeline.company import load_company
    from cs_pipeline.core.lake import digest
    from cs_pipeline.retrieval.passages import find_changes

    files, changes = find_changes(lake.lake, load_company(lake.lake))
    if changes is None:
        return dg.SkipReason(f"nothing new: {len(files)} files" if files else "no articles")
    if not lake.lake.table("prepare", "train_split").exists():
        return dg.SkipReason(f"{changes}; run the full pipeline first: make demo")
    if _unfinished_runs(context.instance, read_articles.name):
        return dg.SkipReason(f"{changes}; articles are being read")
    state = digest(files)
    last = json.loads(context.cursor or "{}")
    attempts = last["attempts"] if last.get("there") == state else -1
    if attempts == MAX_ATTEMPTS:
        return dg.SkipReason(
            f"{changes}; they were tried {MAX_ATTEMPTS} times: look at the last run of {read_articles.name}, fix what it "
            "reports, and launch that job"
        )
    cursor = json.dumps({"there": state, "attempts": attempts + 1})
    if attempts < 0:
        return dg.SensorResult(skip_reason=f"{changes}; waiting until they are complete", cursor=cursor)
    context.log.info(changes)
    return dg.SensorResult(run_requests=[dg.RunRequest(tags={"cs.articles": changes})], cursor=cursor)


@dg.sensor(
    job=support_model,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Trains, evaluates and perhaps promotes a new model when retraining is due.",
)
def retrain_when_due(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.RunRequest | dg.SkipReason:
    """Requests a run if retraining is due (``check_retraining``), but only once for the same data."""
    return _request_retraining(context.instance, lake.lake, once=True)


@dg.schedule(
    job=support_model,
    cron_schedule="0 3 * * 1",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Checks early on Mondays whether retraining is due. This also repeats a failed training run.",
)
def weekly_retrain(context: dg.ScheduleEvaluationContext, lake: LakeResource) -> dg.RunRequest | dg.SkipReason:
    """Requests a run if retraining is due (``check_retraining``)."""
    return _request_retraining(context.instance, lake.lake, once=False)


def _unfinished_runs(instance: dg.DagsterInstance, job: str) -> Sequence[dg.DagsterRun]:
    return instance.get_runs(dg.RunsFilter(job_name=job, statuses=_UNFINISHED))


def _request_retraining(instance: dg.DagsterInstance, lake: DataLake, *, once: bool) -> dg.RunRequest | dg.SkipReason:
    from cs_pipeline.train.retraining import check_retraining

    if _unfinished_runs(instance, support_model.name):
        return dg.SkipReason("support_model is running; one training at a time")
    if not lake.path("prepare", "bitext_splits.parquet").exists():
        return dg.SkipReason("the full pipeline has not run yet; run it first: make demo")
    state, decision = check_retraining(lake)
    if not decision.due:
        return dg.SkipReason(f"not due: {decision.reason}")
    run_key = f"{state.recipe}-{state.data}" if once else None
    return dg.RunRequest(run_key=run_key, partition_key=state.recipe, tags={"cs.due": decision.reason})


JOBS = [support_model, ingest_company, read_articles, collect_ratings]
SENSORS = [landed_files, changed_articles, retrain_when_due]
SCHEDULES = [weekly_retrain, daily_ratings]
