"""Jobs."""

import dagster as dg

support_model = dg.define_asset_job(
    "support_model",
    selection=dg.AssetSelection.all(),
    description="The whole graph for one recipe: from raw rows to the promotion decision.",
)
