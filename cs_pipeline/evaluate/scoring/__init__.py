"""Scores of answers on the test rows."""
