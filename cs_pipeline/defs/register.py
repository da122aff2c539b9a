"""Assets of the register stage."""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from cs_pipeline.defs.metadata import cell
from cs_pipeline.defs.resources import RECIPES, LakeResource
from cs_pipeline.recipe import load_recipe

if TYPE_CHECKING:
    from cs_pipeline.register.lineage import Check

PROBE = "where is my refund?"

ALL_JUDGED = dg.AssetCheckSpec(
    "all_judged", asset="champion", description="Every evaluated version was judged beside the present champion."
)


@dg.asset(
    group_name="register",
    kinds={"mlflow"},
    partitions_def=RECIPES,
    deps=["adapter", "base_model", "evaluation", "evaluation_report"],
    code_version="1",
)
def model_version(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """A version of the registered model cs-support in MLflow, with tags that lead back to its runs and data."""
    from cs_pipeline.register.version import register
    from cs_pipeline.tracking import MODEL, store_uri

    recipe = load_recipe(context.partition_key)
    report = lake.lake.path("evaluate", "evaluation_report", f"{recipe.name}.html")
    version = register(recipe, lake.lake, context.run.run_id, _checks(context), report)
    context.log.info(f"{MODEL} version {version.version}" + (" (there before)" if version.reused else ""))
    return dg.MaterializeResult(
        metadata={
            "version": version.version,
            "mlflow_run": version.run_id,
            "fingerprint": version.fingerprint,
            "store": store_uri(lake.lake).partition("://")[0],
        },
        data_version=dg.DataVersion(f"{version.version}-{version.fingerprint}"),
    )


@dg.asset(
    group_name="register",
    kinds={"mlflow"},
    deps=[model_version],
    check_specs=[ALL_JUDGED],
    code_version="2",
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=90), warn_window=timedelta(days=45)),
)
def champion(
    context: dg.AssetExecutionContext, lake: LakeResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """The promotion decision: the alias champion, and its history with the reason of every decision."""
    from cs_pipeline.register.history import read_history
    from cs_pipeline.register.promotion import judge_candidates

    outcome = judge_candidates(lake.lake, f"Dagster run {context.run.run_id}")
    for entry in outcome.entries:
        verdict = "is champion" if entry["promote"] else "stays challenger"
        context.log.info(f"version {entry['version']} {verdict}: {entry['reason']}")
    for reason in outcome.waiting:
        context.log.warning(reason)
    if not outcome.entries:
        context.log.info(f"nothing new to judge; the champion is version {outcome.champion}")
    history = read_history(lake.lake)
    lines = ["| when | version | recipe | promoted | reason |", "|---|---:|---|---|---|"]
    lines += [
        f"| {e['time']} | {e['version']} | {cell(e['recipe'])} | {'yes' if e['promote'] else 'no'} | {cell(e['reason'])} |"
        for e in reversed(history[-50:])
    ]
    last = history[-1]["reason"] if history else "no version was judged yet"
    yield dg.MaterializeResult(
        metadata={
            "champion": outcome.champion or 0,
            "last_decision": last,
            "history": dg.MetadataValue.md("\n".join(lines)),
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
    """The version, loaded from MLflow as its users load it, answers a question."""
    from cs_pipeline.register.version import probe_version, version_of

    number = version_of(context.op_execution_context.partition_key, lake.lake)
    answer = probe_version(number, PROBE, lake.lake)
    return dg.AssetCheckResult(
        passed=bool(answer.strip()), metadata={"version": number, "question": PROBE, "answer": answer or "(nothing)"}
    )


def _checks(context: dg.AssetExecutionContext) -> "list[Check]":
    """The checks that this run has made until now."""
    logs = context.instance.all_logs(context.run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [log.dagster_event.asset_check_evaluation_data for log in logs if log.dagster_event]
    return [{"asset": e.asset_key.to_user_string(), "name": e.check_name, "passed": e.passed} for e in found]


ASSETS = [model_version, champion]
CHECKS = [answers_from_the_registry]
