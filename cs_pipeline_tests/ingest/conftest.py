"""What several tests of ingestion share."""

from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """A remote place, empty again afterwards: fsspec has one for the whole process."""
    yield (files := MemoryFileSystem())
    files.store.clear()
    files.pseudo_dirs[:] = [""]
