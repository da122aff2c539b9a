"""Dagster only: assets, checks, jobs and resources, thin over the stages."""
