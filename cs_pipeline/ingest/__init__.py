"""Reads raw rows into the lake without changing them."""
