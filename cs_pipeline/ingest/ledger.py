"""The ledger: deliveries with their names and days, forgotten customers and rows, and released rows.

It is an SQLite file beside the tables of ingest. Only its owner can read it, because it contains the key for hashing ids.
"""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from cs_pipeline.core.database import Database
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake

_SCHEMA_VERSION = 1

_IF_DAMAGED = (
    "If the ledger is damaged, restore it from a backup: without it, every file in the landing folder would be ingested "
    "again, including forgotten rows."
)

_TABLES = (
    "CREATE TABLE secret (key BLOB NOT NULL)",
    """CREATE TABLE deliveries (
        number INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, name TEXT NOT NULL, bytes INTEGER NOT NULL,
        day TEXT NOT NULL, taken_at TEXT NOT NULL, supersedes TEXT REFERENCES deliveries (sha256),
        ingested_at TEXT, ingested_by TEXT, expired_at TEXT, damage TEXT)""",
    # The content last read under each name. A delivery that is not listed here is superseded.
    "CREATE TABLE names (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES deliveries (sha256))",
    """CREATE TABLE sightings (
        name TEXT PRIMARY KEY, identity TEXT NOT NULL, inode TEXT, since TEXT NOT NULL, sha256 TEXT)""",
    """CREATE TABLE tombstones (
        kind TEXT NOT NULL CHECK (kind IN ('subject', 'row')), id TEXT NOT NULL, why TEXT NOT NULL, at TEXT NOT NULL,
        PRIMARY KEY (kind, id))""",
    "CREATE TABLE releases (row_id TEXT PRIMARY KEY, by TEXT NOT NULL, why TEXT NOT NULL, at TEXT NOT NULL)",
    "CREATE TABLE attempts (day TEXT PRIMARY KEY, count INTEGER NOT NULL)",
)


@dataclass(frozen=True)
class Delivery:
    """A file that was delivered. ``sha256`` and ``size`` (in bytes) are those of the file as it landed; times are in UTC.

    ``supersedes`` is the hash of the previous delivery of the same name, ``ingested_by`` the run that first ingested it.
    ``damage`` says why the copy in the lake is incomplete; it is None if the copy is complete.
    """

    sha256: str
    name: str
    size: int
    day: date
    taken_at: str
    supersedes: str | None
    ingested_at: str | None
    ingested_by: str | None
    expired_at: str | None
    damage: str | None


@dataclass(frozen=True)
class Sighting:
    """A file in the landing folder. ``since`` is the time (UTC) of the first scan that found it with this content.

    ``identity`` changes when the content changes, and is known without reading the content. ``inode`` is None in a remote
    store. ``sha256`` is the hash of the delivery with this content; it is None until the content is read.
    """

    name: str
    identity: str
    inode: str | None
    since: str
    sha256: str | None = None


@dataclass(frozen=True)
class Tombstones:
    """Hashed ids of forgotten customers and rows. They stay out of all later tables."""

    subjects: frozenset[str]
    rows: frozenset[str]


class Ledger(Database):
    """The ledger of ``lake``, created at first use. Each method is one transaction."""

    def __init__(self, lake: DataLake) -> None:
        super().__init__(lake.path("ingest", "ledger.db"), _TABLES, _SCHEMA_VERSION, _IF_DAMAGED)
        if not (found := self._select("SELECT key FROM secret")):
            with self._transaction():
                insert = "INSERT INTO secret SELECT ? WHERE NOT EXISTS (SELECT * FROM secret)"
                self._db.execute(insert, (secrets.token_bytes(32),))
            found = self._select("SELECT key FROM secret")
        self.key: bytes = found[0][0]

    # Hashes

    def hash_subject(self, raw: str) -> str:
        """16 hex digits for a customer's id or e-mail address, ignoring case."""
        return self._hash("subject", raw.strip().casefold())

    def hash_row(self, *parts: str) -> str:
        """16 hex digits for a row, conversation, question or rater with these parts.

        The hash is keyed, so nobody can check a guess of the raw text.
        """
        return self._hash("row", *parts)

    def _hash(self, *parts: str) -> str:
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        return hmac.digest(self.key, text, "sha256").hex()[:16]

    # Sightings in the landing folder

    def update_sightings(self, present: Iterable[Sighting]) -> dict[str, Sighting]:
        """Stores which files are in the landing folder now. Returns the sightings of the previous scan by name.

        A file with unchanged content keeps its ``since`` and ``sha256``.
        """
        with self._transaction():
            before = {row[0]: Sighting(*row) for row in self._db.execute("SELECT * FROM sightings")}
            now = {sighting.name: sighting for sighting in present}
            new = [s for s in now.values() if s.name not in before or before[s.name].identity != s.identity]
            self._db.executemany(
                "DELETE FROM sightings WHERE name = ?", [(name,) for name in before.keys() - now.keys()]
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO sightings VALUES (?, ?, ?, ?, ?)",
                [(s.name, s.identity, s.inode, s.since, s.sha256) for s in new],
            )
        return before

    def sightings(self) -> dict[str, Sighting]:
        """The sightings of the last scan by name."""
        return {row[0]: Sighting(*row) for row in self._select("SELECT * FROM sightings")}

    def replace_sightings(self, present: Iterable[Sighting]) -> None:
        """Adds these sightings or replaces those with the same names, except if their content was read and is unchanged."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO sightings VALUES (?, ?, ?, ?, NULL) ON CONFLICT (name) DO UPDATE SET "
                "identity = excluded.identity, inode = excluded.inode, since = excluded.since, sha256 = NULL "
                "WHERE sha256 IS NULL OR identity <> excluded.identity",
                [(s.name, s.identity, s.inode, s.since) for s in present],
            )

    def sha256_of(self, name: str) -> str | None:
        """The sha256 of the delivery last read under ``name``, None if there is none."""
        found = self._select("SELECT sha256 FROM names WHERE name = ?", name)
        return found[0][0] if found else None

    def add_delivery(
        self, name: str, identity: str, sha256: str, size: int, damage: str | None, now: datetime
    ) -> Delivery:
        """Records that this content of ``size`` bytes was read under ``name``. Returns its delivery.

        Content that is read for the first time becomes a delivery of the UTC day of ``now``. If superseded content is
        delivered again, it counts as not ingested, because its day may have been ingested without it.
        """
        with self._transaction():
            if sha256 in self.superseded():
                self._db.execute(
                    "UPDATE deliveries SET ingested_at = NULL, ingested_by = NULL WHERE sha256 = ?", (sha256,)
                )
            self._db.execute(
                "INSERT INTO deliveries (sha256, name, bytes, day, taken_at, supersedes, damage) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (sha256) DO NOTHING",
                (sha256, name, size, str(now.astimezone(UTC).date()), _iso(now), self.sha256_of(name), damage),
            )
            self._db.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (name, sha256))
            self._db.execute(
                "UPDATE sightings SET sha256 = ? WHERE name = ? AND identity = ?", (sha256, name, identity)
            )
            [delivery] = self._deliveries("WHERE sha256 = ?", sha256)
        return delivery

    # Deliveries

    def deliveries(self, day: date | None = None) -> list[Delivery]:
        """All deliveries, or those of ``day``, oldest first."""
        if day is None:
            return self._deliveries("")
        return self._deliveries("WHERE day = ?", day.isoformat())

    def delivery(self, sha256: str) -> Delivery | None:
        """The delivery whose file, as it landed, has this hash; None if there is none."""
        found = self._deliveries("WHERE sha256 = ?", sha256)
        return found[0] if found else None

    def superseded(self) -> set[str]:
        """The sha256 of the deliveries that are no longer the latest content of any name."""
        return {row[0] for row in self._select("SELECT sha256 FROM deliveries EXCEPT SELECT sha256 FROM names")}

    def pending_days(self) -> list[date]:
        """The days with a delivery that is neither ingested nor superseded nor expired."""
        superseded = self.superseded()
        return sorted(
            {d.day for d in self.deliveries() if not (d.ingested_at or d.expired_at or d.sha256 in superseded)}
        )

    def mark_ingested(self, day: date, sha256s: Iterable[str], by: str) -> None:
        """Records that the run ``by`` ingested these deliveries of ``day``, unless an earlier run did. Resets attempts."""
        updates = [(_iso(datetime.now(UTC)), by, day.isoformat(), sha256) for sha256 in sha256s]
        with self._transaction():
            marked = self._db.executemany(
                "UPDATE deliveries SET ingested_at = coalesce(ingested_at, ?), ingested_by = coalesce(ingested_by, ?) "
                "WHERE day = ? AND sha256 = ?",
                updates,
            ).rowcount
            if updates and marked != len(updates):
                raise PipelineError(
                    f"{self.path} holds {marked} of the {len(updates)} deliveries that were ingested for {day}.",
                    "If the ledger was replaced in the meantime, ingest the day again; otherwise this is a bug.",
                )
            self._db.execute("DELETE FROM attempts WHERE day = ?", (day.isoformat(),))

    def expire(self, sha256: str) -> None:
        """Records that the raw rows of this delivery were deleted."""
        with self._transaction():
            self._db.execute(
                "UPDATE deliveries SET expired_at = coalesce(expired_at, ?) WHERE sha256 = ?",
                (_iso(datetime.now(UTC)), sha256),
            )

    def attempts(self, day: date) -> int:
        """The number of attempts to ingest ``day`` since the last success."""
        found = self._select("SELECT count FROM attempts WHERE day = ?", day.isoformat())
        return int(found[0][0]) if found else 0

    def count_attempt(self, day: date) -> int:
        """Adds an attempt to ingest ``day``. Returns its number, from 1."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO attempts VALUES (?, 1) ON CONFLICT (day) DO UPDATE SET count = count + 1",
                (day.isoformat(),),
            )
            return self.attempts(day)

    # Forgotten and released

    def tombstones(self) -> Tombstones:
        rows = self._select("SELECT kind, id FROM tombstones")
        return Tombstones(
            frozenset(id for kind, id in rows if kind == "subject"),
            frozenset(id for kind, id in rows if kind == "row"),
        )

    def add_tombstone(self, kind: Literal["subject", "row"], id: str, why: str) -> None:
        """Records permanently that this hashed id is forgotten. The first reason is kept."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO tombstones VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (kind, id, why, _iso(datetime.now(UTC))),
            )

    def released(self) -> set[str]:
        """The ids of flagged rows that a person allowed into training."""
        return {row[0] for row in self._select("SELECT row_id FROM releases")}

    def release(self, row_id: str, by: str, why: str) -> None:
        """Records who allowed a flagged row into training, and why. The first release is kept."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO releases VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (row_id, by, why, _iso(datetime.now(UTC))),
            )

    def _deliveries(self, where: str, *values: str) -> list[Delivery]:
        rows = self._select(
            "SELECT sha256, name, bytes, day, taken_at, supersedes, ingested_at, ingested_by, expired_at, damage "
            f"FROM deliveries {where} ORDER BY number",
            *values,
        )
        return [Delivery(sha256, name, size, date.fromisoformat(day), *rest) for sha256, name, size, day, *rest in rows]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
