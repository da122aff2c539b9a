"""How a model answers unusual questions."""
