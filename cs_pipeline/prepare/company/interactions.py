"""A day's raw turns become training rows: paired, personal data replaced, intent predicted, poison flagged."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, write_json
from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.ingest.ledger import Ledger, Tombstones
from cs_pipeline.prepare.company.pairs import TicketMessage
from cs_pipeline.prepare.company.raw import RawConversation, RawRow, raw_conversations
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline.text.clean import INSTRUCTION_CHARACTERS, RESPONSE_CHARACTERS, regular_line, regular_pair, regular_text
from cs_pipeline.text.personal import PersonalData
from cs_pipeline.text.placeholders import Speaker, canonical, repair
from cs_pipeline.text.poison import Suspect, reasons, text_reasons

KEPT, ASIDE, FLAGGED = "clean_interactions", "clean_interactions_set_aside", "clean_interactions_flagged"
"""Folders of the day's tables."""

INTENTS, ANSWERS = "intent_classifier", "answer_classifier"
"""Folders in prepare: of the classifier of questions, and of that of answers."""

LONGEST: dict[Speaker, int] = {"customer": INSTRUCTION_CHARACTERS[1], "agent": RESPONSE_CHARACTERS[1]}

_FAR_TOO_LONG = 5
"""Times the limit from which on a text is not looked at: no placeholder shortens it that much."""

_ROWS = 50_000
"""Rows in hand as Python objects at a time, where the whole day need not be."""


@dataclass(frozen=True)
class CleanedDay:
    """``rows`` that may train, rows ``set_aside``, and rows ``flagged``, which may once a person has released them.

    ``counts``: customer_messages = kept + set_aside + flagged (both by reason) + forgotten; automatic_replies that were
    cut; placeholders that took the place of personal data, by name.
    """

    rows: pa.Table
    set_aside: pa.Table
    flagged: pa.Table
    counts: dict[str, Any]


def clean_day(lake: DataLake, company: Company, day: date) -> CleanedDay:
    """Writes the tables ``clean_interactions/<day>``, ``…_set_aside/<day>``, ``…_flagged/<day>``, and the counts as JSON.

    None of them holds personal data that PersonalData finds. A row has the intent that the intent classifier predicts, and
    that intent's category. Of a conversation with something forgotten nothing is in them: its rows quote each other.

    Raises PipelineError when the day was not ingested or there are no classifiers yet.
    """
    questions, answers = (_classifier(lake, name) for name in (INTENTS, ANSWERS))
    categories = _categories(lake)
    personal = PersonalData(company.phone_regions, company.own_patterns)
    tally: Counter[str] = Counter()
    placeholders: Counter[str] = Counter()
    drafts: list[_Draft] = []
    with Ledger(lake) as ledger:
        tombstones, superseded = ledger.tombstones(), ledger.superseded()
        for conversation in raw_conversations(lake, company, day, ledger):
            tally["customer_messages"] += len(conversation.rows)
            tally["automatic_replies"] += conversation.automatic
            if _is_forgotten(conversation, tombstones):
                tally["forgotten"] += len(conversation.rows)
                continue
            cleaner = _Cleaner(personal, conversation)
            drafts += map(cleaner.draft, conversation.rows)
            placeholders.update(cleaner.placeholders)
    aside = [draft for draft in drafts if draft.reason is not None]
    usable = [draft for draft in drafts if draft.reason is None]
    for draft, (intent, confidence) in zip(usable, _predicted(questions, [d.question for d in usable]), strict=True):
        draft.category, draft.intent, draft.confidence = categories[intent], intent, confidence
    _flag(usable, _predicted(answers, [d.answer for d in usable]), superseded, company.rows_per_subject)
    kept = [draft for draft in usable if draft.reason is None]
    suspect = [draft for draft in usable if draft.reason is not None]
    cleaned = CleanedDay(
        _table(kept, day, CONVERSATION),
        _table(aside, day, SET_ASIDE),
        _table(suspect, day, SET_ASIDE),
        {
            **{name: tally[name] for name in ("customer_messages", "forgotten", "automatic_replies")},
            "kept": len(kept),
            "set_aside": _by_reason(aside),
            "flagged": _by_reason(suspect),
            "placeholders": dict(placeholders.most_common()),
        },
    )
    lake.write("prepare", f"{ASIDE}/{day}", cleaned.set_aside, SET_ASIDE)
    lake.write("prepare", f"{FLAGGED}/{day}", cleaned.flagged, SET_ASIDE)
    lake.write("prepare", f"{KEPT}/{day}", cleaned.rows, CONVERSATION)
    write_json(lake.path("prepare", KEPT, f"{day}.json"), cleaned.counts)
    return cleaned


@dataclass(slots=True)
class _Draft:
    """A row on its way. ``delivered`` is its text before cleaning, where something in it may be poison, else empty."""

    row_id: str
    file: str
    place: int
    subject: str | None
    conversation: str
    delivered: str
    context: str | None
    question: str | None
    answer: str | None
    reason: str | None
    category: str | None = None
    intent: str | None = None
    confidence: float | None = None


class _Cleaner:
    """The messages of a conversation without personal data. Each is looked at once, though it may be context as well."""

    def __init__(self, personal: PersonalData, conversation: RawConversation) -> None:
        self.placeholders: Counter[str] = Counter()
        self._personal = personal
        self._conversation = conversation
        self._texts: dict[tuple[int, ...], tuple[str | None, bool]] = {}

    def draft(self, row: RawRow) -> _Draft:
        """The row with its text, and the reason why it cannot be used if it cannot."""
        pair, context = row.pair, None
        question, in_question = self._text(pair.question)
        answer, in_answer = self._text(pair.answer) if pair.answer else (None, False)
        reason = pair.reason or _too_long(question, answer)
        delivered = ""
        if reason is None and question is not None and answer is not None:
            regular = regular_pair(question, answer)
            question, answer, reason = regular.question, regular.answer, regular.reason
        if reason is None and pair.answer:
            context, in_context = self._context(pair.context)
            if in_question or in_answer or in_context:
                messages = [*pair.context, pair.question, pair.answer]
                delivered = "\n\n".join(message.text for message in messages)
        return _Draft(
            row_id=row.row_id,
            file=self._conversation.file,
            place=row.place,
            subject=row.subject,
            conversation=self._conversation.id,
            delivered=delivered,
            context=context,
            question=question,
            answer=answer,
            reason=reason,
        )

    def _text(self, message: TicketMessage) -> tuple[str | None, bool]:
        """The message without personal data, None where it is far too long, and whether something in it may be poison."""
        if message.places not in self._texts:
            if len(message.text) > _FAR_TOO_LONG * LONGEST[message.role]:
                self._texts[message.places] = None, False
            else:
                known = self._conversation.known
                text, met = self._personal.replace(regular_text(message.text), known, message.role)
                self.placeholders.update(met)
                self._texts[message.places] = text, bool(text_reasons(message.text))
        return self._texts[message.places]

    def _context(self, messages: Sequence[TicketMessage]) -> tuple[str | None, bool]:
        """The messages right before a question that can be used, as JSON, and whether one of them may be poison."""
        turns: list[tuple[str, str]] = []
        suspicious = False
        for message in reversed(messages):
            text, in_text = self._text(message)
            if text is not None and message.role == "customer":
                text = regular_line(text)
            text = repair(text) if text and len(text) <= LONGEST[message.role] else None
            if not text:
                break
            turns.insert(0, (message.role, canonical(text)[0]))
            suspicious = suspicious or in_text
        return json.dumps(turns, ensure_ascii=False) if turns else None, suspicious


def _is_forgotten(conversation: RawConversation, tombstones: Tombstones) -> bool:
    ids = {conversation.id, *(row.row_id for row in conversation.rows)}
    return bool(ids & tombstones.rows) or any(row.subject in tombstones.subjects for row in conversation.rows)


def _too_long(question: str | None, answer: str | None) -> str | None:
    if question is None:
        return f"question longer than {LONGEST['customer']} characters"
    return f"answer longer than {LONGEST['agent']} characters" if answer is None else None


def _flag(drafts: list[_Draft], answers: list[tuple[str, float]], superseded: set[str], rows_per_subject: int) -> None:
    """Gives the drafts that look like poison their reason.

    A row that was delivered twice on the day counts once, and rows of a superseded delivery do not count beside the
    rows of the one that took its place.
    """
    judged: dict[tuple[bool, str], Suspect] = {}
    for draft, (intent, confidence) in zip(drafts, answers, strict=True):
        judged.setdefault(
            (draft.file in superseded, draft.row_id),
            Suspect(
                delivered=draft.delivered,
                question=draft.question or "",
                subject=draft.subject,
                intent=draft.intent or "",
                intent_confidence=draft.confidence or 0.0,
                answer_intent=intent,
                answer_confidence=confidence,
            ),
        )
    reason_of: dict[tuple[bool, str], str | None] = {}
    for old in (False, True):
        keys = [key for key in judged if key[0] is old]
        reason_of.update(zip(keys, reasons([judged[key] for key in keys], rows_per_subject), strict=True))
    for draft in drafts:
        draft.reason = reason_of[draft.file in superseded, draft.row_id]


def _predicted(classifier: TextClassifier, texts: list[str | None]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for start in range(0, len(texts), _ROWS):
        labels, confidence = classifier.predict([text or "" for text in texts[start : start + _ROWS]])
        found += zip(labels, confidence.tolist(), strict=True)
    return found


def _table(drafts: list[_Draft], day: date, schema: pa.Schema) -> pa.Table:
    columns = {
        "row_id": [draft.row_id for draft in drafts],
        "source": ["company"] * len(drafts),
        "source_file_sha256": [draft.file for draft in drafts],
        "source_row": [draft.place for draft in drafts],
        "delivered_on": [day] * len(drafts),
        "subject_id": [draft.subject for draft in drafts],
        "conversation_id": [draft.conversation for draft in drafts],
        "context": [draft.context for draft in drafts],
        "instruction": [draft.question for draft in drafts],
        "response": [draft.answer for draft in drafts],
        "category": [draft.category for draft in drafts],
        "intent": [draft.intent for draft in drafts],
        "intent_confidence": [draft.confidence for draft in drafts],
        "flags": [""] * len(drafts),
        "cluster_id": [None] * len(drafts),
        "split": [None] * len(drafts),
        "reason": [draft.reason for draft in drafts],
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _by_reason(drafts: list[_Draft]) -> dict[str, int]:
    return dict(Counter(draft.reason or "" for draft in drafts).most_common())


def _classifier(lake: DataLake, name: str) -> TextClassifier:
    folder = lake.path("prepare", name)
    if not folder.exists():
        raise PipelineError(f"{folder} is not there.", "Materialise 'intent_classifier' first, or run make demo.")
    return TextClassifier.load(folder)


def _categories(lake: DataLake) -> dict[str, str]:
    rows = lake.read("prepare", "bitext_splits", ["intent", "category"])
    return dict(zip(rows.column("intent").to_pylist(), rows.column("category").to_pylist(), strict=True))


@dataclass(frozen=True)
class Flagged:
    """A flagged row as a person looks at it."""

    row_id: str
    day: date
    reason: str
    question: str
    answer: str
    released: bool


def flagged(lake: DataLake) -> list[Flagged]:
    """All rows that look like poison, by day of delivery."""
    with Ledger(lake) as ledger:
        released = ledger.released()
    rows: list[Flagged] = []
    for path in sorted(lake.path("prepare", FLAGGED).glob("????-??-??.parquet")):
        table = lake.read("prepare", f"{FLAGGED}/{path.stem}")
        columns = (table.column(name).to_pylist() for name in ("row_id", "reason", "instruction", "response"))
        day = date.fromisoformat(path.stem)
        for row_id, reason, question, answer in zip(*columns, strict=True):
            rows.append(Flagged(row_id, day, reason, question, answer, row_id in released))
    return rows


def release_rows(lake: DataLake, row_id: str, by: str, why: str) -> None:
    """Lets a flagged row into training from the next ``conversations`` on. Raises PipelineError when it is not flagged."""
    if row_id not in {row.row_id for row in flagged(lake)}:
        raise PipelineError(
            f"No flagged row has the id '{row_id}'.", "Take an id from the list: cs-pipeline quarantine list."
        )
    with Ledger(lake) as ledger:
        ledger.release(row_id, by, why)
