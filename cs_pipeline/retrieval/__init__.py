"""Finding known answers and articles that are similar to a question."""
