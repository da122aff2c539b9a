"""Turns a company's raw conversations into training rows."""
