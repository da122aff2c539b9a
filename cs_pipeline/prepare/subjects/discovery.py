"""Finds the subjects that a company's customers write about, from questions and answers, without labels.

First, average linkage makes tight groups of tickets that are similar in both question and answer. A typical tight group has
one wording of a question, answered with one template. Then the tight groups and the subjects found earlier are joined, until
no two of them are similar enough. A ticket usually keeps the subject that it has. Tight groups also reveal vague texts. A
vague answer is given to questions of all kinds ("we will look into it"). A vague question gets answers of all kinds ("see my
last message"). A group with a vague text is not a subject.

Tickets that are then similar to no subject are about something rare. They are joined with one another at a lower
similarity, so that a new subject is found soon. Similar tickets that are too few for a subject become a candidate,
which is shown to people but not used by any model.

The thresholds were chosen on three sets: a generated plant shop, the sample's rows and Bitext's. The result hardly
depends on them: the mean adjusted Rand index is 0.82 to 0.83 for all values of TIGHT from 0.25 to 0.32, of JOIN from
0.3 to 0.36 and of QUESTION_WEIGHT from 0.4 to 0.5. JOIN_REST was chosen on a generated fitness studio. From 0.18 to
0.25 it finds about as many new subjects, but below 0.25 it joins unrelated tickets when there are few. The figures in
docs/company-data.md are for another company, generated with seeds on which nothing was chosen. Other seeds of that
company had been looked at before the constants were final.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from cs_pipeline.prepare.subjects.groups import (
    JOIN,
    GroupSimilarity,
    average_linkage,
    join_similar,
    mean_cosine,
    membership,
    mixed,
    text_vectors,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SMALL_COMPANY = 100
"""With fewer conversations than this in all, two can make a subject; otherwise it takes three."""

TIGHT = 0.3
"""The lowest mean cosine (half question, half answer) within a tight group."""

VAGUE, VAGUE_ROWS = 0.3, 5
"""A tight group of at least VAGUE_ROWS tickets has vague answers if its questions vary: above chance, their mean cosine is
less than VAGUE times the usual one. It has vague questions if its answers vary as much and do not mostly belong to one
subject."""

OTHER_QUESTION = 0.7
"""The lowest similarity at which a later message of a conversation gets its own subject, not that of the first message."""

JOIN_REST = 0.25
"""The lowest similarity at which two groups that are similar to no subject are joined."""

_WINDOW = 1500
"""How many new tickets are assigned at a time. With the earlier ones that are tried again, at most twice as many."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A question with its answer. ``customer`` is None if unknown. ``label`` is the export's own subject or None."""

    row_id: str
    conversation: str
    customer: str | None
    day: date
    question: str
    answer: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """A ticket's subject, or None, and how typical of that subject the ticket is, from 0 to 1.

    ``vague`` is "question" or "answer" if that text says nothing about the subject, else empty. Tickets with the same
    ``candidate`` are similar, but too few for a subject. The number is valid until more tickets arrive.
    """

    subject: str | None
    similarity: float
    vague: str = ""
    candidate: int | None = None


@dataclass(frozen=True)
class Discovered:
    """The assignment of every ticket, by row id. A newly found subject has a temporary id, which contains a space.

    When two subjects are joined, ``aliases`` maps the id that is given up to the id that is kept. ``labels`` maps the
    ``label_key`` of each usable label to its subject.
    """

    assignments: dict[str, Assignment] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def rows_of(self) -> dict[str, list[str]]:
        """The row ids of each subject."""
        found: dict[str, list[str]] = {}
        for row_id, assignment in self.assignments.items():
            if assignment.subject is not None:
                found.setdefault(assignment.subject, []).append(row_id)
        return found

    def resolve(self, subject: str) -> str:
        """The current id of ``subject``."""
        while subject in self.aliases:
            subject = self.aliases[subject]
        return subject

    def renamed(self, ids: dict[str, str]) -> "Discovered":
        """A copy in which subjects have new ids. ``ids`` maps each old id that changes to the new one."""
        return Discovered(
            {
                row_id: replace(assignment, subject=ids.get(assignment.subject or "", assignment.subject))
                for row_id, assignment in self.assignments.items()
            },
            {gone: ids.get(kept, kept) for gone, kept in self.aliases.items()},
            {label: ids.get(subject, subject) for label, subject in self.labels.items()},
        )


def discover(tickets: Sequence[Ticket], earlier: Discovered | None = None, pinned: Collection[str] = ()) -> Discovered:
    """The subjects of ``tickets``, which must be all tickets so far.

    The first ticket of a conversation usually decides on its subject, because later ones may be "thanks" or "and how long
    does that take?". So the order of ``tickets`` matters only within one conversation and day.

    A ticket that has a subject in ``earlier`` keeps it, unless the subject is joined with another one or turns out to be
    vague. A person has decided about the ``pinned`` subjects. They are never joined with one another or given up.
    """
    earlier = earlier or Discovered()
    tickets = sorted(tickets, key=lambda ticket: ticket.day)
    first: dict[str, Ticket] = {}
    for ticket in tickets:
        first.setdefault(ticket.conversation, ticket)
    if not first:
        return Discovered({}, earlier.aliases, earlier.labels)
    if all(ticket.row_id in earlier.assignments for ticket in tickets):
        assignments = {ticket.row_id: earlier.assignments[ticket.row_id] for ticket in tickets}
        return Discovered(assignments, earlier.aliases, earlier.labels)
    openings = sorted(first.values(), key=lambda ticket: (ticket.day, ticket.row_id))
    discovery = _Discovery(openings, earlier, {earlier.resolve(subject) for subject in pinned})
    waiting = [index for index, ticket in enumerate(openings) if ticket.row_id not in earlier.assignments]
    for start in range(0, len(waiting), _WINDOW):
        discovery.assign(np.array(waiting[start : start + _WINDOW]))
    found = discovery.result(earlier)
    subjects, new = found.rows_of, []
    for ticket in tickets:
        if first[ticket.conversation] is not ticket:
            inherited = found.assignments[first[ticket.conversation].row_id].subject
            entry = earlier.assignments.get(ticket.row_id)
            if entry is None:
                new.append((ticket, inherited))
            else:
                subject = found.resolve(entry.subject or "")
                found.assignments[ticket.row_id] = replace(entry, subject=subject if subject in subjects else inherited)
    found.assignments.update(discovery.assign_later(new))
    return found


class _Discovery:
    """Assigns conversations in batches. Its tickets are the first messages of conversations, referred to by number."""

    def __init__(self, openings: Sequence[Ticket], earlier: Discovered, pinned: set[str]) -> None:
        self._tickets = openings
        self._known = set(earlier.rows_of)
        self._aliases = dict(earlier.aliases)
        before = [earlier.assignments.get(ticket.row_id, Assignment(None, 0.0)) for ticket in openings]
        self._subject = np.array([assignment.subject for assignment in before], dtype=object)
        self._similarity = np.array([assignment.similarity for assignment in before])
        self._vague = np.array([assignment.vague for assignment in before], dtype=object)
        self._arrived = np.array([ticket.row_id in earlier.assignments for ticket in openings])
        self._customer = np.array([ticket.customer or ticket.conversation for ticket in openings])
        self._minimum = 2 if len(openings) < SMALL_COMPANY else 3
        self._questions, self._of_question = text_vectors([ticket.question for ticket in openings], "characters")
        self._answers, self._of_answer = text_vectors([ticket.answer for ticket in openings], "words")
        self._expected = [mean_cosine(view) for view in (self._questions, self._answers)]
        self._usual = [0.5, 0.5]
        self._labels = dict(earlier.labels) | self._usable_labels(earlier.labels)
        self._fixed = pinned | set(self._labels.values())
        self._new = 0
        self._rest: list[np.ndarray] = []
        self._candidate: dict[int, int] = {}

    def assign(self, new: np.ndarray) -> None:
        """Assigns the tickets ``new``, and the recent ones that have no subject yet."""
        self._arrived[new] = True
        pool = self._unassigned()
        for index in pool:
            label = self._labels.get(label_key(self._tickets[index].label))
            if label is not None:
                self._subject[index], self._similarity[index] = label, 1.0
        pool = self._unassigned()
        taken = np.flatnonzero(self._arrived & _has(self._subject))
        window = np.sort(np.concatenate([pool, taken[-max(_WINDOW - len(pool), 1) :]]))
        groups, one_question = self._tight_groups(window)
        self._give_up_vague_subjects(window)
        self._join(groups)
        if self._settle_questions(one_question):
            self._join(groups)
        self._give_up_vague_subjects(window)
        fixed = np.array([subject in self._fixed for subject in self._subject])
        self._subject[(self._vague == "question") & ~fixed] = None
        self._join_by_question([index for index in self._unassigned() if self._vague[index] == "answer"])
        self._join_rest()

    def result(self, earlier: Discovered) -> Discovered:
        """The assignments so far."""
        columns = zip(self._tickets, self._subject, self._similarity, self._vague, strict=True)
        assignments = {
            ticket.row_id: Assignment(subject, round(float(similarity), 4), vague, self._candidate.get(index))
            for index, (ticket, subject, similarity, vague) in enumerate(columns)
        }
        found = Discovered(assignments, self._aliases, self._labels)
        published = self._known | earlier.aliases.keys()
        aliases = {subject: found.resolve(subject) for subject in self._aliases if subject in published}
        return Discovered(assignments, aliases, self._labels)

    def assign_later(self, later: Sequence[tuple[Ticket, str | None]]) -> dict[str, Assignment]:
        """The assignments of later messages: the given subject of the conversation, or one that is very similar."""
        if not later:
            return {}
        names, scores = self._row_scores(
            self._of_question.transform([ticket.question for ticket, _ in later]).tocsr(),
            self._of_answer.transform([ticket.answer for ticket, _ in later]).tocsr(),
        )
        found = {}
        for (ticket, subject), own in zip(later, scores, strict=True):
            if own.max(initial=0) >= OTHER_QUESTION:
                subject = names[int(own.argmax())]
            similarity = float(own[names.index(subject)]) if subject in names else 0.0
            found[ticket.row_id] = Assignment(subject, round(min(max(similarity, 0.0), 1.0), 4))
        return found

    def _usable_labels(self, known: dict[str, str]) -> dict[str, str]:
        """The subject of each usable label: it has enough conversations of several customers, but at most half of all.

        A label that most tickets have, such as "question", says nothing.
        """
        customers: dict[str, list[str]] = {}
        for ticket, customer in zip(self._tickets, self._customer, strict=True):
            if label := label_key(ticket.label):
                customers.setdefault(label, []).append(customer)
        return {
            label: known.get(label, f"label {label}")
            for label, own in customers.items()
            if self._minimum <= len(own) <= len(self._tickets) / 2 and len(set(own)) > 1
        }

    def _unassigned(self) -> np.ndarray:
        return np.flatnonzero(self._arrived & ~_has(self._subject))[-2 * _WINDOW :]

    def _tight_groups(self, window: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The tight groups of the tickets in ``window``, and those of them whose answers have hardly anything in common.

        Also updates the usual cosines within groups, and marks vague answers and questions. For the second
        groups, ``_settle_questions`` then decides whether their questions are really vague.
        """
        cosines = [(view[window] @ view[window].T).toarray() for view in (self._questions, self._answers)]
        tight = average_linkage((cosines[0] + cosines[1]) / 2, TIGHT)
        places = [np.flatnonzero(tight == group) for group in range(tight.max() + 1)]
        members = membership(places, len(window))
        size = np.asarray(members.sum(axis=1)).ravel()
        large = size >= 3
        varied = []
        for place, own in enumerate(cosines):
            sums = np.asarray(members.multiply(members @ own).sum(axis=1)).ravel() - members @ own.diagonal()
            means = sums / np.maximum(size * (size - 1), 1)
            if large.sum() >= 3:
                self._usual[place] = float(np.median(means[large]))
            beyond, usual = means - self._expected[place], self._usual[place] - self._expected[place]
            varied.append((size >= VAGUE_ROWS) & (beyond < VAGUE * usual))
        self._vague[window[varied[0][tight]]] = "answer"
        self._vague[window[varied[1][tight]]] = "question"
        groups = [window[own] for own in places]
        return groups, [groups[group] for group in np.flatnonzero(varied[1])]

    def _settle_questions(self, one_question: list[np.ndarray]) -> bool:
        """Decides whether the questions of these groups are vague, and says whether some are not.

        They are not vague if most of a group's answers belong to one subject, whose questions are answered in several ways.
        """
        some_are_not = False
        for own in one_question:
            names, scores = self._row_scores(None, self._answers[own])
            if names and Counter(scores.argmax(axis=1).tolist()).most_common(1)[0][1] > len(own) / 2:
                self._vague[own] = ""
                some_are_not = True
        return some_are_not

    def _give_up_vague_subjects(self, window: np.ndarray) -> None:
        """Gives up the subjects whose tickets in ``window`` mostly have a vague text, unless they are fixed."""
        count = Counter(self._subject[window])
        vague = Counter(self._subject[window[self._vague[window] != ""]])
        gone = [
            subject
            for subject in count
            if subject and subject not in self._fixed and 2 * vague[subject] > count[subject]
        ]
        self._subject[np.isin(self._subject.astype(str), gone)] = None

    def _subject_groups(self) -> list[tuple[str, np.ndarray]]:
        """The subjects, each with those of its tickets that have no vague text."""
        found: dict[str, list[int]] = {}
        for index in np.flatnonzero((self._vague == "") & _has(self._subject)).tolist():
            found.setdefault(self._subject[index], []).append(index)
        return [(name, np.array(own)) for name, own in found.items()]

    def _join(self, tight: list[np.ndarray]) -> None:
        """Joins the subjects and the ``tight`` groups, and assigns the tickets of the joined groups that are large enough.

        Of a tight group, only tickets without a subject and without a vague text take part.
        """
        free = (self._vague == "") & ~_has(self._subject)
        waiting = [(None, own[free[own]]) for own in tight if free[own].any()]
        self._rest = self._join_groups([*self._subject_groups(), *waiting], JOIN)

    def _join_rest(self) -> None:
        """Joins the groups that are similar to no subject with one another. What is too small becomes a candidate.

        Tickets with a vague answer are compared by their questions alone. They may join the others but not outnumber them.
        """
        free = (self._vague != "question") & ~_has(self._subject)
        groups = [own[free[own]] for own in self._rest if free[own].any()]
        held = [np.array([index]) for index in self._unassigned() if self._vague[index] == "answer"]
        self._join_groups([(None, own) for own in [*groups, *held]], JOIN_REST)
        left = [own for own in groups if not _has(self._subject[own]).any() and len(set(self._customer[own])) > 1]
        self._candidate = {index: number for number, own in enumerate(left) for index in own.tolist()}

    def _join_groups(self, groups: Sequence[tuple[str | None, np.ndarray]], minimum: float) -> list[np.ndarray]:
        """Joins ``groups`` and assigns their tickets. Returns the joined groups that are too small for a subject.

        A group has the name of its subject, or None.
        """
        if not groups:
            return []
        rest = []
        published = np.array([name is not None for name, _ in groups])
        fixed = np.array([name in self._fixed for name, _ in groups])
        for places in join_similar(*self._similarities([own for _, own in groups]), published, fixed, minimum):
            own = np.concatenate([groups[place][1] for place in places])
            named = [(name, tickets) for name, tickets in (groups[place] for place in places) if name is not None]
            if not named and not self._is_enough(own):
                rest.append(own)
                continue
            name = self._survivor(named)
            for gone, _ in named:
                if gone != name:
                    self._aliases[gone] = name
                    self._subject[self._subject == gone] = name
            fresh = own[~_has(self._subject[own])]
            self._subject[own] = name
            self._similarity[fresh] = self._typical(own)[np.isin(own, fresh)]
        return rest

    def _is_enough(self, own: np.ndarray) -> bool:
        """Whether the tickets ``own`` make a subject."""
        vague = self._vague[own] != ""
        return len(own) >= self._minimum and len(set(self._customer[own])) > 1 and 2 * vague.sum() <= len(own)

    def _survivor(self, named: list[tuple[str, np.ndarray]]) -> str:
        """The subject whose id remains: a fixed one, else a known one, else the largest. If ``named`` is empty, a new id."""
        if named:
            return max(
                named, key=lambda entry: (entry[0] in self._fixed, entry[0] in self._known, len(entry[1]), entry[0])
            )[0]
        self._new += 1
        return f"new {self._new}"

    def _typical(self, own: np.ndarray) -> np.ndarray:
        """How typical each ticket is of the group ``own``: the mean of its two cosines with the group's centroid."""
        parts = []
        for view in (self._questions, self._answers):
            centroid = np.asarray(view[own].sum(axis=0)).ravel()
            parts.append(view[own] @ centroid / max(float(np.linalg.norm(centroid)), 1e-9))
        return np.clip((parts[0] + parts[1]) / 2, 0, 1)

    def _join_by_question(self, waiting: list[int]) -> None:
        """Assigns the tickets ``waiting`` to the subjects that their questions alone are similar enough to."""
        if not waiting:
            return
        names, scores = self._row_scores(self._questions[waiting], None)
        for index, own in zip(waiting, scores, strict=True):
            if names and own.max() >= JOIN:
                self._subject[index], self._similarity[index] = names[int(own.argmax())], min(float(own.max()), 1.0)

    def _row_scores(self, questions: "csr_matrix | None", answers: "csr_matrix | None") -> tuple[list[str], np.ndarray]:
        """The subjects, and the similarity of single tickets to each: by question, by answer or both. [tickets, subjects]"""
        named = self._subject_groups()
        given = [rows for rows in (questions, answers) if rows is not None]
        if not named:
            return [], np.zeros((given[0].shape[0], 0))
        views = zip(self._similarities([own for _, own in named]), (questions, answers), strict=True)
        scores = [view.row_scores(rows) for view, rows in views if rows is not None]
        return [name for name, _ in named], scores[0] if len(scores) == 1 else mixed(*scores)

    def _similarities(self, groups: Sequence[np.ndarray]) -> tuple[GroupSimilarity, GroupSimilarity]:
        """The similarities of ``groups`` by question and by answer, without vague texts."""
        kinds = zip(("question", "answer"), (self._questions, self._answers), self._expected, self._usual, strict=True)
        questions, answers = (
            GroupSimilarity(
                view,
                membership([own[self._vague[own] != kind] for own in groups], len(self._tickets)),
                expected,
                usual,
            )
            for kind, view, expected, usual in kinds
        )
        return questions, answers


def _has(subjects: np.ndarray) -> np.ndarray:
    """Which of the ``subjects`` are not None: [tickets]."""
    return np.array([subject is not None for subject in subjects], dtype=bool)


def label_key(label: str | None) -> str:
    """``label`` in lower case, with single spaces; empty if there is none."""
    return " ".join((label or "").casefold().split())
