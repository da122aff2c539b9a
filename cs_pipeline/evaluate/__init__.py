"""Evaluates models on the frozen test rows and writes the reports."""
