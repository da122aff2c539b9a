"""The command line ``cs-pipeline``."""
