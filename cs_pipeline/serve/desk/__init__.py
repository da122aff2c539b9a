"""The desk: rules between a customer and a model."""
