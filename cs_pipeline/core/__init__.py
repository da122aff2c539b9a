"""The base of all other packages: files, tables, hashes, locks and errors, independent of models and customer support."""
