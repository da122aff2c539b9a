"""What every other package builds on: files, tables, hashes, errors. It knows nothing of models or support."""
