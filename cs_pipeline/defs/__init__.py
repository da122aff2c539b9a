"""Dagster definitions: assets, checks, jobs, sensors, schedules and resources. The logic is in the stages."""

from datetime import timedelta

import dagster as dg

from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.defs import automation, evaluate, ingest, prepare, register, resources, retrieval, train

OWNERS = ["team:support-ml"]

FRESHNESS = {
    "company_interactions": dg.FreshnessPolicy.time_window(
        warn_window=timedelta(days=14), fail_window=timedelta(days=60)
    ),
    "champion": dg.FreshnessPolicy.time_window(warn_window=timedelta(days=45), fail_window=timedelta(days=90)),
}


def build_definitions() -> dg.Definitions:
    """All definitions. Owners, code versions and freshness policies of all assets are set here."""
    stages = [ingest, prepare, retrieval, train, evaluate, register]
    return dg.Definitions(
        assets=dg.map_asset_specs(_with_attributes, [asset for stage in stages for asset in stage.ASSETS]),
        asset_checks=[check for stage in stages for check in stage.CHECKS],
        jobs=automation.JOBS,
        sensors=automation.SENSORS,
        schedules=automation.SCHEDULES,
        resources=resources.RESOURCES,
        executor=dg.in_process_executor,
        loggers={"console": resources.console_logger},
    )


def _with_attributes(spec: dg.AssetSpec) -> dg.AssetSpec:
    name = spec.key.to_user_string()
    return spec.replace_attributes(
        owners=OWNERS, code_version=CODE_VERSIONS.get(name), freshness_policy=FRESHNESS.get(name)
    )
