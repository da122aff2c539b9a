"""The parts of a training run: batches, loss, schedule, checkpoints and processes."""
