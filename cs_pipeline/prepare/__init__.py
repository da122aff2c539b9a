"""Cleans rows, finds subjects, splits rows by clusters of near-duplicates, and trains intent classifiers and router."""
