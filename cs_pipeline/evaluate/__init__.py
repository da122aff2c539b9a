"""What a model is worth on the frozen test rows, and the report that says so."""
