"""What every other package builds on: files, tables, hashes and errors. Nothing here knows about models or support."""
