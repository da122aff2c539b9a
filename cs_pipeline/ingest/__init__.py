"""Brings raw rows into the lake, unchanged."""
