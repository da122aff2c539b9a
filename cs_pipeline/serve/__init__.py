"""Serves the champion: an API and a chat page, where people also rate its answers."""
