"""The frozen test rows in a recipe's placeholder mode, a model's answers to them, and all scores of these answers.

Every system is scored by the same ``FrozenTestSet``: against the references (``metrics.py``), for made-up facts
(``fidelity.py``), for errors (``answer_errors.py``) and for style (``rubric.py``).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.core.lake import DataLake, digest
from cs_pipeline.evaluate.scoring.answer_errors import AnswerNorms, answer_errors
from cs_pipeline.evaluate.scoring.cost import GenerationRun
from cs_pipeline.evaluate.scoring.fidelity import fidelity
from cs_pipeline.evaluate.scoring.metrics import answer_quality, row_statistics
from cs_pipeline.evaluate.scoring.rubric import rubric
from cs_pipeline.llm.model import Answer, Contender, SupportModel, peak_memory_gib
from cs_pipeline.llm.prompt import Context, RetrievedText, earlier_turns
from cs_pipeline.recipe import Recipe
from cs_pipeline.retrieval.retrieve import in_context, rows_of_conversations
from cs_pipeline.retrieval.router import NO_SUBJECT, PromptIntents
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline.text.placeholders import PlaceholderMode, apply

MIN_CLUSTERS_TO_SEAL = 300
"""With fewer clusters of test questions none is sealed: a third of them could not decide anything, nor could the rest."""

_SEALED_OF = 3  # one cluster of this many is sealed
_SECONDS_BETWEEN_REPORTS = 5


class FrozenTestSet:
    """The test and training rows, with an intent classifier and norms that are both learned from training answers."""

    def __init__(
        self,
        recipe: Recipe,
        lake: DataLake,
        split: str = "test",
        rows: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Reads the rows of ``split``, all of them or the ``rows`` of them with the smallest ids, which are hashes.

        ``labels`` are the intents that people gave to company rows, by row id.
        """

        self.mode, self.settings = recipe.placeholders, recipe.evaluation
        self.train, test = read_split(lake, "train", self.mode), read_split(lake, split, self.mode)
        if rows is not None:
            test = test.sort_values("row_id").head(rows).reset_index(drop=True)
        answers, intents = self.train["response"].tolist(), self.train["intent"].tolist()
        self._classifier = TextClassifier.fit(answers, intents, "words")
        self._norms = AnswerNorms.of(answers, intents)
        self._labels = dict(labels or {})
        self._set_rows(_with_labels(test, self._labels, self.train))

    def part(self, rows: np.ndarray) -> "FrozenTestSet":
        """The same set with only those of its rows for which ``rows`` [rows] is True."""
        return self.with_rows(self.test[rows])

    def with_rows(self, rows: pd.DataFrame) -> "FrozenTestSet":
        """The same set with these ``rows`` of ``read_split``, of any split, instead of its own."""
        other = copy(self)
        other._set_rows(_with_labels(rows.reset_index(drop=True), self._labels, self.train))
        return other

    def routed_by(self, intents: PromptIntents) -> "FrozenTestSet":
        """The same set with the intents that one model's prompts name. They come from its own router if it has one."""
        routed = copy(self)
        routed.predicted_intents = intents(self.searched)
        return routed

    def _set_rows(self, test: pd.DataFrame) -> None:
        self.test = test
        self.questions = self.test["instruction"].tolist()
        self.contexts: list[Context] = self.test["context"].tolist()
        self.questions_with_context = [_with_context(*row) for row in zip(self.contexts, self.questions, strict=True)]
        self.references = self.test["response"].tolist()
        self.predicted_intents: list[str | None] = _or_none(self.test["predicted_intent"])
        # What a question is routed and searched by; see in_context.
        self.searched = [
            in_context(*row) for row in zip(self.questions, self.contexts, self.predicted_intents, strict=True)
        ]
        # No system may find an answer from the question's own conversation, because a new question has none.
        self.own_rows = rows_of_conversations(
            _conversations(self.test), self.train["row_id"].tolist(), _conversations(self.train)
        )
        self.labelled = has_known_intent(self.test).to_numpy()
        right = self._right_intents(self.references)[self.labelled]
        self.answer_classifier_accuracy = float(right.mean()) if len(right) else 0.0

    def score(
        self, answers: list[str], retrieved: Sequence[Sequence[RetrievedText]] | None = None, **reported: Any
    ) -> pd.DataFrame:
        """Row statistics of one system's ``answers`` to all test rows.

        ``retrieved`` holds the retrieved texts in each prompt; None if the system retrieves nothing. ``reported`` holds the
        columns that only the system can fill, for example ``nll`` and ``stopped``. ``labelled`` is 1 for rows with a
        known intent (``has_known_intent``); in the others ``right_intent`` is 0.
        """
        frame = row_statistics(self.questions_with_context, answers, self.references)
        scores = self.score_without_references(answers, reported.get("stopped", np.nan), retrieved)
        frame = frame.assign(row_id=self.test["row_id"].to_numpy(), answer=answers, **reported, **scores)
        frame = frame.assign(labelled=self.labelled.astype(int), right_intent=frame["right_intent"] * self.labelled)
        return frame.assign(quality=answer_quality(frame))

    def score_without_references(
        self, answers: list[str], stopped: Any = np.nan, retrieved: Sequence[Sequence[RetrievedText]] | None = None
    ) -> pd.DataFrame:
        """The scores that do not compare the wording of ``answers`` with the references.

        The references themselves can therefore be passed as ``answers``. ``stopped`` is 1 or 0 for each answer, or NaN if no
        model wrote them. The column ``fabricates`` is 1 for an answer with a fabricated fact.
        """
        right = self._right_intents(answers)
        row_ids, intents = self.test["row_id"].tolist(), self.test["intent"].tolist()
        stopped_rows = np.broadcast_to(np.asarray(stopped, float), len(answers))
        questions = given = self.questions_with_context
        if retrieved is not None:
            given = [with_retrieved_texts(*row) for row in zip(questions, retrieved, strict=True)]
        facts = fidelity(given, answers, self.test["with_placeholders"].tolist(), row_ids, self.mode)
        agrees = np.where(self.labelled, right, 1.0).tolist()
        errors = answer_errors(self._norms, questions, answers, intents, agrees, stopped_rows.tolist())
        return pd.concat([facts, errors, rubric(questions, answers)], axis=1).assign(
            fabricates=(facts["fabricated"] > 0).astype(float), right_intent=right
        )

    def classify_answers(self, answers: list[str]) -> list[str]:
        """The intents of ``answers``, predicted by a classifier trained on training answers."""
        return list(self._classifier.predict(answers)[0])

    def _right_intents(self, answers: list[str]) -> np.ndarray:
        return (np.array(self.classify_answers(answers)) == self.test["intent"].to_numpy()).astype(float)


def read_split(lake: DataLake, split: str, mode: PlaceholderMode) -> pd.DataFrame:
    """The rows of ``split`` with texts in the placeholder ``mode``. ``with_placeholders`` has the unchanged answers."""
    table = lake.read("prepare", f"{split}_split")
    frame = table.to_pandas()
    questions = zip(frame["instruction"], frame["row_id"], strict=True)
    answers = zip(frame["response"], frame["row_id"], strict=True)
    contexts = zip(map(earlier_turns, table.column("context").to_pylist()), frame["row_id"], strict=True)
    return frame.assign(
        instruction=[apply(text, mode, "customer", row) for text, row in questions],
        response=[apply(text, mode, "agent", row) for text, row in answers],
        with_placeholders=frame["response"],
        context=[[(who, apply(text, mode, who, row)) for who, text in turns] for turns, row in contexts],
    )


def smallest_ids(row_ids: Sequence[str], count: int) -> np.ndarray:
    """Which rows have the ``count`` smallest ids: [rows]. Ids are hashes, so the sample is random but never changes."""
    chosen = np.zeros(len(row_ids), bool)
    chosen[np.argsort(np.asarray(row_ids, str), kind="stable")[:count]] = True
    return chosen


def sealed_rows(clusters: Sequence[str]) -> np.ndarray:
    """Which rows are sealed, given the cluster of each test row: [rows], True for about a third of the clusters.

    A hash of the cluster's id decides, so a cluster stays sealed or open when rows are added. None is sealed if there
    are fewer than MIN_CLUSTERS_TO_SEAL clusters.
    """
    if len(set(clusters)) < MIN_CLUSTERS_TO_SEAL:
        return np.zeros(len(clusters), bool)
    return np.array([int(digest("sealed", cluster), 16) % _SEALED_OF == 0 for cluster in clusters])


def answer_test_set(
    system: str,
    model: Contender,
    test_set: FrozenTestSet,
    retrieved: Sequence[Sequence[RetrievedText]],
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, list[Answer], GenerationRun]:
    """Answers all test rows with ``model`` and these ``retrieved`` texts. Returns row statistics, the answers and the run.

    ``report`` gets progress lines that begin with ``system``.
    """
    alone = isinstance(model, SupportModel) and not model.reads_earlier_turns
    questions = test_set.searched if alone else test_set.questions
    inputs = questions, test_set.predicted_intents, test_set.contexts
    started = time.monotonic()
    answers = model.answer(*inputs, progress_reporter(report, system, "answers", len(test_set.questions)), retrieved)
    seconds = time.monotonic() - started
    run = GenerationRun(len(answers), sum(answer.tokens for answer in answers), seconds, peak_memory_gib())
    reported: dict[str, Any] = {"stopped": [float(answer.stopped) for answer in answers]}
    if isinstance(model, SupportModel):  # a look-up has no likelihood
        likelihoods = model.likelihoods(*inputs, test_set.references, retrieved)
        reported |= {
            "nll": [likelihood.nll for likelihood in likelihoods],
            "answer_tokens": [likelihood.tokens for likelihood in likelihoods],
            "answer_chars": [len(reference) for reference in test_set.references],
        }
    texts, in_prompts = [answer.text for answer in answers], [answer.retrieved for answer in answers]
    return test_set.score(texts, in_prompts, **reported), answers, run


def progress_reporter(report: Callable[[str], None], label: str, unit: str, total: int) -> Callable[[int], None]:
    """A function that takes the number done so far.

    Every five seconds and at the end, it passes a line with this number, the rate and the time left to ``report``.
    """
    started = reported = time.monotonic()

    def progress(done: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported > _SECONDS_BETWEEN_REPORTS or done == total:
            reported = now
            rate = done / max(now - started, 1e-9)
            report(f"{label}: {done}/{total} {unit}, {rate:.1f} per second, {(total - done) / rate:.0f} s left")

    return progress


def with_retrieved_texts(question: str, retrieved: Sequence[RetrievedText]) -> str:
    """Everything that a model was given: the ``retrieved`` texts, then the ``question``."""
    return "\n".join([*(text.text for text in retrieved), question])


def has_known_intent(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Which ``rows`` (columns source and intent) count for right intent: all of Bitext, and company rows with a subject.

    A subject comes from the export, from a person, or from groups of questions with their answers, never from the
    router. An answer that follows the router is therefore not automatically right.
    """
    return (rows["source"] == "bitext") | (rows["intent"] != NO_SUBJECT)


def _conversations(rows: pd.DataFrame) -> list[str | None]:
    return _or_none(rows["conversation_id"])


def _or_none(column: "pd.Series[str]") -> list[str | None]:
    """The values of ``column`` with None for missing ones."""
    values: list[str | None] = column.astype(object).where(column.notna(), None).tolist()
    return values


def _with_labels(test: pd.DataFrame, labels: Mapping[str, str], train: pd.DataFrame) -> pd.DataFrame:
    """The rows with the intents of people's ``labels``, and the categories of these intents, in place of their own."""
    categories = dict(zip(train["intent"], train["category"], strict=True))
    given = [labels.get(row) for row in test["row_id"]]
    return test.assign(
        intent=[intent or known for intent, known in zip(given, test["intent"], strict=True)],
        category=[categories.get(intent, known) for intent, known in zip(given, test["category"], strict=True)],
    )


def _with_context(context: Context, question: str) -> str:
    """The question after the earlier turns of its conversation, if it has any."""
    return "\n".join([*(f"{who.capitalize()}: {text}" for who, text in context), "", question]) if context else question
