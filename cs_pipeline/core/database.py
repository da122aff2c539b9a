"""An SQLite file of the lake: made at first use, readable by its owner alone, every transaction on the disk or undone."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import PRIVATE, locked, make_folder

BUSY = 60.0
"""Seconds that a step waits for another process to end its own."""


class Database:
    """The database at ``path``, used by the thread that opens it; several threads and processes open it at once.

    ``tables`` are the statements that make it, ``version`` is theirs and kept in its ``user_version``. Every method raises
    PipelineError when it cannot be read or written; ``if_damaged`` says what to do then.
    """

    def __init__(self, path: Path, tables: Sequence[str], version: int, if_damaged: str) -> None:
        self.path, self._if_damaged = path, if_damaged
        make_folder(path.parent)
        with self._errors():
            # Made before SQLite would make it, with its rights; the files that SQLite puts beside it get the same.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE))
            self._db = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
            try:
                self._open(tables, version)
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def _open(self, tables: Sequence[str], version: int) -> None:
        # In WAL only FULL syncs at each commit; what is deleted is overwritten with zeros.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA secure_delete = ON")
        # Two first uses at once would both make the tables, and SQLite does not wait when it changes the journal.
        with locked(self.path.with_name(f".{self.path.stem}.lock")):
            found = self._select("PRAGMA user_version")[0][0]
            if found > version:
                raise PipelineError(
                    f"{self.path} was written by a newer cs_pipeline: its version is {found}, not {version}.",
                    "Use that newer version with this lake.",
                )
            if found == 0:
                self._db.execute("PRAGMA journal_mode = WAL")
                with self._transaction():
                    for table in tables:
                        self._db.execute(table)
                    self._db.execute(f"PRAGMA user_version = {version}")

    def _select(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            try:
                # IMMEDIATE: a transaction that first reads and then writes could not wait for another writer.
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise PipelineError(
                f"{self.path} cannot be read or written: {error}.",
                f"Free the disk or give this user the right to write there. {self._if_damaged}",
            ) from error
