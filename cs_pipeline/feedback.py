"""What people say of answers while they use them: ratings, thumbs, votes, and what agents sent in place of a draft.

SQLite in the lake's ``serve/``. The page writes here; the stages read, and forget, here. Texts are raw until
``human_ratings`` has been made (judgements) or the edit is landed and its time is over (edits).
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

VERSION = 1
"""Of the tables, kept in the database's ``user_version``."""

TIE = "tie"
VOTE_LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""What the answers that a vote is on are called, in the order shown."""

_COLUMNS = (
    *("id", "at", "kind", "rater", "question_id", "question", "context", "systems", "answers", "score", "winner"),
    *("source", "settings"),
)
"""Those of schema.RATING, in its order."""

_TABLES = (
    # clean: 0 while the texts are as they were written, and question_id is not known yet.
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
    """A question as the customer wrote it, and what was said before it, oldest first."""

    question: str
    earlier: Context = ()


@dataclass(frozen=True)
class ShownAnswer:
    """An answer as it was shown, and who gave it: "version 3", or "version 3:base". ``settings`` are whatever shaped it."""

    system: str
    answer: str
    settings: Mapping[str, str | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class AgentEdit:
    """What an agent ``sent`` in answer to a ``ticket``; ``customer`` is an id or e-mail address, or empty."""

    id: str
    ticket: str
    sent: str
    drafts: list[ShownAnswer]
    customer: str


class Feedback(Database):
    """The feedback of ``lake``, made at first use. Each method is one transaction, on the disk when it returns.

    Who gives a judgement or an edit makes its ``id``, once for all tries: with equal content it is there once, with
    another content it is refused. Raises PipelineError for that, for a wrong value, and when the file cannot be used.
    """

    def __init__(self, lake: DataLake) -> None:
        if_damaged = "If it is damaged, restore it from a backup: nothing else holds the ratings."
        super().__init__(lake.path("serve", "feedback.db"), _TABLES, VERSION, if_damaged)

    # What people say

    def rate(self, id: str, rater: str, asked: AskedQuestion, given: ShownAnswer, score: int) -> None:
        """``score`` is 1 to 5."""
        if score not in range(1, 6):
            raise PipelineError(f"A rating of {score} is none of 1 to 5.", "Give a whole number from 1 to 5.")
        self._judge(id, "rating", rater, asked, [given], score, None)

    def thumb(self, id: str, rater: str, asked: AskedQuestion, given: ShownAnswer, up: bool) -> None:
        self._judge(id, "thumb", rater, asked, [given], int(up), None)

    def vote(self, id: str, rater: str, asked: AskedQuestion, given: Sequence[ShownAnswer], winner: int | None) -> None:
        """``winner`` is the place of the best answer in the order shown, from 0; None is a tie."""
        if not 2 <= len(given) <= len(VOTE_LETTERS) or winner not in (None, *range(len(given))):
            raise PipelineError(
                f"A vote for answer {winner} of {len(given)} cannot be.", "Give two answers or more, and one of them."
            )
        self._judge(id, "vote", rater, asked, given, None, TIE if winner is None else VOTE_LETTERS[winner])

    def agent_edit(
        self,
        id: str,
        agent: str,
        ticket: str,
        sent: str,
        drafts: Sequence[ShownAnswer],
        picked: int | None = None,
        customer: str = "",
    ) -> None:
        """What the agent sent, from the draft at the place ``picked``, from 0; None where it was written anew."""
        if not (ticket.strip() and sent.strip()) or picked not in (None, *range(len(drafts))):
            raise PipelineError(
                "An edit needs a ticket, the text that was sent, and one of its drafts.", "Send it with all of them."
            )
        given = _json([[draft.system, draft.answer, dict(draft.settings)] for draft in drafts])
        content = [*map(_sound, (agent, ticket, sent)), given, picked, _sound(customer.strip())]
        self._add("edits", id, ("agent", "ticket", "sent", "drafts", "picked", "customer"), content)

    # Judgements on their way into human_ratings

    def judgements(self, *, raw: bool) -> list[dict[str, Any]]:
        """Those whose texts are as they were written, or those that are clean, with the columns of schema.RATING."""
        found = self._select(f"SELECT {', '.join(_COLUMNS)} FROM judgements WHERE clean = ? ORDER BY number", not raw)
        return [_judgement(row) for row in found]

    def replace_with_clean(self, judgements: Iterable[Mapping[str, Any]]) -> None:
        """Puts these, which are clean, in the place of what was written under their ids."""
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
        self._empty_log()

    def add_clean(self, judgements: Iterable[Mapping[str, Any]]) -> int:
        """Adds judgements that were given elsewhere and hold nobody's data; returns how many were not here before."""
        columns = (*_COLUMNS[1:], "clean")
        before = self._select("SELECT count(*) FROM judgements")[0][0]
        with self._transaction():
            for row in judgements:
                values = {**row, "at": row["at"].isoformat(), "clean": 1}
                values |= {name: _json(row[name]) for name in ("systems", "answers")}
                self._insert("judgements", row["id"], columns, [values[name] for name in columns])
        added: int = self._select("SELECT count(*) FROM judgements")[0][0] - before
        return added

    # Edits on their way to the landing place

    def next_batch(self, before: datetime) -> tuple[int, list[AgentEdit]] | None:
        """The number of the next file of edits, and what belongs into it; the same until ``landed`` is called.

        None where no edit waits, or the oldest that waits is not from ``before``.
        """
        with self._transaction():
            under_way = self._select("SELECT min(batch) FROM edits WHERE landed_at IS NULL")[0][0]
            if under_way is None:
                oldest = self._select("SELECT min(at) FROM edits WHERE batch IS NULL")[0][0]
                if oldest is None or datetime.fromisoformat(oldest) > before:
                    return None
                under_way = self._select("SELECT coalesce(max(batch), 0) + 1 FROM edits")[0][0]
                self._db.execute("UPDATE edits SET batch = ? WHERE batch IS NULL", (under_way,))
        return under_way, self._edits("WHERE batch = ?", under_way)

    def mark_landed(self, batch: int, now: datetime) -> None:
        """Notes that the file of this number lies at the landing place."""
        with self._transaction():
            self._db.execute("UPDATE edits SET landed_at = ? WHERE batch = ?", (now.isoformat(), batch))

    def landed_batches(self) -> set[int]:
        """The numbers of all files that were landed."""
        return {batch for (batch,) in self._select("SELECT DISTINCT batch FROM edits WHERE landed_at IS NOT NULL")}

    def expire_edits(self, before: datetime) -> None:
        """Deletes the texts of edits that were landed before; that they were given stays, so that no retry doubles one."""
        with self._transaction():
            self._db.execute(
                "UPDATE edits SET agent = '', ticket = '', sent = '', drafts = '[]', customer = '' WHERE landed_at < ?",
                (before.isoformat(),),
            )
        self._empty_log()

    # Forgetting

    def edits(self) -> list[AgentEdit]:
        """All of them."""
        return self._edits("")

    def forget(self, ids: Iterable[str]) -> None:
        """Deletes judgements and edits for good."""
        gone = [(id,) for id in ids]
        with self._transaction():
            for table in ("judgements", "edits"):
                self._db.executemany(f"DELETE FROM {table} WHERE id = ?", gone)
        self._empty_log()

    def _empty_log(self) -> None:
        """What is deleted stands in the write-ahead log too, until all of that is in the database."""
        self._select("PRAGMA wal_checkpoint(TRUNCATE)")

    def _judge(
        self,
        id: str,
        kind: str,
        rater: str,
        asked: AskedQuestion,
        given: Sequence[ShownAnswer],
        score: int | None,
        winner: str | None,
    ) -> None:
        if not all(answer.system for answer in given):
            raise PipelineError("A judgement needs to know who gave the answer.", "Name the version.")
        earlier = [[speaker, text] for speaker, text in asked.earlier]
        shaped = [dict(answer.settings) for answer in given]
        content = [
            *(kind, _sound(rater), "", _sound(asked.question), _json(earlier) if earlier else None),
            *(_json([answer.system for answer in given]), _json([answer.answer for answer in given]), score, winner),
            *("page", _json(shaped[0] if len(shaped) == 1 else shaped), 0),
        ]
        self._add("judgements", id, (*_COLUMNS[2:], "clean"), content)

    def _add(self, table: str, id: str, columns: Sequence[str], content: list[Any]) -> None:
        if not id.strip():
            raise PipelineError("Feedback needs an id.", "Make one before the first try, and keep it for the next.")
        with self._transaction():
            self._insert(table, id, ("at", *columns), [datetime.now(UTC).isoformat(), *content])

    def _insert(self, table: str, id: str, columns: Sequence[str], values: list[Any]) -> None:
        """``values`` begin with the time, which a second try does not share."""
        content = digest(*values[1:])
        names = ("id", *columns, "content")
        marks = ", ".join("?" * len(names))
        self._db.execute(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT DO NOTHING", (id, *values, content)
        )
        if self._select(f"SELECT content FROM {table} WHERE id = ?", id)[0][0] != content:
            raise PipelineError(
                f"Feedback with the id '{id[:64]}' was given before, with another content.",
                "What was said does not change: give what replaces it an id of its own.",
            )

    def _edits(self, where: str, *values: Any) -> list[AgentEdit]:
        rows = self._select(f"SELECT id, ticket, sent, drafts, customer FROM edits {where} ORDER BY number", *values)
        return [
            AgentEdit(id, ticket, sent, [ShownAnswer(*draft) for draft in json.loads(drafts)], customer)
            for id, ticket, sent, drafts, customer in rows
        ]


def _judgement(row: tuple[Any, ...]) -> dict[str, Any]:
    found = dict(zip(_COLUMNS, row, strict=True))
    lists = {name: json.loads(found[name]) for name in ("systems", "answers")}
    return found | lists | {"at": datetime.fromisoformat(found["at"])}


def _sound(text: str) -> str:
    """``text`` without halves of surrogate pairs, which JSON may spell and no table can hold."""
    return text.encode("utf-8", "replace").decode()


def _json(value: Any) -> str:
    return _sound(json.dumps(value, ensure_ascii=False))
