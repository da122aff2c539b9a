"""What starts runs: jobs, the sensors that watch the landing place and the need to train, what the clock starts."""

import json
import os

import dagster as dg

from cs_pipeline.core.lake import DataLake
from cs_pipeline.defs.evaluate import human_ratings
from cs_pipeline.defs.ingest import company_interactions
from cs_pipeline.defs.prepare import clean_interactions
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.defs.retrieval import knowledge_base, retrieval_index
from cs_pipeline.recipe import load_recipe

MOST_ATTEMPTS = 3
"""Runs that are started for one day's deliveries, or for the same articles, before a person has to look."""

BUSY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

support_model = dg.define_asset_job(
    "support_model",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(company_interactions, clean_interactions),
    description="The whole graph for one recipe: from raw rows to the promotion decision.",
)

ingest_company = dg.define_asset_job(
    "ingest_company",
    selection=dg.AssetSelection.assets(company_interactions, clean_interactions),
    description="The deliveries of one day: read, personal data replaced, pairs made, poison flagged.",
)

collect_ratings = dg.define_asset_job(
    "collect_ratings",
    selection=dg.AssetSelection.assets(human_ratings),
    description="What people said of answers: personal data replaced, into the table.",
)

daily_ratings = dg.ScheduleDefinition(
    name="daily_ratings",
    job=collect_ratings,
    cron_schedule="30 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night, so that no judgement lies longer than a day as it was written.",
)

read_articles = dg.define_asset_job(
    "read_articles",
    selection=dg.AssetSelection.assets(knowledge_base, retrieval_index),
    description="The help articles as they are now, into the index that answers are looked up in.",
)


@dg.sensor(
    job=ingest_company,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Takes files that have landed, and ingests the days they were delivered on.",
)
def landed_files(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
    """One look at the landing place, and a run for each day with deliveries that are not ingested yet.

    What agents edited meanwhile is put there for the next look.
    """
    from datetime import UTC, datetime

    from cs_pipeline.company import load_company
    from cs_pipeline.ingest.landing import expire, land_edits, scan_landing
    from cs_pipeline.ingest.ledger import Ledger

    company, now = load_company(lake.lake), datetime.now(UTC)
    seen = scan_landing(lake.lake, company, now)
    expired = expire(lake.lake, company, now.date())
    edits = land_edits(lake.lake, company, now)
    said = [f"{len(seen.taken)} files taken" if seen.taken else "nothing new"]
    said += [f"waiting until they are whole: {', '.join(seen.waiting[:5])}"] if seen.waiting else []
    said += [f"{name} refused: {reason}" for name, reason in seen.refused[:5]]
    said += [f"{edits} edits of agents landed"] if edits else []
    said += [f"{len(expired)} deliveries deleted after {company.retention_days} days"] if expired else []
    never = [delivery.name for delivery in expired if delivery.ingested_at is None]
    said += [f"never ingested, and deleted all the same: {', '.join(never)}; land them again"] if never else []
    requests = []
    with Ledger(lake.lake) as ledger:
        superseded = ledger.superseded()
        waiting = [d for d in ledger.deliveries() if d.ingested_at is None and d.sha256 not in superseded]
        days = sorted({delivery.day for delivery in waiting if delivery.expired_at is None})
        if days and not lake.lake.path("prepare", "intent_classifier").exists():
            said.append("they are ingested once there is an intent classifier: make demo")
            days = []
        busy = _busy_partitions(context.instance)
        for day in days:
            if str(day) in busy:
                said.append(f"{day} is being ingested")
            elif ledger.attempts(day) >= MOST_ATTEMPTS:
                said.append(
                    f"{day} was tried {MOST_ATTEMPTS} times: look at its last run of {ingest_company.name}, fix what it "
                    f"says, and launch that job for the partition {day}"
                )
            else:
                attempt = ledger.count_attempt(day)
                requests.append(dg.RunRequest(partition_key=str(day), tags={"cs.attempt": str(attempt)}))
    if not requests:
        return dg.SkipReason("; ".join(said))
    context.log.info("; ".join(said))
    return dg.SensorResult(run_requests=requests)


@dg.sensor(
    job=read_articles,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Follows help articles that are put into landing/knowledge/, changed or deleted there.",
)
def changed_articles(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
    """Compares what lies there with what was read, and asks for a run once it is the same in two looks.

    The cursor keeps what the last look saw, and how often a run was asked for that.
    """
    from cs_pipeline.company import load_company
    from cs_pipeline.core.lake import digest
    from cs_pipeline.ingest.knowledge import list_articles
    from cs_pipeline.retrieval.passages import known_files

    there = {listed.path: listed.identity for listed in list_articles(lake.lake, load_company(lake.lake))}
    known = known_files(lake.lake)
    if there == known:
        return dg.SkipReason(f"nothing new: {len(there)} files" if there else "no articles")
    said = (
        f"{len(there.keys() - known)} files new, {len(known.keys() - there)} gone, "
        f"{sum(there[path] != known[path] for path in there.keys() & known)} changed"
    )
    if not lake.lake.table("prepare", "train_split").exists():
        return dg.SkipReason(f"{said}; they are read with the whole job: make demo")
    if context.instance.get_runs_count(dg.RunsFilter(job_name=read_articles.name, statuses=BUSY)):
        return dg.SkipReason(f"{said}; articles are being read")
    now = digest(there)
    seen = json.loads(context.cursor or "{}")
    attempts = seen["attempts"] if seen.get("there") == now else -1
    if attempts == MOST_ATTEMPTS:
        return dg.SkipReason(
            f"{said}; they were tried {MOST_ATTEMPTS} times: look at the last run of {read_articles.name}, fix what it "
            "says, and launch that job"
        )
    cursor = json.dumps({"there": now, "attempts": attempts + 1})
    if attempts < 0:
        return dg.SensorResult(skip_reason=f"{said}; waiting until they are whole", cursor=cursor)
    context.log.info(said)
    return dg.SensorResult(run_requests=[dg.RunRequest(tags={"cs.articles": said})], cursor=cursor)


@dg.sensor(
    job=support_model,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Trains, judges and perhaps promotes a new model when enough has landed.",
)
def retrain_when_due(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.RunRequest | dg.SkipReason:
    """Asks the one decision function; equal data is asked for once."""
    return _retraining(context.instance, lake.lake, once=True)


@dg.schedule(
    job=support_model,
    cron_schedule="0 3 * * 1",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The same decision on Monday nights: it also gives a training that failed another chance.",
)
def weekly_retrain(context: dg.ScheduleEvaluationContext, lake: LakeResource) -> dg.RunRequest | dg.SkipReason:
    """Asks the one decision function."""
    return _retraining(context.instance, lake.lake, once=False)


def _retraining(instance: dg.DagsterInstance, lake: DataLake, *, once: bool) -> dg.RunRequest | dg.SkipReason:
    from cs_pipeline.train.retraining import check_retraining

    recipe = os.environ.get("CS_RECIPE") or "embedded"
    if instance.get_runs_count(dg.RunsFilter(job_name=support_model.name, statuses=BUSY)):
        return dg.SkipReason("a run of support_model is under way; one training at a time")
    if not lake.path("prepare", "bitext_splits.parquet").exists():
        return dg.SkipReason("there is no champion yet; run the whole job first: make demo")
    found, due = check_retraining(load_recipe(recipe), lake)
    if not due.due:
        return dg.SkipReason(f"not due: {due.reason}")
    tags = {"cs.due": due.reason}
    return dg.RunRequest(run_key=f"{recipe}-{found.data}" if once else None, partition_key=recipe, tags=tags)


def _busy_partitions(instance: dg.DagsterInstance) -> set[str]:
    runs = instance.get_runs(dg.RunsFilter(job_name=ingest_company.name, statuses=BUSY))
    return {run.tags.get("dagster/partition", "") for run in runs}


JOBS = [support_model, ingest_company, read_articles, collect_ratings]
SENSORS = [landed_files, changed_articles, retrain_when_due]
SCHEDULES = [weekly_retrain, daily_ratings]
