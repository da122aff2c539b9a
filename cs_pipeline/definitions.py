"""The module that Dagster loads."""

from cs_pipeline.defs import build_definitions

defs = build_definitions()
