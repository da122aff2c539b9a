"""One training run: batches, schedule, checkpoints, processes."""
