"""Clusters of near-duplicate questions, and the frozen split into train, validation and test."""
