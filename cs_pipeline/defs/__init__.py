"""Dagster only: assets, checks, jobs and resources, thin over the stages."""

import dagster as dg

from cs_pipeline.defs import automation, evaluate, ingest, prepare, register, resources, train
from cs_pipeline.defs import retrieval as knowledge

OWNERS = ["team:support-ml"]


def build_definitions() -> dg.Definitions:
    """All definitions; what holds for every asset is said here, once."""
    stages = [ingest, prepare, knowledge, train, evaluate, register]
    assets = dg.map_asset_specs(
        lambda spec: spec.replace_attributes(owners=OWNERS),
        [asset for stage in stages for asset in stage.ASSETS],
    )
    return dg.Definitions(
        assets=assets,
        asset_checks=[check for stage in stages for check in stage.CHECKS],
        jobs=automation.JOBS,
        sensors=automation.SENSORS,
        schedules=automation.SCHEDULES,
        resources=resources.RESOURCES,
        executor=dg.in_process_executor,
        loggers={"console": resources.console_logger},
    )
