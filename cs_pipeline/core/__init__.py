"""Files, tables, hashes, locks and errors. All other packages use them, and they import no other package."""
