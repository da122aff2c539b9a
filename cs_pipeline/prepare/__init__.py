"""Clean rows, clusters, the frozen split, the intent classifier."""
