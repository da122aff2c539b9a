"""A person's decisions about subjects, in ``data_lake/subjects.yaml``. They win over discovery and stay when it runs again.

    rename: {late_fee_reminder: Late fee}                  # the displayed name; the id stays
    merge: {router_red_light: [light_lamp_red]}            # light_lamp_red becomes part of router_red_light
    split: {fibre: {fibre_price: [price, cost]}}           # tickets of fibre with one of these words become fibre_price
    map: {cancel_contract: cancel_order, late_fee: null}   # one of Bitext's intents, or none

Discovery keeps its own result, to which the edits are applied. So an edit can be taken back, and new tickets follow it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.yaml_file import Section, read_yaml
from cs_pipeline.prepare.subjects.discovery import Assignment, Discovered, Ticket

_Words = Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1)]
_NewId = Annotated[str, StringConstraints(pattern=r"^[^\W_A-Z]+(_[^\W_A-Z]+)*$")]


class SubjectEdits(Section):
    """The content of the file. Every key is the id of a subject."""

    rename: dict[str, Annotated[str, StringConstraints(pattern=r"^[^{}\n]+$")]] = Field(
        {}, description="the name that people see"
    )
    merge: dict[str, list[str]] = Field({}, description="subjects that become part of this one")
    split: dict[str, dict[_NewId, _Words]] = Field({}, description="new ids with the words whose tickets they get")
    map: dict[str, str | None] = Field({}, description="the Bitext intent that this subject is, or null for none")

    @model_validator(mode="after")
    def _no_contradictions(self) -> "SubjectEdits":
        gone = [subject for sources in self.merge.values() for subject in sources]
        if twice := sorted({subject for subject in gone if gone.count(subject) > 1 or subject in self.merge}):
            raise ValueError(
                f"'merge' lists {', '.join(twice)} twice, or both as a part and as a subject that others become part of"
            )
        if both := sorted(set(gone) & {*self.rename, *self.split, *self.map}):
            raise ValueError(f"'merge' makes {', '.join(both)} part of another subject; rename, split or map that one")
        names = [name.casefold() for name in self.rename.values()]
        if same := sorted({name for name in self.rename.values() if names.count(name.casefold()) > 1}):
            raise ValueError(f"'rename' gives two subjects the name {', '.join(same)}; merge them instead")
        parts = self.parts
        if again := sorted(
            {part for part in parts if parts.count(part) > 1 or part in {*gone, *self.merge, *self.split}}
        ):
            raise ValueError(f"'split' makes {', '.join(again)} twice, or another edit merges or splits it")
        return self

    @property
    def parts(self) -> list[str]:
        """The new ids that ``split`` makes."""
        return [part for parts in self.split.values() for part in parts]

    @property
    def ids(self) -> set[str]:
        """All ids in the file, without the new ones."""
        merged = (subject for sources in self.merge.values() for subject in sources)
        return {*self.rename, *self.map, *self.split, *self.merge, *merged} - set(self.parts)


def subjects_file(lake: DataLake) -> Path:
    """The path of the file."""
    return lake.root / "subjects.yaml"


def load_edits(lake: DataLake, intents: Collection[str], reserved: Collection[str]) -> SubjectEdits:
    """The content of the file, empty if there is none.

    ``intents`` are Bitext's; ``reserved`` are ids that ``split`` must not make. Raises PipelineError naming the file and the
    key that is wrong.
    """
    path = subjects_file(lake)
    if not path.exists():
        return SubjectEdits()
    edits = SubjectEdits.validated(read_yaml(path), path, "subjects.yaml", "cs_pipeline/prepare/subjects/edits.py")
    for subject, intent in edits.map.items():
        if intent is not None and intent not in intents:
            near = get_close_matches(intent, intents, 1) or sorted(intents)[:1]
            raise PipelineError(
                f"{path}: 'map.{subject}': '{intent}' is not an intent of Bitext.",
                f"Write one, such as {''.join(near)}, or null.",
            )
    if taken := sorted({*reserved, *intents}.intersection(edits.parts)):
        raise PipelineError(
            f"{path}: 'split' makes {', '.join(taken)}, which is an id already.", "Give the new subject another id."
        )
    return edits


@dataclass(frozen=True)
class EditedSubjects:
    """The assignments after the edits, by row id. ``unknown`` are ids in the file that no ticket has.

    ``names`` and ``intents`` have the subjects that a person has renamed and mapped, ``reviewed`` all that the file
    mentions.
    """

    assignments: dict[str, Assignment]
    names: dict[str, str]
    intents: dict[str, str | None]
    reviewed: set[str]
    unknown: list[str]


def apply_edits(tickets: Sequence[Ticket], found: Discovered, edits: SubjectEdits) -> EditedSubjects:
    """Applies ``edits`` to ``found``. If discovery has joined an id with another, its edits apply to the other."""
    current = found.resolve
    target = {current(source): current(kept) for kept, sources in edits.merge.items() for source in sources}
    split = {current(subject): _patterns(parts) for subject, parts in edits.split.items()}
    assignments: dict[str, Assignment] = {}
    for ticket in tickets:
        assignment = found.assignments[ticket.row_id]
        if assignment.subject is not None:
            subject = target.get(assignment.subject, assignment.subject)
            assignment = replace(assignment, subject=_part(ticket, subject, split))
        assignments[ticket.row_id] = assignment
    used = {assignment.subject for assignment in assignments.values()} | set(found.rows_of)
    given = {current(subject) for subject in (*edits.ids, *edits.parts)}
    return EditedSubjects(
        assignments,
        {current(subject): name for subject, name in edits.rename.items()},
        {current(subject): intent for subject, intent in edits.map.items()},
        given,
        sorted(subject for subject in (*edits.ids, *edits.parts) if current(subject) not in used),
    )


def _patterns(parts: Mapping[str, Sequence[str]]) -> dict[str, re.Pattern[str]]:
    return {
        part: re.compile(r"\b(?:" + "|".join(re.escape(word) for word in words) + ")", re.IGNORECASE)
        for part, words in parts.items()
    }


def _part(ticket: Ticket, subject: str, split: Mapping[str, Mapping[str, re.Pattern[str]]]) -> str:
    """The first part of ``subject`` that has one of its words in the question, else in the answer.

    If no part has, it is ``subject`` itself.
    """
    for text in (ticket.question, ticket.answer):
        for part, pattern in split.get(subject, {}).items():
            if pattern.search(text):
                return part
    return subject
