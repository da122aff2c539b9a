"""Rules that stand between a customer and a model."""
