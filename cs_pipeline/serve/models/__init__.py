"""Models in memory and the batches that they answer."""
