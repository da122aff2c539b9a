"""Assets and checks of the evaluate stage."""

from collections import Counter

import dagster as dg

from cs_pipeline.defs.metadata import count_table, data_check, table_result
from cs_pipeline.defs.resources import RECIPES, LakeResource
from cs_pipeline.evaluate import checks
from cs_pipeline.recipe import load_recipe, recipe_names

intent_labels = dg.AssetSpec(
    "intent_labels",
    group_name="evaluate",
    kinds={"parquet"},
    description="Intents that people gave to company test questions, on the sheets of cs-pipeline intents export.",
)


@dg.asset(
    group_name="evaluate",
    kinds={"parquet"},
    partitions_def=RECIPES,
    deps=["adapter", "base_model", "train_split", "test_split", "retrieval_index", intent_labels],
    pool="gpu",
)
def evaluation(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Base model, tuned model, champion and simple baselines on the same frozen test rows.

    The champion is looked up by its alias at run time, because a dependency on it would be a cycle. Its version is recorded.
    """
    from cs_pipeline.evaluate.evaluation import evaluate
    from cs_pipeline.evaluate.results import evaluation_folder
    from cs_pipeline.tracking import champion_version

    recipe = load_recipe(context.partition_key)
    results = evaluate(recipe, lake.lake, champion_version(lake.lake), context.log.info).results
    tuned = {f"tuned_{name}": value.score for name, value in results.scores["tuned"].items() if value}
    return dg.MaterializeResult(
        metadata={
            **tuned,
            "rows": results.rows,
            "clusters": results.clusters,
            "sealed_rows": results.sealed.rows if results.sealed else 0,
            "champion_version": results.champion_version or "none, or the evaluated version",
            "differences": dg.MetadataValue.json(results.model_dump(mode="json")["differences"]),
            "dagster/uri": evaluation_folder(recipe.name, lake.lake).as_uri(),
        },
        data_version=dg.DataVersion(results.fingerprint),
    )


@dg.asset(group_name="evaluate", kinds={"parquet"})
def human_ratings(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Ratings, thumbs and votes that people gave to answers, on the page or on sheets, without personal data."""
    from cs_pipeline.company import load_company
    from cs_pipeline.evaluate.people.ratings import RATINGS_TABLE, write_human_ratings

    ratings = write_human_ratings(lake.lake, load_company(lake.lake))
    context.log.info(f"{ratings.rows.num_rows:,} judgements, {ratings.forgotten:,} forgotten")
    counts = Counter(f"{row['kind']}, {row['source']}" for row in ratings.rows.select(["kind", "source"]).to_pylist())
    metadata = {"forgotten": ratings.forgotten, "given": count_table(counts), "replaced": count_table(ratings.replaced)}
    return table_result(lake.lake.table("evaluate", RATINGS_TABLE), ratings.rows, metadata)


@dg.asset(group_name="evaluate", kinds={"html"}, partitions_def=RECIPES, deps=[evaluation, human_ratings, "adapter"])
def evaluation_report(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """One HTML file with plots and examples, including the worst ones; the metadata has its summary."""
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
)
def leaderboard(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """All recipes side by side: settings, cost, metrics with intervals, base against tuned. As a table and an HTML page."""
    from cs_pipeline.evaluate.report.leaderboard_report import write_leaderboard

    board = write_leaderboard(recipe_names(), lake.lake)
    for name, why in board.leaderboard.not_comparable.items():
        context.log.warning(f"{name} is not comparable: {why}")
    context.log.info(f"leaderboard: {board.path}")
    markdown = {title: dg.MetadataValue.md(text) for title, text in board.markdown.items()}
    page = {"page": dg.MetadataValue.path(str(board.path))}
    return table_result(lake.lake.table("evaluate", "leaderboard"), board.leaderboard.rows, markdown | page)


ASSETS = [intent_labels, evaluation, human_ratings, evaluation_report, leaderboard]
CHECKS = [
    data_check(evaluation, checks.every_metric_a_number),
    data_check(evaluation, checks.tuned_better_than_base, blocking=False),
    data_check(human_ratings, checks.judgements_reconcile, name="counts_reconcile"),
]
