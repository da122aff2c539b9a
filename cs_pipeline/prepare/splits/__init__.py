"""Near-duplicate clusters and the frozen split."""
