"""Jobs."""

import dagster as dg

from cs_pipeline.defs.resources import RECIPES

support_model = dg.define_asset_job(
    "support_model",
    selection=dg.AssetSelection.all(),
    partitions_def=RECIPES,
    description="The whole graph for one recipe: from raw rows to the promotion decision.",
)
