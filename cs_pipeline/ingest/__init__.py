"""Raw rows into the lake, nothing changed."""
