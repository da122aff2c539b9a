"""People's ratings and votes."""
