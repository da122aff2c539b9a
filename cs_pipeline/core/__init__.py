"""Files, tables, hashes, locks and errors. All other packages use them; nothing in them depends on models or support."""
