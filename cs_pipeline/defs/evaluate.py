"""Assets of the evaluate stage."""

from collections import Counter

import dagster as dg

from cs_pipeline.defs.metadata import counts, table_result
from cs_pipeline.defs.resources import RECIPES, LakeResource
from cs_pipeline.recipe import load_recipe, recipe_names


@dg.asset(
    group_name="evaluate",
    kinds={"parquet"},
    partitions_def=RECIPES,
    deps=["adapter", "base_model", "train_split", "test_split", "retrieval_index"],
    pool="gpu",
    code_version="1",
)
def evaluation(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Base, tuned, champion and the cheap baselines on the same frozen test rows.

    The champion is read by its alias when this runs: as a dependency it would be a cycle. Which one it was is recorded.
    """
    from cs_pipeline.evaluate.evaluation import evaluate, evaluation_folder
    from cs_pipeline.tracking import champion_version

    recipe = load_recipe(context.partition_key)
    facts = evaluate(recipe, lake.lake, champion_version(lake.lake), context.log.info).facts
    tuned = {f"tuned_{name}": value["score"] for name, value in facts["scores"]["tuned"].items() if value}
    return dg.MaterializeResult(
        metadata={
            **tuned,
            "rows": facts["rows"],
            "clusters": facts["clusters"],
            "champion_version": facts["champion_version"] or "none, or this one",
            "differences": dg.MetadataValue.json(facts["differences"]),
            "dagster/uri": evaluation_folder(recipe.name, lake.lake).as_uri(),
        },
        data_version=dg.DataVersion(facts["fingerprint"]),
    )


@dg.asset(group_name="evaluate", kinds={"parquet"}, code_version="1")
def human_ratings(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """What people said of answers, in the page or on sheets, without personal data: ratings, thumbs and votes."""
    from cs_pipeline.company import load_company
    from cs_pipeline.evaluate.people.ratings import TABLE, collect

    found = collect(lake.lake, load_company(lake.lake))
    context.log.info(f"{found.rows.num_rows:,} judgements, {found.forgotten:,} forgotten")
    given = Counter(f"{row['kind']}, {row['source']}" for row in found.rows.select(["kind", "source"]).to_pylist())
    metadata = {"forgotten": found.forgotten} | counts("given", given) | counts("replaced", found.replaced)
    return table_result(lake.lake.table("evaluate", TABLE), found.rows, metadata)


@dg.asset(
    group_name="evaluate",
    kinds={"html"},
    partitions_def=RECIPES,
    deps=[evaluation, human_ratings, "adapter"],
    code_version="1",
)
def evaluation_report(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """One HTML file with plots and examples, the worst included; the summary stands here too."""
    from cs_pipeline.core.lake import file_sha256
    from cs_pipeline.evaluate.report.report import write_report

    report = write_report(load_recipe(context.partition_key), lake.lake)
    context.log.info(f"report: {report.path}")
    return dg.MaterializeResult(
        metadata={"summary": dg.MetadataValue.md(report.markdown), "dagster/uri": report.path.as_uri()},
        data_version=dg.DataVersion(file_sha256(report.path)[:16]),
    )


@dg.asset(
    group_name="evaluate",
    kinds={"parquet", "html"},
    deps=[evaluation, evaluation_report, "adapter", "train_split", "test_split"],
    code_version="2",
)
def leaderboard(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """All recipes side by side: settings, cost, figures with intervals, base against tuned; one HTML page of the same."""
    from cs_pipeline.evaluate.report.leaderboard_report import write_leaderboard

    board = write_leaderboard(recipe_names(), lake.lake)
    for name, why in board.leaderboard.apart.items():
        context.log.warning(f"{name} is not comparable: {why}")
    context.log.info(f"leaderboard: {board.path}")
    markdown = {title: dg.MetadataValue.md(text) for title, text in board.markdown.items()}
    page = {"page": dg.MetadataValue.path(str(board.path))}
    return table_result(lake.lake.table("evaluate", "leaderboard"), board.leaderboard.rows, markdown | page)


@dg.asset_check(asset=evaluation, blocking=True)
def every_metric_a_number(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """What promotion reads is there as a number, with its interval, for the tuned model and its base."""
    from cs_pipeline.evaluate.evaluation import read_evaluation

    facts = read_evaluation(context.op_execution_context.partition_key, lake.lake)
    needed = ("bits_per_character", "right_intent", "stop_rate", "rougeL", "chrf")
    lacking = [
        f"{system}.{name}" for system in ("tuned", "base") for name in needed if not facts["scores"][system].get(name)
    ]
    return dg.AssetCheckResult(passed=not lacking, metadata={"lacking": lacking})


@dg.asset_check(asset=evaluation)
def tuned_better_than_base(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The tuned model needs fewer bits per character than its base, interval and all. The promotion asks for it too."""
    from cs_pipeline.evaluate.evaluation import read_evaluation

    difference = read_evaluation(context.op_execution_context.partition_key, lake.lake)["differences"]["base"][
        "bits_per_character"
    ]
    return dg.AssetCheckResult(
        passed=difference["high"] < 0, severity=dg.AssetCheckSeverity.WARN, metadata=dict(difference)
    )


@dg.asset_check(asset=human_ratings, blocking=True, name="counts_reconcile")
def judgements_reconcile(lake: LakeResource) -> dg.AssetCheckResult:
    """Every judgement that was cleaned stands in the table, once."""
    from cs_pipeline.feedback import Feedback

    with Feedback(lake.lake) as feedback:
        kept = sorted(row["id"] for row in feedback.judgements(raw=False))
    shown = sorted(lake.lake.read("evaluate", "human_ratings", ["id"]).column("id").to_pylist())
    return dg.AssetCheckResult(passed=kept == shown, metadata={"judgements": len(kept), "rows": len(shown)})


ASSETS = [evaluation, human_ratings, evaluation_report, leaderboard]
CHECKS = [every_metric_a_number, judgements_reconcile, tuned_better_than_base]
