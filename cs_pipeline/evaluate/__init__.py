"""How good a model is on the frozen test rows, and the report about it."""
