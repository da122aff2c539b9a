"""A router that knows what it does not know: one classifier over Bitext's intents and a company's subjects.

A question gets the most probable label with its calibrated probability, and the probability that the question is about
any known label at all. Below a threshold, it gets no label. ``evidence.py`` measures what speaks for each label, and
``calibration.py`` learns how much that counts. Nothing is pickled. The folder contains words and n-grams, but no texts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_folder
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.recipe import FineTuneRecipe, Recipe
from cs_pipeline.retrieval.calibration import EXAMPLE, WHOLE, Calibration, ExampleCompany, TrialScores, calibrate
from cs_pipeline.retrieval.embedder import Embedder, shared_embedder, unchanged_embedder
from cs_pipeline.retrieval.evidence import (
    MAX_ANSWERS_OF_LABEL,
    EvidenceModel,
    LabelledQuestions,
    first_of_labels,
    is_small,
    select_questions,
    small_labels,
)
from cs_pipeline.text.classifier import TextClassifier

NO_SUBJECT = "other"
"""The intent of a company row without a subject. It is no label: no router is trained on such rows or predicts it."""

FALSE_HANDOVERS = 0.05
"""The share of questions about known labels that get no label, unless another share is given."""

MAX_UNKNOWN_TO_SMALL = 0.02
"""Of the example companies' foreign questions whose most probable label is small, at most this share gets it."""

OWN_ROUTER = "router"
"""The subfolder of an adapter that contains the router with which it was trained."""

_FORMER_ROUTER = "intent_classifier"
"""The subfolder of the classifier that adapters of earlier releases have instead."""

PromptIntents: TypeAlias = Callable[[Sequence[str]], list[str | None]]
"""Gives the intent that the prompt for each question names, or None."""

EXAMPLE_COMPANIES = Path(__file__).with_name("companies.yaml")
"""The companies that the calibration for small labels is learnt from."""

_DESCRIPTION, _ARRAYS = "router.json", "router.safetensors"
_FORMAT = 2
_AGAIN = "Materialise 'router' again, and train adapters that have their own router again."
_FOLDS = 3
_MIN_VALIDATION, _MIN_SMALL = 200, 30
_SCORES = ("known", "small", "unknown", "unknown_small")
"""Arrays of ``Route.known`` for the trials' questions, sorted.

``known``: questions about labels that were not cut down. ``small``: questions about small labels, if the most probable label
was right. ``unknown``: questions about nothing known, if the most probable label was a large one. ``unknown_small``: the
example companies' foreign questions for which it was a small one.
"""


@dataclass(frozen=True)
class Route:
    """Where a question belongs.

    ``known`` (0 to 1) is the probability that the question is about a known label. If it is too low, ``label`` is None.
    ``best`` is the most probable label in any case. ``probability`` (0 to 1) is the probability of ``best`` if the question
    is about a known label. ``similarity`` (0 to 1) is the cosine, by character n-grams, with the nearest training question
    of ``best``.
    """

    label: str | None
    best: str
    known: float
    probability: float
    similarity: float


class Router:
    """Routes questions to labels, or to none.

    ``thresholds`` has the least ``Route.known`` at which a question gets each of ``labels``. They are 0 if there were
    too few labels or questions to learn them; then every question gets a label. ``limits`` has the threshold of large
    labels and that of labels with up to three questions; other small labels have one in between. They differ because a
    question about a small label is less similar to its few training questions.
    """

    def __init__(
        self,
        model: EvidenceModel,
        calibration: Calibration,
        scores: dict[str, np.ndarray],
        limits: tuple[float, float],
        embedder: Embedder | None,
    ) -> None:
        self._model, self._calibration, self._scores, self._embedder = model, calibration, scores, embedder
        self._limits = limits
        sizes = model.arrays["sizes"]
        self.thresholds = limits[0] + np.where(is_small(sizes), small_labels(sizes), 0) * (limits[1] - limits[0])

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[str],
        clusters: Sequence[str],
        embedder: Embedder | None = None,
        answers: Sequence[str] | None = None,
    ) -> "Router":
        """Trains on ``texts``. Rows of one cluster are never on both sides of a trial. The same input gives the same router.

        The order of the rows has no effect. With an embedding model, the ``answers`` of the rows are evidence too. The
        thresholds are those of ``with_handover_share(FALSE_HANDOVERS)``. Raises ValueError without rows, or if a label is
        NO_SUBJECT.
        """
        if not len(texts) or NO_SUBJECT in labels:
            raise ValueError(f"a router needs questions, and none with the label {NO_SUBJECT!r}")
        rows = _questions(texts, labels, clusters, embedder, answers)
        any_small = is_small(np.unique(rows.labels.astype(str), return_counts=True)[1]).any()
        calibration, scores = calibrate(rows, _example_companies(embedder) if any_small else [])
        router = cls(EvidenceModel.fit(rows), calibration, _scores_by_kind(scores), (0.0, 0.0), embedder)
        return router.with_handover_share(FALSE_HANDOVERS)

    @property
    def labels(self) -> list[str]:
        """All labels, sorted."""
        return self._model.labels

    @property
    def unknown_handed_over(self) -> float | None:
        """Of the trials' questions about nothing known, the share that gets no label; None without trials."""
        unknown = [self._scores[name] for name in ("unknown", "unknown_small")]
        below = sum(int((scores < limit).sum()) for scores, limit in zip(unknown, self._limits, strict=True))
        total = sum(map(len, unknown))
        return below / total if total else None

    def with_handover_share(self, share: float) -> "Router":
        """This router with the thresholds that hand over ``share`` (0 to 1) of the questions about known labels.

        For small labels, only questions whose most probable label is right count. Their threshold is higher, and hands over
        more of them, if more than ``MAX_UNKNOWN_TO_SMALL`` of the example companies' foreign questions would pass it
        otherwise.
        """
        known, small = self._scores["known"], self._scores["small"]
        of_large = float(np.quantile(known if len(known) else small, share)) if len(known) or len(small) else 0.0
        of_small = float(np.quantile(small, share)) if len(small) >= _MIN_SMALL else of_large
        unknown = self._scores["unknown_small"]
        if len(unknown) >= _MIN_SMALL:
            of_small = max(of_small, float(np.quantile(unknown, 1 - MAX_UNKNOWN_TO_SMALL)))
        limits = of_large, of_small
        return Router(self._model, self._calibration, self._scores, limits, self._embedder)

    def with_validation(self, texts: Sequence[str], labels: Sequence[str], share: float = FALSE_HANDOVERS) -> "Router":
        """This router with thresholds that also come from the validation questions ``texts``, whose ``labels`` are known.

        If at least ``_MIN_VALIDATION`` of them are routed to large labels, these replace the trials' questions, because the
        models of the trials know less than this router. Questions about small labels are few, so they are added to those
        of the trials.
        """
        if not any(map(len, self._scores.values())) or not len(texts):
            return self
        routes = self.route(texts)
        small_names = {
            name for name, small in zip(self.labels, is_small(self._model.arrays["sizes"]), strict=True) if small
        }
        small = np.array([route.best in small_names for route in routes])
        right = np.array([route.best == label for route, label in zip(routes, labels, strict=True)])
        known = np.array([route.known for route in routes], dtype=np.float32)
        scores = self._scores | {"small": np.sort(np.concatenate([self._scores["small"], known[small & right]]))}
        if (~small).sum() >= _MIN_VALIDATION:
            scores["known"] = np.sort(known[~small])
        return Router(self._model, self._calibration, scores, self._limits, self._embedder).with_handover_share(share)

    def route(self, texts: Sequence[str]) -> list[Route]:
        """The routes of ``texts``."""
        if not len(texts):
            return []
        return self._route(texts, _embed(self._embedder, texts))

    def _route(self, texts: Sequence[str], vectors: np.ndarray | None) -> list[Route]:
        evidence = self._model.look_at(texts, vectors)
        probabilities = self._calibration.probabilities(evidence)
        best = probabilities.argmax(axis=1)
        known = self._calibration.knowns(evidence, best)
        return [
            Route(
                self.labels[label] if known[row] >= self.thresholds[label] else None,
                self.labels[label],
                float(known[row]),
                float(probabilities[row, label]),
                float(np.clip(evidence.kinds[row, label, 1], 0, 1)),
            )
            for row, label in enumerate(best)
        ]

    def out_of_fold(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        clusters: Sequence[str],
        answers: Sequence[str] | None = None,
    ) -> list[Route]:
        """The routes of the training rows, each by a model that was not trained on the row's cluster.

        So they are wrong or None as often as the routes of live questions. Rows without a subject (NO_SUBJECT) are routed,
        but no model is trained on them. The models have this router's calibration, and its limits for large and small
        labels. With a single cluster of labelled rows no such model is possible, and the routes are those of ``route``.
        """
        from sklearn.model_selection import GroupKFold

        labelled = np.array([i for i, label in enumerate(labels) if label != NO_SUBJECT])
        groups = np.array([clusters[i] for i in labelled], dtype=object)
        folds = min(_FOLDS, len(set(groups)))
        if folds < 2:
            return self.route(texts)
        vectors = _embed(self._embedder, texts)
        fold_of: dict[str, int] = {}
        models = []
        for fold, (train, held_out) in enumerate(
            GroupKFold(folds, shuffle=True, random_state=0).split(groups, groups=groups)
        ):
            fold_of |= dict.fromkeys(groups[held_out], fold)
            known = labelled[train]
            rows = _questions(
                [texts[i] for i in known],
                [labels[i] for i in known],
                [clusters[i] for i in known],
                self._embedder,
                None if answers is None else [answers[i] for i in known],
                None if vectors is None else vectors[known],
            )
            models.append(
                Router(EvidenceModel.fit(rows), self._calibration, self._scores, self._limits, self._embedder)
            )
        routes: dict[int, Route] = {}
        in_fold = np.array([fold_of.get(cluster, folds) for cluster in clusters])
        for fold, router in enumerate([*models, self]):
            asked = np.flatnonzero(in_fold == fold).tolist()
            if asked:
                of_fold = router._route([texts[i] for i in asked], None if vectors is None else vectors[asked])
                routes |= zip(asked, of_fold, strict=True)
        return [routes[row] for row in range(len(texts))]

    def save(self, folder: Path) -> None:
        """Writes ``router.json`` (labels, vocabularies, limits, embedding model) and ``router.safetensors`` (arrays)."""
        from safetensors.numpy import save_file

        description = {
            "format": _FORMAT,
            "labels": self.labels,
            "vocabularies": self._model.vocabularies,
            "limits": self._limits,
            "embedder": self._embedder and {"name": self._embedder.name, "sha256": self._embedder.sha256},
        }
        learnt = {
            "calibration.chooser": self._calibration.chooser,
            "calibration.known": self._calibration.known,
            **{f"scores.{name}": array for name, array in self._scores.items()},
        }
        with atomic_folder(folder) as temporary:
            (temporary / _DESCRIPTION).write_text(json.dumps(description))
            arrays = {name: np.ascontiguousarray(array) for name, array in (self._model.arrays | learnt).items()}
            save_file(arrays, temporary / _ARRAYS)

    @classmethod
    def load(cls, folder: Path) -> "Router":
        """Loads the router that ``save`` wrote into ``folder``.

        Raises PipelineError if another release wrote it, or if its embedding model is missing or is another one.
        """
        from safetensors.numpy import load_file

        description: dict[str, Any] = json.loads((folder / _DESCRIPTION).read_text())
        if description.get("format") != _FORMAT:
            raise PipelineError(f"The router in {folder} was written by another release.", _AGAIN)
        arrays = load_file(folder / _ARRAYS)
        chooser, known = (arrays.pop(name) for name in ("calibration.chooser", "calibration.known"))
        scores = {name: arrays.pop(f"scores.{name}") for name in _SCORES}
        model = EvidenceModel(description["labels"], arrays, description["vocabularies"])
        embedder = _same_embedder(description["embedder"], folder)
        return cls(model, Calibration(chooser, known), scores, tuple(description["limits"]), embedder)


def router_folder(lake: DataLake) -> Path:
    """The folder of the lake's router."""
    return lake.path("prepare", "router")


def prompt_intents(recipe: Recipe, adapter: Path, current: Path | None) -> PromptIntents:
    """A function that predicts intents for the version in the folder ``adapter``. All are None if ``recipe`` does not route.

    A fine-tune knows only the intents that it was trained with, so it uses its own router. A look-up or cascade uses the
    lake's ``current`` one, which knows the subjects of the latest rows.
    """
    if recipe.prompt.route != "intent":
        return lambda texts: [None] * len(texts)
    if isinstance(recipe, FineTuneRecipe) and (adapter / _FORMER_ROUTER).exists():
        classifier = TextClassifier.load(adapter / _FORMER_ROUTER)
        return lambda texts: list(classifier.predict(texts)[0])
    folder = adapter / OWN_ROUTER if isinstance(recipe, FineTuneRecipe) else current
    if folder is None or not folder.exists():
        raise PipelineError(f"The router {folder} is missing.", "Materialise 'router'.")
    router = Router.load(folder)
    return lambda texts: [route.label for route in router.route(texts)]


def _questions(
    texts: Sequence[str],
    labels: Sequence[str],
    clusters: Sequence[str],
    embedder: Embedder | None,
    answers: Sequence[str] | None = None,
    vectors: np.ndarray | None = None,
) -> LabelledQuestions:
    """The questions that a model is trained on. ``vectors`` are the embeddings of ``texts``, None to compute them."""
    chosen = select_questions(texts, labels, clusters)
    of_texts, of_labels, of_clusters = (
        np.array([values[i] for i in chosen], dtype=object) for values in (texts, labels, clusters)
    )
    of_chosen = _embed(embedder, of_texts.tolist()) if vectors is None else vectors[chosen]
    if of_chosen is None:
        return LabelledQuestions(of_texts, of_labels, of_clusters, None, None)
    of_answers = np.zeros_like(of_chosen)
    if answers is not None:
        used = first_of_labels(of_labels, MAX_ANSWERS_OF_LABEL)
        of_answers[used] = _embed(embedder, [f"{of_texts[row]}\n{answers[chosen[row]]}" for row in used])
    return LabelledQuestions(of_texts, of_labels, of_clusters, of_chosen, of_answers)


@cache
def _example_texts() -> dict[str, Any]:
    return read_yaml(EXAMPLE_COMPANIES)


def _example_companies(embedder: Embedder | None) -> list[ExampleCompany]:
    """The companies of ``EXAMPLE_COMPANIES``. Their labels contain the company's name, so they differ from all others."""
    companies = []
    for name, company in _example_texts().items():
        subjects = company["subjects"].items()
        known = [(text, f"{name}: {subject}", of["answer"]) for subject, of in subjects for text in of["known"]]
        asked = [(text, f"{name}: {subject}") for subject, of in subjects for text in of["reworded"]]
        asked += [(text, "") for text in company["foreign"]]
        texts, labels, answers = zip(*known, strict=True)
        asked_texts, asked_labels = (np.array(values, dtype=object) for values in zip(*asked, strict=True))
        vectors = _embed(embedder, asked_texts.tolist())
        questions = LabelledQuestions(asked_texts, asked_labels, asked_labels, vectors, vectors)
        companies.append(ExampleCompany(_questions(texts, labels, texts, embedder, answers), questions))
    return companies


def _embed(embedder: Embedder | None, texts: Sequence[str]) -> np.ndarray | None:
    """Embeddings as a router stores them: rounded to float16, so that a loaded router computes what a new one does."""
    return None if embedder is None else embedder.embed(texts).astype(np.float16).astype(np.float32)


def _scores_by_kind(scores: TrialScores | None) -> dict[str, np.ndarray]:
    """The arrays that ``_SCORES`` names, float32."""
    if scores is None:
        return {name: np.zeros(0, np.float32) for name in _SCORES}
    kinds = {
        "known": scores.is_known & (scores.group == WHOLE),
        "small": scores.is_known & scores.small & scores.right,
        "unknown": ~scores.is_known & ~scores.small,
        "unknown_small": ~scores.is_known & scores.small & (scores.group == EXAMPLE),
    }
    return {name: np.sort(scores.known[rows]).astype(np.float32) for name, rows in kinds.items()}


def _same_embedder(named: dict[str, str] | None, folder: Path) -> Embedder | None:
    if named is None:
        return None
    used = f"the router in {folder} was trained with"
    return unchanged_embedder(shared_embedder(named["name"]), named["sha256"], used, _AGAIN)
