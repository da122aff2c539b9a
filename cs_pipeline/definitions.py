"""The entry that Dagster loads."""

from cs_pipeline.defs import build

defs = build()
