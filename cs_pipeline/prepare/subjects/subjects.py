"""The asset ``subjects``: what a company's customers write about, found and named automatically and edited by a person.

The table ``subjects`` has the subject of every usable company row. ``subjects.json`` describes the subjects for people.
``conversations`` takes the intents of company rows from here (``SubjectIntents``). "Subject" means a topic here; the column
``subject_id`` of other tables means a customer.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake, digest, file_sha256, locked, read_json, write_json
from cs_pipeline.core.schema import CONVERSATION, SUBJECT
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.prepare.company.rows import CompanyRows
from cs_pipeline.prepare.subjects.discovery import Assignment, Discovered, Ticket, discover, label_key
from cs_pipeline.prepare.subjects.edits import apply_edits, load_edits, subjects_file
from cs_pipeline.prepare.subjects.intents import suggest_intents
from cs_pipeline.prepare.subjects.naming import SubjectName, name_subjects, subject_id
from cs_pipeline.retrieval.router import NO_SUBJECT

SUBJECTS = "subjects"
"""The name of the table and of the JSON file, in prepare."""

COMPANY_CATEGORY = "COMPANY"
"""The category of company rows whose intent is none of Bitext's."""

_EXAMPLES = 3
_RECENT = timedelta(weeks=4)


@dataclass(frozen=True)
class Subject:
    """A subject as people see it. All days are days of delivery, because the days of the conversations are not known.

    ``weeks`` counts its conversations by the Monday of the week. ``examples`` are typical questions, without personal data.
    ``found_on`` is the latest day of delivery at the time when the subject was found; None if a person made it. ``intent``
    is the Bitext intent to which a person has mapped it, ``suggested`` a Bitext intent that may fit. ``recent_share`` is its
    share of the conversations of the last four weeks, ``earlier_share`` its share of all earlier ones; None if there are
    none.
    """

    id: str
    name: str
    keywords: tuple[str, ...]
    conversations: int
    weeks: dict[str, int]
    examples: tuple[str, ...]
    first_day: str
    found_on: str | None
    intent: str | None
    suggested: str | None
    recent_share: float
    earlier_share: float | None


@dataclass(frozen=True)
class Candidate:
    """A few similar conversations of the last weeks that may become a subject. ``examples`` are their questions."""

    conversations: int
    first_day: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class FoundSubjects:
    """The ``subjects`` and ``candidates``, largest first, and the table's ``rows`` (SUBJECT).

    In ``counts``, usable = rows + delivered_again, and rows = with_subject + without. vague_question counts the rows whose
    question says nothing about a subject. ``new`` are the subjects that were found on the latest day of delivery and that
    no person has edited yet; ``unknown`` are ids in subjects.yaml that no row has. ``reused`` is true if nothing has
    changed since the last run; then nothing was written.
    """

    subjects: list[Subject]
    candidates: list[Candidate]
    rows: pa.Table
    counts: dict[str, int]
    new: list[str]
    unknown: list[str]
    reused: bool


def find_subjects(lake: DataLake, company: Company) -> FoundSubjects:
    """Gives every usable company row its subject, or none, and writes the table and ``subjects.json``.

    A row keeps its subject unless the subject is joined with another one, is given up or is edited by a person. No id is
    ever given to a second subject. Raises PipelineError if subjects.yaml is wrong.
    """
    with locked(_lock(lake)):
        usable = CompanyRows.of(lake)
        version = _version(lake, company, usable)
        before = _State.of(lake)
        if before.version == version and _is_described(lake):
            return _read_found(lake, reused=True)
        tickets, repeated = _tickets(lake, usable)
        intents = set(_categories(lake)) if tickets else set()
        edits = load_edits(lake, intents, before.found_on)
        found = discover(tickets, before.discovered, edits.ids)
        taken = {NO_SUBJECT, *intents, *before.found_on, *before.parts, *edits.parts}
        found, found_on = _with_ids(found, tickets, before.found_on, taken, company)
        edited = apply_edits(tickets, found, edits)
        given = _label_names(tickets, found) | {part: _as_name(part) for part in edits.parts} | edited.names
        state = _State(version, found, found_on, sorted({*before.parts, *edits.parts}), given, edited.intents)
        table = _table(tickets, found, edited.assignments).replace_schema_metadata(state.metadata())
        lake.write("prepare", SUBJECTS, table, SUBJECT)
        groups = _by_subject(tickets, edited.assignments)
        latest = str(tickets[-1].day) if tickets else ""
        new = {subject for subject in groups if found_on.get(subject) == latest} - edited.reviewed
        suggested = suggest_intents(
            lake, {subject: groups[subject] for subject in groups if subject not in edited.intents}
        )
        others = {"repeated": repeated, "new": sorted(new), "unknown": edited.unknown}
        _describe(lake, company, state, tickets, edited.assignments, suggested, others)
        return _read_found(lake, reused=False)


def subject_of_rows(lake: DataLake) -> dict[str, str]:
    """The subject of each company row that has one, by row id."""
    rows = lake.read("prepare", SUBJECTS, ["row_id", "subject"]).to_pydict()
    return {row: subject for row, subject in zip(rows["row_id"], rows["subject"], strict=True) if subject is not None}


def subject_facts(lake: DataLake) -> dict[str, Any]:
    """The counts of the last ``find_subjects``, and its new and unknown subjects."""
    description = read_json(_file(lake))
    return {name: description[name] for name in ("counts", "new", "unknown")}


def forget_examples(lake: DataLake, company: Company) -> None:
    """Writes ``subjects.json`` again from the rows that may still be used. Call it after adding tombstones."""
    with locked(_lock(lake)):
        if not (_file(lake).exists() and lake.table("prepare", SUBJECTS).exists()):
            return
        state, description = _State.of(lake), read_json(_file(lake))
        assignments = _assignments(lake.read("prepare", SUBJECTS), "subject")
        tickets = [ticket for ticket in _tickets(lake, CompanyRows.of(lake))[0] if ticket.row_id in assignments]
        suggested = {subject["id"]: subject["suggested"] for subject in description["subjects"]}
        others = {"repeated": description["counts"]["delivered_again"]}
        others |= {name: description[name] for name in ("new", "unknown")}
        kept = {ticket.row_id: assignments[ticket.row_id] for ticket in tickets}
        _describe(lake, company, state, tickets, kept, suggested, others)


class SubjectIntents:
    """The intents of company rows: the subject, or the Bitext intent to which a person has mapped it.

    A row without a subject has the intent NO_SUBJECT. ``version`` is a hash of all intents.
    """

    def __init__(self, intents: Mapping[str, tuple[str, str, float]]) -> None:
        self._intents = intents
        self.version = digest(sorted(intents.items()))

    @classmethod
    def of(cls, lake: DataLake) -> "SubjectIntents":
        """The intents of ``lake``. Raises PipelineError if ``subjects`` has not been materialised."""
        state, categories = _State.of(lake), _categories(lake)
        rows = lake.read("prepare", SUBJECTS, ["row_id", "subject", "similarity"]).to_pydict()
        intents = {}
        for row_id, subject, similarity in zip(rows["row_id"], rows["subject"], rows["similarity"], strict=True):
            intent = state.mapped.get(subject) or subject
            if intent is not None:
                intents[row_id] = (intent, categories.get(intent, COMPANY_CATEGORY), round(similarity, 4))
        return cls(intents)

    def apply(self, rows: pa.Table) -> pa.Table:
        """Company ``rows`` (CONVERSATION) with intent, category and, as confidence, the similarity to the subject."""
        nothing = (NO_SUBJECT, COMPANY_CATEGORY, 0.0)
        found = [self._intents.get(row_id, nothing) for row_id in rows.column("row_id").to_pylist()]
        for place, name in enumerate(("intent", "category", "intent_confidence")):
            field = CONVERSATION.field(name)
            values = pa.array([entry[place] for entry in found], field.type)
            rows = rows.set_column(CONVERSATION.get_field_index(name), field, values)
        return rows


@dataclass(frozen=True)
class _State:
    """What the next run needs. It is stored in the table and its metadata, so it is replaced together with the table.

    ``found_on`` has the day of every id that was ever discovered, ``parts`` the ids that a person has made. ``given`` has
    the names that are not made from the words of tickets, ``mapped`` the intents to which a person has mapped subjects.
    """

    version: str
    discovered: Discovered
    found_on: dict[str, str]
    parts: list[str]
    given: dict[str, str]
    mapped: dict[str, str | None]

    @classmethod
    def of(cls, lake: DataLake) -> "_State":
        """The state that the last run left; an empty one if there was none."""
        if not lake.table("prepare", SUBJECTS).exists():
            return cls("", Discovered(), {}, [], {}, {})
        table = lake.read("prepare", SUBJECTS)
        stored = json.loads(table.schema.metadata[b"subjects"])
        discovered = Discovered(_assignments(table, "discovered"), stored.pop("aliases"), stored.pop("labels"))
        return cls(discovered=discovered, **stored)

    def metadata(self) -> dict[str, str]:
        """The state without the assignments, for the table's metadata."""
        stored = {
            "version": self.version,
            "aliases": self.discovered.aliases,
            "labels": self.discovered.labels,
            "found_on": self.found_on,
            "parts": self.parts,
            "given": self.given,
            "mapped": self.mapped,
        }
        return {"subjects": json.dumps(stored, sort_keys=True)}


def _with_ids(
    found: Discovered, tickets: Sequence[Ticket], found_on: dict[str, str], taken: set[str], company: Company
) -> tuple[Discovered, dict[str, str]]:
    """``found`` with an id for each new subject, and ``found_on`` extended by these ids."""
    groups = _by_subject(tickets, found.assignments)
    labels = _label_names(tickets, found)
    names = name_subjects(groups, {}, company.values.values())
    ids: dict[str, str] = {}
    for subject in sorted(
        groups, key=lambda subject: (-len(groups[subject]), min(row.row_id for row in groups[subject]))
    ):
        if subject not in found_on:
            name = SubjectName(labels[subject], ()) if subject in labels else names[subject]
            ids[subject] = subject_id(name, taken | set(ids.values()))
    used = {*found_on, *ids}
    found = Discovered(
        found.assignments, found.aliases, {label: subject for label, subject in found.labels.items() if subject in used}
    )
    latest = str(tickets[-1].day) if tickets else ""
    return found.renamed(ids), found_on | dict.fromkeys(ids.values(), latest)


def _describe(
    lake: DataLake,
    company: Company,
    state: _State,
    tickets: Sequence[Ticket],
    assignments: Mapping[str, Assignment],
    suggested: Mapping[str, str | None],
    others: Mapping[str, Any],
) -> None:
    """Writes ``subjects.json``. ``others`` has what ``tickets`` do not show: repeated rows, new and unknown ids."""
    groups = _by_subject(tickets, assignments)
    names = name_subjects(groups, state.given, company.values.values())
    last = tickets[-1].day - _RECENT if tickets else date.min
    conversations = {ticket.conversation: ticket.day for ticket in reversed(tickets)}
    recent_all = sum(day > last for day in conversations.values())
    earlier_all = len(conversations) - recent_all
    subjects = []
    for subject in sorted(groups, key=lambda subject: (-len(groups[subject]), subject)):
        own = groups[subject]
        recent = sum(conversations[ticket.conversation] > last for ticket in own)
        typical = sorted(own, key=lambda ticket: (-assignments[ticket.row_id].similarity, ticket.row_id))
        weeks = Counter(str(ticket.day - timedelta(days=ticket.day.weekday())) for ticket in own)
        subjects.append(
            Subject(
                id=subject,
                name=names[subject].name,
                keywords=names[subject].keywords,
                conversations=len(own),
                weeks=dict(sorted(weeks.items())),
                examples=tuple(dict.fromkeys(ticket.question for ticket in typical))[:_EXAMPLES],
                first_day=str(own[0].day),
                found_on=state.found_on.get(subject),
                intent=state.mapped.get(subject),
                suggested=None if subject in state.mapped else suggested.get(subject),
                recent_share=round(recent / recent_all, 4) if recent_all else 0.0,
                earlier_share=round((len(own) - recent) / earlier_all, 4) if earlier_all else None,
            )
        )
    rows = list(assignments.values())
    with_subject = sum(row.subject is not None for row in rows)
    counts = {
        "usable": len(rows) + others["repeated"],
        "delivered_again": others["repeated"],
        "rows": len(rows),
        "with_subject": with_subject,
        "without": len(rows) - with_subject,
        "vague_question": sum(row.vague == "question" for row in rows),
    }
    description = {
        "table": file_sha256(lake.table("prepare", SUBJECTS)),
        "counts": counts,
        "new": [subject for subject in others["new"] if subject in groups],
        "unknown": others["unknown"],
        "subjects": [asdict(subject) for subject in subjects],
        "candidates": [asdict(candidate) for candidate in _candidates(tickets, assignments, last)],
    }
    write_json(_file(lake), description)


def _candidates(tickets: Sequence[Ticket], assignments: Mapping[str, Assignment], last: date) -> list[Candidate]:
    """The candidates of at least two customers, with a conversation delivered after ``last``, largest first."""
    groups: dict[int, list[Ticket]] = {}
    for ticket in tickets:
        number = assignments[ticket.row_id].candidate
        if number is not None:
            groups.setdefault(number, []).append(ticket)
    found = [
        Candidate(len(own), str(own[0].day), tuple(dict.fromkeys(ticket.question for ticket in own))[:_EXAMPLES])
        for own in groups.values()
        if own[-1].day > last and len({ticket.customer or ticket.conversation for ticket in own}) > 1
    ]
    return sorted(found, key=lambda candidate: (-candidate.conversations, candidate.first_day, candidate.examples))


def _tickets(lake: DataLake, usable: CompanyRows) -> tuple[list[Ticket], int]:
    """The usable rows, ordered by day, and the number of rows left out because an earlier row has the same id."""
    found: dict[str, Ticket] = {}
    count = 0
    columns = ["row_id", "conversation_id", "subject_id", "delivered_on", "instruction", "response", "label"]
    for day in usable.days:
        rows = usable.read(lake, day)[0].select(columns)
        count += rows.num_rows
        for values in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            row_id, conversation, *others = values
            found.setdefault(row_id, Ticket(row_id, conversation or row_id, *others))
    return list(found.values()), count - len(found)


def _table(tickets: Sequence[Ticket], found: Discovered, edited: Mapping[str, Assignment]) -> pa.Table:
    rows = [
        {
            "row_id": ticket.row_id,
            "conversation_id": ticket.conversation,
            "delivered_on": ticket.day,
            "subject": edited[ticket.row_id].subject,
            "discovered": found.assignments[ticket.row_id].subject,
            "similarity": edited[ticket.row_id].similarity,
            "vague": edited[ticket.row_id].vague or None,
            "candidate": edited[ticket.row_id].candidate,
        }
        for ticket in sorted(tickets, key=lambda ticket: (ticket.day, ticket.row_id))
    ]
    return pa.Table.from_pylist(rows, schema=SUBJECT)


def _assignments(table: pa.Table, column: str) -> dict[str, Assignment]:
    """The assignments in ``table``, by row id, with the subjects of ``column``. Earlier versions wrote no candidates."""
    return {
        row["row_id"]: Assignment(row[column], round(row["similarity"], 4), row["vague"] or "", row.get("candidate"))
        for row in table.to_pylist()
    }


def _by_subject(tickets: Sequence[Ticket], assignments: Mapping[str, Assignment]) -> dict[str, list[Ticket]]:
    """The tickets of each subject: of every conversation, only the first about that subject."""
    groups: dict[str, dict[str, Ticket]] = {}
    for ticket in tickets:
        subject = assignments[ticket.row_id].subject
        if subject is not None:
            groups.setdefault(subject, {}).setdefault(ticket.conversation, ticket)
    return {subject: list(own.values()) for subject, own in groups.items()}


def _label_names(tickets: Sequence[Ticket], found: Discovered) -> dict[str, str]:
    """For each subject that comes from a label, the most frequent spelling of the label."""
    spellings: dict[str, Counter[str]] = {}
    for ticket in tickets:
        subject = found.labels.get(label_key(ticket.label))
        if subject is not None and ticket.label:
            spellings.setdefault(subject, Counter())[ticket.label] += 1
    return {subject: max(sorted(counts), key=counts.__getitem__) for subject, counts in spellings.items()}


def _as_name(subject: str) -> str:
    return subject.replace("_", " ").capitalize()


def _version(lake: DataLake, company: Company, usable: CompanyRows) -> str:
    """A hash of everything that the result depends on."""
    files = [lake.table("prepare", "bitext_splits"), subjects_file(lake)]
    hashes = [file_sha256(path) if path.exists() else "" for path in files]
    return digest(CODE_VERSIONS[SUBJECTS], usable.versions, hashes, sorted(company.values.values()))


def _is_described(lake: DataLake) -> bool:
    """Whether ``subjects.json`` was written for the present table."""
    sha256 = file_sha256(lake.table("prepare", SUBJECTS))
    return _file(lake).exists() and bool(read_json(_file(lake))["table"] == sha256)


def _read_found(lake: DataLake, reused: bool) -> FoundSubjects:
    description = read_json(_file(lake))
    subjects = [
        Subject(**entry | {name: tuple(entry[name]) for name in ("keywords", "examples")})
        for entry in description["subjects"]
    ]
    candidates = [Candidate(**entry | {"examples": tuple(entry["examples"])}) for entry in description["candidates"]]
    rows = lake.read("prepare", SUBJECTS)
    counts, new, unknown = (description[name] for name in ("counts", "new", "unknown"))
    return FoundSubjects(subjects, candidates, rows, counts, new, unknown, reused)


def _categories(lake: DataLake) -> dict[str, str]:
    """The category of each Bitext intent."""
    rows = lake.read("prepare", "bitext_splits", ["intent", "category"])
    return dict(zip(rows.column("intent").to_pylist(), rows.column("category").to_pylist(), strict=True))


def _file(lake: DataLake) -> Path:
    return lake.path("prepare", f"{SUBJECTS}.json")


def _lock(lake: DataLake) -> Path:
    return lake.path("prepare", ".subjects.lock")
