"""An SQLite file in the lake. It is created on first use, and only its owner can read it."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import PRIVATE, locked, make_folder

_LOCK_TIMEOUT = 60.0
"""Seconds that a transaction waits for another process to finish its own."""


class Database:
    """The database at ``path``. Several threads and processes may use it, each through its own instance.

    ``tables`` are the CREATE statements. Their ``version`` is stored in SQLite's ``user_version``. Every transaction is
    synced to disk or rolled back. Every method raises PipelineError if the file cannot be read or written. The error ends
    with the text ``if_damaged``, which says what to do if the file is damaged.
    """

    def __init__(self, path: Path, tables: Sequence[str], version: int, if_damaged: str) -> None:
        self.path, self._if_damaged = path, if_damaged
        make_folder(path.parent)
        with self._errors():
            # Create the file here to set its mode. SQLite gives the same mode to its log files beside it.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE))
            self._db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None)
            try:
                self._open(tables, version)
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _open(self, tables: Sequence[str], version: int) -> None:
        # In WAL mode, SQLite syncs at every commit only with FULL. secure_delete overwrites deleted content with zeros.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA secure_delete = ON")
        # Without this lock, two processes could both create the tables: SQLite does not lock a change of the journal mode.
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
                # Without IMMEDIATE, a transaction that reads before it writes would fail if another one is writing.
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
                f"Free disk space or give this user write permission there. {self._if_damaged}",
            ) from error
