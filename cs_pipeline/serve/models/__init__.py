"""Models in memory, and how they answer."""
