"""Tests of a model's answers to unusual questions."""
