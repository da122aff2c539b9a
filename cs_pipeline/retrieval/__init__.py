"""Retrieval of known answers and help articles that are similar to a question."""
