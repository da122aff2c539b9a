"""Makes training rows from a day's raw turns: pairs them, replaces personal data, predicts intents, flags possible poison.

Flagged rows are not used for training until a person releases them.
"""

import json
import re
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
from cs_pipeline.ingest.interactions import day_facts
from cs_pipeline.ingest.ledger import Ledger, Tombstones
from cs_pipeline.prepare.company.pairs import TicketMessage
from cs_pipeline.prepare.company.raw import RawConversation, RawRow, raw_conversations
from cs_pipeline.prepare.intent_classifier import ANSWERS, INTENTS, load_classifier
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline.text.clean import (
    INSTRUCTION_CHARACTERS,
    RESPONSE_CHARACTERS,
    normalize_line,
    normalize_pair,
    normalize_text,
)
from cs_pipeline.text.personal import PersonalData
from cs_pipeline.text.placeholders import Speaker, canonical, repair
from cs_pipeline.text.poison import Suspect, row_reasons, text_reasons

_KEPT, _ASIDE, _FLAGGED = "clean_interactions", "clean_interactions_set_aside", "clean_interactions_flagged"
"""Folders of the day's tables."""

_MAX_CHARACTERS: dict[Speaker, int] = {"customer": INSTRUCTION_CHARACTERS[1], "agent": RESPONSE_CHARACTERS[1]}

_MAX_LENGTH_FACTOR = 5
"""A text longer than this factor times its limit is not cleaned, because placeholders cannot shorten it enough."""

_BATCH_SIZE = 50_000
"""Number of texts classified at a time."""

_JOINED = re.compile(r"[_:/.+-]+")
"""Characters that join the words of a tag."""


@dataclass(frozen=True)
class CleanedDay:
    """The ``rows`` to train on, the rows ``set_aside``, and the ``flagged`` rows, which a person must release for training.

    In ``counts``, customer_messages = kept + set_aside + flagged + forgotten, where set_aside and flagged are counted
    by reason. automatic_replies counts those that were removed, placeholders how often each replaced personal data.
    labelled is the number of kept rows with a label. labels_dropped counts the labels with personal data, braces or
    possible poison in them, over all rows.
    """

    rows: pa.Table
    set_aside: pa.Table
    flagged: pa.Table
    counts: dict[str, Any]


def clean_day(lake: DataLake, company: Company, day: date, run_id: str | None = None) -> CleanedDay:
    """Writes the tables ``clean_interactions/<day>``, ``…_set_aside/<day>``, ``…_flagged/<day>``, and the counts as JSON.

    Personal data that PersonalData finds is replaced in all of them. Each row has the intent that the intent classifier
    predicts, and its category. If anything in a conversation was forgotten, the whole conversation is left out, because its
    rows quote each other. With a ``run_id``, the ledger records that this run ingested the day's deliveries.

    Raises PipelineError if the day was not ingested or the classifiers are not trained.
    """
    questions, answers = (load_classifier(lake, name) for name in (INTENTS, ANSWERS))
    categories = _categories(lake)
    personal = PersonalData(company.phone_regions, company.own_patterns)
    counts: Counter[str] = Counter()
    placeholders: Counter[str] = Counter()
    drafts: list[_Draft] = []
    with Ledger(lake) as ledger:
        tombstones, superseded = ledger.tombstones(), ledger.superseded()
        for conversation in raw_conversations(lake, company, day, ledger):
            counts["customer_messages"] += len(conversation.rows)
            counts["automatic_replies"] += conversation.automatic
            if _is_forgotten(conversation, tombstones):
                counts["forgotten"] += len(conversation.rows)
                continue
            cleaner = _Cleaner(personal, conversation, company.subjects.tags)
            drafts += map(cleaner.draft, conversation.rows)
            placeholders.update(cleaner.placeholders)
            counts["labels_dropped"] += cleaner.labels_dropped
    aside = [draft for draft in drafts if draft.reason is not None]
    usable = [draft for draft in drafts if draft.reason is None]
    for draft, (intent, confidence) in zip(
        usable, _predict(questions, [draft.instruction for draft in usable]), strict=True
    ):
        draft.category, draft.intent, draft.intent_confidence = categories[intent], intent, confidence
    _flag(usable, _predict(answers, [draft.response for draft in usable]), superseded, company.rows_per_subject)
    kept = [draft for draft in usable if draft.reason is None]
    flagged = [draft for draft in usable if draft.reason is not None]
    cleaned = CleanedDay(
        _table(kept, day, CONVERSATION),
        _table(aside, day, SET_ASIDE),
        _table(flagged, day, SET_ASIDE),
        {
            **{name: counts[name] for name in ("customer_messages", "forgotten", "automatic_replies")},
            "kept": len(kept),
            "set_aside": _by_reason(aside),
            "flagged": _by_reason(flagged),
            "labelled": sum(draft.label is not None for draft in kept),
            "labels_dropped": counts["labels_dropped"],
            "placeholders": dict(placeholders.most_common()),
        },
    )
    lake.write("prepare", f"{_ASIDE}/{day}", cleaned.set_aside, SET_ASIDE)
    lake.write("prepare", f"{_FLAGGED}/{day}", cleaned.flagged, SET_ASIDE)
    lake.write("prepare", f"{_KEPT}/{day}", cleaned.rows, CONVERSATION)
    write_json(lake.path("prepare", _KEPT, f"{day}.json"), cleaned.counts)
    if run_id is not None:
        with Ledger(lake) as ledger:  # Mark only the deliveries that were read: others may have landed since.
            ledger.mark_ingested(day, [file.sha256 for file in day_facts(lake, day)], run_id)
    return cleaned


@dataclass(frozen=True)
class FlaggedRow:
    """A flagged row, as shown to the person who reviews it."""

    row_id: str
    day: date
    reason: str
    question: str
    answer: str
    released: bool


def flagged_rows(lake: DataLake) -> list[FlaggedRow]:
    """All flagged rows, by day of delivery."""
    with Ledger(lake) as ledger:
        released = ledger.released()
    rows: list[FlaggedRow] = []
    for path in sorted(lake.path("prepare", _FLAGGED).glob("????-??-??.parquet")):
        table = lake.read("prepare", f"{_FLAGGED}/{path.stem}")
        columns = (table.column(name).to_pylist() for name in ("row_id", "reason", "instruction", "response"))
        day = date.fromisoformat(path.stem)
        for row_id, reason, question, answer in zip(*columns, strict=True):
            rows.append(FlaggedRow(row_id, day, reason, question, answer, row_id in released))
    return rows


def release_row(lake: DataLake, row_id: str, by: str, why: str) -> None:
    """Allows training on a flagged row from the next run of ``conversations`` on.

    Raises PipelineError if no flagged row has this id.
    """
    if row_id not in {row.row_id for row in flagged_rows(lake)}:
        raise PipelineError(
            f"No flagged row has the id '{row_id}'.", "Take an id from the list: cs-pipeline quarantine list."
        )
    with Ledger(lake) as ledger:
        ledger.release(row_id, by, why)


@dataclass(slots=True)
class _Draft:
    """An unfinished row: the columns of CONVERSATION that are known so far, and the column ``reason`` of SET_ASIDE.

    ``delivered`` is the text before cleaning if that looks like poison, else empty.
    """

    row_id: str
    source_file_sha256: str
    source_row: int
    subject_id: str | None
    conversation_id: str
    delivered: str
    context: str | None
    instruction: str | None
    response: str | None
    reason: str | None
    label: str | None
    category: str | None = None
    intent: str | None = None
    intent_confidence: float | None = None


class _Cleaner:
    """Cleans the rows of a conversation. A message is cleaned once, even if it is also in the context of other rows.

    ``own_labels`` are those that a person listed in company.yaml. They are never dropped.
    """

    def __init__(self, personal: PersonalData, conversation: RawConversation, own_labels: Sequence[str]) -> None:
        self.placeholders: Counter[str] = Counter()
        self.labels_dropped = 0
        self._personal = personal
        self._conversation = conversation
        self._own_labels = own_labels
        self._texts: dict[tuple[int, ...], tuple[str | None, bool]] = {}

    def draft(self, row: RawRow) -> _Draft:
        """The row with its clean text, or with the reason why it cannot be used."""
        pair, context = row.pair, None
        question, question_suspect = self._text(pair.question)
        answer, answer_suspect = self._text(pair.answer) if pair.answer else (None, False)
        reason = pair.reason or _too_long(question, answer)
        delivered = ""
        if reason is None and question is not None and answer is not None:
            normalized = normalize_pair(question, answer)
            question, answer, reason = normalized.question, normalized.answer, normalized.reason
        if reason is None and pair.answer:
            context, context_suspect = self._context(pair.context)
            if question_suspect or answer_suspect or context_suspect:
                messages = [*pair.context, pair.question, pair.answer]
                delivered = "\n\n".join(message.text for message in messages)
        return _Draft(
            row_id=row.row_id,
            source_file_sha256=self._conversation.file,
            source_row=row.source_row,
            subject_id=row.subject,
            conversation_id=self._conversation.id,
            delivered=delivered,
            context=context,
            instruction=question,
            response=answer,
            reason=reason,
            label=self._label(row.label),
        )

    def _label(self, label: str | None) -> str | None:
        """The label on one line; None, and counted, if it has personal data, a brace or possible poison in it.

        Labels become names of subjects, which appear in prompts, and a placeholder cannot be such a name.
        """
        if label is None or label in self._own_labels:
            return label
        label = normalize_line(label)
        # In "jane_roe", the name is not a whole word.
        spellings = (label, _JOINED.sub(" ", label))
        is_personal = any(self._personal.find(text, "agent", self._conversation.known) for text in spellings)
        if is_personal or re.search("[{}]", label) or text_reasons(label):
            self.labels_dropped += 1
            return None
        return label

    def _text(self, message: TicketMessage) -> tuple[str | None, bool]:
        """The message without personal data (None if it is far too long), and whether it looks like poison."""
        if message.turns not in self._texts:
            if len(message.text) > _MAX_LENGTH_FACTOR * _MAX_CHARACTERS[message.role]:
                self._texts[message.turns] = None, False
            else:
                known = self._conversation.known
                text, replaced = self._personal.replace(normalize_text(message.text), known, message.role)
                self.placeholders.update(replaced)
                self._texts[message.turns] = text, bool(text_reasons(message.text))
        return self._texts[message.turns]

    def _context(self, messages: Sequence[TicketMessage]) -> tuple[str | None, bool]:
        """The usable messages directly before a question, as JSON, and whether one of these looks like poison."""
        turns: list[tuple[str, str]] = []
        any_suspect = False
        for message in reversed(messages):
            text, text_suspect = self._text(message)
            if text is not None and message.role == "customer":
                text = normalize_line(text)
            text = repair(text) if text and len(text) <= _MAX_CHARACTERS[message.role] else None
            if not text:
                break
            turns.insert(0, (message.role, canonical(text)[0]))
            any_suspect = any_suspect or text_suspect
        return json.dumps(turns, ensure_ascii=False) if turns else None, any_suspect


def _is_forgotten(conversation: RawConversation, tombstones: Tombstones) -> bool:
    ids = {conversation.id, *(row.row_id for row in conversation.rows)}
    return bool(ids & tombstones.rows) or any(row.subject in tombstones.subjects for row in conversation.rows)


def _too_long(question: str | None, answer: str | None) -> str | None:
    if question is None:
        return f"question longer than {_MAX_CHARACTERS['customer']} characters"
    return f"answer longer than {_MAX_CHARACTERS['agent']} characters" if answer is None else None


def _flag(drafts: list[_Draft], answers: list[tuple[str, float]], superseded: set[str], rows_per_subject: int) -> None:
    """Sets the reason of the drafts that look like poison. ``answers`` are the predictions for the drafts' answers.

    A row that was delivered twice on the day counts once. Rows of superseded deliveries are checked separately from the rows
    that replaced them.
    """
    suspects: dict[tuple[bool, str], Suspect] = {}
    for draft, (intent, confidence) in zip(drafts, answers, strict=True):
        suspects.setdefault(
            (draft.source_file_sha256 in superseded, draft.row_id),
            Suspect(
                delivered=draft.delivered,
                question=draft.instruction or "",
                subject=draft.subject_id,
                intent=draft.intent or "",
                intent_confidence=draft.intent_confidence or 0.0,
                answer_intent=intent,
                answer_confidence=confidence,
            ),
        )
    reason_of: dict[tuple[bool, str], str | None] = {}
    for is_superseded in (False, True):
        keys = [key for key in suspects if key[0] is is_superseded]
        reason_of.update(zip(keys, row_reasons([suspects[key] for key in keys], rows_per_subject), strict=True))
    for draft in drafts:
        draft.reason = reason_of[draft.source_file_sha256 in superseded, draft.row_id]


def _predict(classifier: TextClassifier, texts: list[str | None]) -> list[tuple[str, float]]:
    predictions: list[tuple[str, float]] = []
    for start in range(0, len(texts), _BATCH_SIZE):
        labels, confidence = classifier.predict([text or "" for text in texts[start : start + _BATCH_SIZE]])
        predictions += zip(labels, confidence.tolist(), strict=True)
    return predictions


def _table(drafts: list[_Draft], day: date, schema: pa.Schema) -> pa.Table:
    constants = {
        "source": "company",
        "delivered_on": day,
        "flags": "",
        "cluster_id": None,
        "split": None,
    }
    columns = {
        name: [constants[name]] * len(drafts) if name in constants else [getattr(draft, name) for draft in drafts]
        for name in schema.names
    }
    return pa.table(columns, schema=schema)


def _by_reason(drafts: list[_Draft]) -> dict[str, int]:
    return dict(Counter(draft.reason or "" for draft in drafts).most_common())


def _categories(lake: DataLake) -> dict[str, str]:
    rows = lake.read("prepare", "bitext_splits", ["intent", "category"])
    return dict(zip(rows.column("intent").to_pylist(), rows.column("category").to_pylist(), strict=True))
