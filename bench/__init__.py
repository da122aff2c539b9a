"""Benchmarks that run their arms in turn, in one run; see README.md."""
