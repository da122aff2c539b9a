"""A Dagster pipeline from support conversations to a measured, versioned, promoted support model."""
