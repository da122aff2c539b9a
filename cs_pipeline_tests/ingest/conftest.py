"""Fixtures of the tests of ingestion."""

from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """fsspec's file system in memory, which is global to the process; it is emptied afterwards."""
    yield (files := MemoryFileSystem())
    files.store.clear()
    files.pseudo_dirs[:] = [""]
