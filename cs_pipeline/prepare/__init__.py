"""Cleans rows, splits them by clusters of near-duplicates, and trains the intent classifiers."""
