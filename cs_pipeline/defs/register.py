"""Assets and checks of the register stage."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from cs_pipeline.defs.metadata import markdown_table
from cs_pipeline.defs.resources import RECIPES, LakeResource
from cs_pipeline.recipe import load_recipe

if TYPE_CHECKING:
    from cs_pipeline.register.lineage import Check

_QUESTION = "where is my refund?"

ALL_JUDGED = dg.AssetCheckSpec(
    "all_judged", asset="champion", description="No version waits for an evaluation against the current champion."
)


@dg.asset(
    group_name="register",
    kinds={"mlflow"},
    partitions_def=RECIPES,
    deps=["adapter", "base_model", "evaluation", "evaluation_report"],
)
def model_version(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """A version of the registered model cs-support in MLflow, with tags that point to its runs and data."""
    from cs_pipeline.register.version import register
    from cs_pipeline.tracking import MODEL, store_uri

    recipe = load_recipe(context.partition_key)
    report = lake.lake.path("evaluate", "evaluation_report", f"{recipe.name}.html")
    version = register(recipe, lake.lake, context.run.run_id, _checks(context), report)
    context.log.info(f"{MODEL} version {version.version}" + (" (registered before)" if version.reused else ""))
    return dg.MaterializeResult(
        metadata={
            "version": version.version,
            "mlflow_run": version.run_id,
            "fingerprint": version.fingerprint,
            "store": store_uri(lake.lake).partition("://")[0],
        },
        data_version=dg.DataVersion(f"{version.version}-{version.fingerprint}"),
    )


@dg.asset(group_name="register", kinds={"mlflow"}, deps=[model_version, "human_ratings"], check_specs=[ALL_JUDGED])
def champion(
    context: dg.AssetExecutionContext, lake: LakeResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """The promotion decision: sets the alias champion and keeps a history with the reason for every decision."""
    from cs_pipeline.register.history import read_history
    from cs_pipeline.register.promotion import judge_candidates

    outcome = judge_candidates(lake.lake, f"Dagster run {context.run.run_id}")
    for entry in outcome.entries:
        verdict = "is champion" if entry["promote"] else "stays challenger"
        context.log.info(f"version {entry['version']} {verdict}: {entry['reason']}")
    for message in outcome.waiting:
        context.log.warning(message)
    if not outcome.entries:
        context.log.info(f"no new version to decide on; the champion is version {outcome.champion}")
    history = read_history(lake.lake)
    rows = [
        (entry["time"], entry["version"], entry["recipe"], "yes" if entry["promote"] else "no", entry["reason"])
        for entry in reversed(history[-50:])
    ]
    yield dg.MaterializeResult(
        metadata={
            "champion": outcome.champion or 0,
            "last_decision": history[-1]["reason"] if history else "none yet",
            "history": markdown_table(["time", "version", "recipe", "promoted", "reason"], rows),
        },
        data_version=dg.DataVersion(f"{outcome.champion}-{len(history)}"),
    )
    yield dg.AssetCheckResult(
        check_name=ALL_JUDGED.name,
        passed=not outcome.waiting,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"waiting": "\n".join(outcome.waiting) or "none"},
    )


@dg.asset_check(asset=model_version, blocking=True)
def answers_from_the_registry(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The version, loaded from MLflow as any client loads it, answers a question.

    If neither its files nor the libraries have changed since the last check, that check's answer is reused, unless the
    version retrieves.
    """
    from cs_pipeline.register.version import probe_version, version_of

    number = version_of(context.op_execution_context.partition_key, lake.lake)
    answer = probe_version(number, _QUESTION, lake.lake)
    return dg.AssetCheckResult(
        passed=bool(answer.strip()), metadata={"version": number, "question": _QUESTION, "answer": answer or "(empty)"}
    )


def _checks(context: dg.AssetExecutionContext) -> "list[Check]":
    """The checks that this run has evaluated so far."""
    logs = context.instance.all_logs(context.run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    evaluations = [log.dagster_event.asset_check_evaluation_data for log in logs if log.dagster_event]
    return [
        {
            "asset": e.asset_key.to_user_string(),
            "name": e.check_name,
            "passed": e.passed,
            "severity": e.severity.value,
        }
        for e in evaluations
    ]


ASSETS = [model_version, champion]
CHECKS = [answers_from_the_registry]
