"""Feedback on answers: ratings, thumbs, votes, and the texts that agents sent instead of a draft.

An SQLite database in the lake's ``serve/``. The chat page writes it; the stages read it and delete from it. Judgements
contain raw text until ``human_ratings`` is materialised. Edits contain raw text until ``retention_days`` after they landed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cs_pipeline.core.database import Database
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest
from cs_pipeline.llm.prompt import Context

_TABLES_VERSION = 1

TIE = "tie"
VOTE_LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""The letters that name the answers in a vote, in the order shown."""

_COLUMNS = (
    *("id", "at", "kind", "rater", "question_id", "question", "context", "systems", "answers", "score", "winner"),
    *("source", "settings"),
)
"""The columns of schema.RATING, in its order."""

_TABLES = (
    # While the texts are raw, clean is 0 and question_id is empty.
    """CREATE TABLE judgements (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, kind TEXT NOT NULL, rater TEXT NOT NULL,
        question_id TEXT NOT NULL, question TEXT NOT NULL, context TEXT, systems TEXT NOT NULL, answers TEXT NOT NULL,
        score INTEGER, winner TEXT, source TEXT NOT NULL, settings TEXT NOT NULL, content TEXT NOT NULL,
        clean INTEGER NOT NULL)""",
    """CREATE TABLE edits (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, agent TEXT NOT NULL, ticket TEXT NOT NULL,
        sent TEXT NOT NULL, drafts TEXT NOT NULL, picked INTEGER, customer TEXT NOT NULL, content TEXT NOT NULL,
        batch INTEGER, landed_at TEXT)""",
)


@dataclass(frozen=True)
class AskedQuestion:
    """A question as the customer wrote it, and the earlier turns, oldest first."""

    question: str
    earlier: Context = ()


@dataclass(frozen=True)
class GivenAnswer:
    """An answer as it was shown. ``system`` gave it, such as "version 3" or "version 3:base", with these ``settings``."""

    system: str
    answer: str
    settings: Mapping[str, str | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class AgentEdit:
    """The text that an agent ``sent`` in reply to a ``ticket``. ``customer`` is an id, an e-mail address or empty."""

    id: str
    ticket: str
    sent: str
    drafts: list[GivenAnswer]
    customer: str


class Feedback(Database):
    """The feedback of ``lake``, created on first use. Each method is one transaction, synced to disk when it returns.

    The client creates the ``id`` of a judgement or edit and sends it with every retry, so that the content is stored once.
    Raises PipelineError if the id already has other content, for invalid values, and if the database cannot be used.
    """

    def __init__(self, lake: DataLake) -> None:
        if_damaged = "If it is damaged, restore it from a backup: the ratings exist nowhere else."
        super().__init__(lake.path("serve", "feedback.db"), _TABLES, _TABLES_VERSION, if_damaged)

    # Written by the chat page

    def rate(self, id: str, rater: str, asked: AskedQuestion, given: GivenAnswer, score: int) -> None:
        """Stores a rating. ``score`` is from 1 to 5."""
        if score not in range(1, 6):
            raise PipelineError(f"A rating of {score} is not possible.", "Give a whole number from 1 to 5.")
        self._judge(id, "rating", rater, asked, [given], score, None)

    def thumb(self, id: str, rater: str, asked: AskedQuestion, given: GivenAnswer, up: bool) -> None:
        self._judge(id, "thumb", rater, asked, [given], int(up), None)

    def vote(self, id: str, rater: str, asked: AskedQuestion, given: Sequence[GivenAnswer], winner: int | None) -> None:
        """Stores a vote. ``winner`` is the index of the best answer in the order shown; None is a tie."""
        if not 2 <= len(given) <= len(VOTE_LETTERS) or winner not in (None, *range(len(given))):
            raise PipelineError(
                f"A vote for answer {winner} of {len(given)} is not possible.", "Vote for one of two or more answers."
            )
        self._judge(id, "vote", rater, asked, given, None, TIE if winner is None else VOTE_LETTERS[winner])

    def agent_edit(
        self,
        id: str,
        agent: str,
        ticket: str,
        sent: str,
        drafts: Sequence[GivenAnswer],
        picked: int | None = None,
        customer: str = "",
    ) -> None:
        """Stores what the agent sent. ``picked`` is the index of the draft that was edited; None if none was used."""
        if not (ticket.strip() and sent.strip()) or picked not in (None, *range(len(drafts))):
            raise PipelineError(
                "An edit needs a ticket, the sent text and, if a draft was edited, its index.", "Provide all of them."
            )
        drafts_json = _json([[draft.system, draft.answer, dict(draft.settings)] for draft in drafts])
        content = [*map(_valid_utf8, (agent, ticket, sent)), drafts_json, picked, _valid_utf8(customer.strip())]
        self._add("edits", id, ("agent", "ticket", "sent", "drafts", "picked", "customer"), content)

    # Judgements, for human_ratings

    def judgements(self, *, raw: bool) -> list[dict[str, Any]]:
        """The judgements whose texts are still raw, or those that are clean, with the columns of schema.RATING."""
        rows = self._select(f"SELECT {', '.join(_COLUMNS)} FROM judgements WHERE clean = ? ORDER BY number", not raw)
        return [_judgement(row) for row in rows]

    def replace_with_clean(self, judgements: Iterable[Mapping[str, Any]]) -> None:
        """Overwrites the raw judgements that have the same ids."""
        with self._transaction():
            self._db.executemany(
                "UPDATE judgements SET rater = ?, question_id = ?, question = ?, context = ?, answers = ?, settings = ?, "
                "clean = 1 WHERE id = ?",
                [
                    (
                        *(row["rater"], row["question_id"], row["question"], row["context"]),
                        *(_json(row["answers"]), row["settings"], row["id"]),
                    )
                    for row in judgements
                ],
            )
        self._truncate_log()

    def add_clean(self, judgements: Iterable[Mapping[str, Any]]) -> int:
        """Adds imported judgements without personal data; returns how many were new."""
        columns = (*_COLUMNS[1:], "clean")
        added = 0
        with self._transaction():
            for row in judgements:
                values = {**row, "at": row["at"].isoformat(), "clean": 1}
                values |= {name: _json(row[name]) for name in ("systems", "answers")}
                added += self._insert("judgements", row["id"], columns, [values[name] for name in columns])
        return added

    # Edits, for the landing folder

    def next_batch(self, before: datetime) -> tuple[int, list[AgentEdit]] | None:
        """The number and the content of the next file of edits. They stay the same until ``mark_landed`` is called.

        None if no edit is waiting, or if the oldest one is newer than ``before``.
        """
        with self._transaction():
            batch = self._select("SELECT min(batch) FROM edits WHERE landed_at IS NULL")[0][0]
            if batch is None:
                oldest = self._select("SELECT min(at) FROM edits WHERE batch IS NULL")[0][0]
                if oldest is None or datetime.fromisoformat(oldest) > before:
                    return None
                batch = self._select("SELECT coalesce(max(batch), 0) + 1 FROM edits")[0][0]
                self._db.execute("UPDATE edits SET batch = ? WHERE batch IS NULL", (batch,))
        return batch, self._edits("WHERE batch = ?", batch)

    def mark_landed(self, batch: int, now: datetime) -> None:
        """Records that the file with this number is in the landing folder."""
        with self._transaction():
            self._db.execute("UPDATE edits SET landed_at = ? WHERE batch = ?", (now.isoformat(), batch))

    def landed_batches(self) -> set[int]:
        """The numbers of all landed files."""
        return {batch for (batch,) in self._select("SELECT DISTINCT batch FROM edits WHERE landed_at IS NOT NULL")}

    def expire_edits(self, before: datetime) -> None:
        """Deletes the texts of edits landed before ``before``. Their ids stay, so a late retry does not add them again."""
        with self._transaction():
            self._db.execute(
                "UPDATE edits SET agent = '', ticket = '', sent = '', drafts = '[]', customer = '' WHERE landed_at < ?",
                (before.isoformat(),),
            )
        self._truncate_log()

    # Forgetting

    def edits(self) -> list[AgentEdit]:
        """All edits."""
        return self._edits("")

    def forget(self, ids: Iterable[str]) -> None:
        """Deletes judgements and edits for good."""
        parameters = [(id,) for id in ids]
        with self._transaction():
            for table in ("judgements", "edits"):
                self._db.executemany(f"DELETE FROM {table} WHERE id = ?", parameters)
        self._truncate_log()

    def _truncate_log(self) -> None:
        """Removes deleted texts from the write-ahead log too. Otherwise they stay there until SQLite's next checkpoint."""
        self._select("PRAGMA wal_checkpoint(TRUNCATE)")

    def _judge(
        self,
        id: str,
        kind: str,
        rater: str,
        asked: AskedQuestion,
        given: Sequence[GivenAnswer],
        score: int | None,
        winner: str | None,
    ) -> None:
        if not all(answer.system for answer in given):
            raise PipelineError("A judgement needs the version that gave the answer.", "Name the version.")
        earlier = [[speaker, text] for speaker, text in asked.earlier]
        settings = [dict(answer.settings) for answer in given]
        content = [
            *(kind, _valid_utf8(rater), "", _valid_utf8(asked.question), _json(earlier) if earlier else None),
            *(_json([answer.system for answer in given]), _json([answer.answer for answer in given]), score, winner),
            *("page", _json(settings[0] if len(settings) == 1 else settings), 0),
        ]
        self._add("judgements", id, (*_COLUMNS[2:], "clean"), content)

    def _add(self, table: str, id: str, columns: Sequence[str], content: list[Any]) -> None:
        if not id.strip():
            raise PipelineError(
                "Feedback needs an id.", "Create one before the first attempt, and keep it for retries."
            )
        with self._transaction():
            self._insert(table, id, ("at", *columns), [datetime.now(UTC).isoformat(), *content])

    def _insert(self, table: str, id: str, columns: Sequence[str], values: list[Any]) -> int:
        """Inserts a row; returns 1, or 0 for a retry. A retry differs only in the time, which is the first of ``values``."""
        content = digest(*values[1:])
        names = ("id", *columns, "content")
        sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) ON CONFLICT DO NOTHING"
        added = self._db.execute(sql, (id, *values, content)).rowcount
        if self._select(f"SELECT content FROM {table} WHERE id = ?", id)[0][0] != content:
            raise PipelineError(
                f"There is already feedback with the id '{id[:64]}' and different content.",
                "Feedback cannot be changed: send the new one under a new id.",
            )
        return added

    def _edits(self, where: str, *values: Any) -> list[AgentEdit]:
        rows = self._select(f"SELECT id, ticket, sent, drafts, customer FROM edits {where} ORDER BY number", *values)
        return [
            AgentEdit(id, ticket, sent, [GivenAnswer(*draft) for draft in json.loads(drafts)], customer)
            for id, ticket, sent, drafts, customer in rows
        ]


def _judgement(row: tuple[Any, ...]) -> dict[str, Any]:
    judgement = dict(zip(_COLUMNS, row, strict=True))
    lists = {name: json.loads(judgement[name]) for name in ("systems", "answers")}
    return judgement | lists | {"at": datetime.fromisoformat(judgement["at"])}


def _valid_utf8(text: str) -> str:
    """``text`` with lone surrogates replaced by "?". JSON can contain them; UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _json(value: Any) -> str:
    return _valid_utf8(json.dumps(value, ensure_ascii=False))
