"""A router that knows what it does not know: one classifier over Bitext's intents and a company's subjects.

A question gets the most probable label with its calibrated probability, and the probability that the question is about any
known label at all. Below a threshold, it gets no label. ``evidence.py`` is what the router sees, ``calibration.py`` what that is
worth. Nothing is pickled, and the folder contains no texts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_folder
from cs_pipeline.retrieval.calibration import Calibration, TrialScores, calibrate
from cs_pipeline.retrieval.embedder import Embedder
from cs_pipeline.retrieval.evidence import EvidenceModel, LabelledQuestions, select_questions

NO_SUBJECT = "other"
"""The intent of a company row without a subject. It is no label: no router is trained on such rows or predicts it."""

FALSE_HANDOVERS = 0.05
"""The share of questions about known labels that get no label."""

_DESCRIPTION, _ARRAYS = "router.json", "router.safetensors"
_FOLDS = 3


@dataclass(frozen=True)
class Route:
    """Where a question belongs.

    ``label`` is None if the router is not sure that the question is about a known label. ``best`` is the most probable label
    anyway, and ``probability`` (0 to 1) how probable it is if the question is about one of them. ``known`` (0 to 1) is the
    probability that it is. ``similarity`` (0 to 1) is the cosine of the nearest training question of ``best``, by character n-grams.
    """

    label: str | None
    best: str
    known: float
    probability: float
    similarity: float


class Router:
    """Routes questions to labels, or to none.

    ``threshold`` is the minimum of ``Route.known``. It is 0 if there were too few labels or questions to learn one; then every
    question gets a label.
    """

    def __init__(
        self,
        model: EvidenceModel,
        calibration: Calibration,
        scores: np.ndarray,
        threshold: float,
        embedder: Embedder | None,
    ) -> None:
        self._model, self._calibration, self._scores, self._embedder = model, calibration, scores, embedder
        self.threshold = threshold

    @classmethod
    def fit(
        cls, texts: Sequence[str], labels: Sequence[str], clusters: Sequence[str], embedder: Embedder | None = None
    ) -> "Router":
        """Trains on ``texts``. Rows of one cluster are never on both sides of a trial. The same input gives the same router.

        The order of the rows has no effect. The threshold hands over ``FALSE_HANDOVERS`` of the questions of the trials. Raises
        ValueError without rows, or if a label is NO_SUBJECT.
        """
        if not len(texts) or NO_SUBJECT in labels:
            raise ValueError(f"a router needs questions, and none with the label {NO_SUBJECT!r}")
        rows = _questions(texts, labels, clusters, embedder)
        calibration, scores = calibrate(rows)
        return cls(EvidenceModel.fit(rows), calibration, _known_scores(scores), 0.0, embedder).with_handover_share(
            FALSE_HANDOVERS
        )

    @property
    def labels(self) -> list[str]:
        """All labels, sorted."""
        return self._model.labels

    def with_handover_share(self, share: float) -> "Router":
        """This router with the threshold that hands over ``share`` (0 to 1) of the questions about known labels."""
        threshold = float(np.quantile(self._scores, share)) if len(self._scores) else 0.0
        return Router(self._model, self._calibration, self._scores, threshold, self._embedder)

    def with_validation(self, texts: Sequence[str], share: float = FALSE_HANDOVERS) -> "Router":
        """This router with a threshold from the validation questions ``texts``, which are about known labels."""
        if not len(self._scores) or not len(texts):
            return self
        scores = np.sort(np.array([route.known for route in self.route(texts)], dtype=np.float32))
        return Router(self._model, self._calibration, scores, 0.0, self._embedder).with_handover_share(share)

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
                self.labels[label] if known[row] >= self.threshold else None,
                self.labels[label],
                float(known[row]),
                float(probabilities[row, label]),
                float(np.clip(evidence.kinds[row, label, 1], 0, 1)),
            )
            for row, label in enumerate(best)
        ]

    def out_of_fold(self, texts: Sequence[str], labels: Sequence[str], clusters: Sequence[str]) -> list[Route]:
        """The routes of the training rows, each by a model that was not trained on the row's cluster.

        They are as often wrong or None as those of live questions. Calibration and threshold are this router's. With a single
        cluster, no such model is possible, and this is ``route``.
        """
        from sklearn.model_selection import GroupKFold

        folds = min(_FOLDS, len(set(clusters)))
        if folds < 2:
            return self.route(texts)
        routes: dict[int, Route] = {}
        vectors = _embed(self._embedder, texts)
        splits = GroupKFold(folds, shuffle=True, random_state=0).split(texts, groups=list(clusters))
        for train, held_out in splits:
            given = ([values[i] for i in train] for values in (texts, labels, clusters))
            rows = _questions(*given, self._embedder, None if vectors is None else vectors[train])
            fold = Router(EvidenceModel.fit(rows), self._calibration, self._scores, self.threshold, self._embedder)
            asked = [texts[i] for i in held_out]
            routes |= zip(held_out, fold._route(asked, None if vectors is None else vectors[held_out]), strict=True)
        return [routes[row] for row in range(len(texts))]

    def save(self, folder: Path) -> None:
        """Writes ``router.json`` (labels, vocabularies, threshold, embedding model) and ``router.safetensors`` (arrays)."""
        from safetensors.numpy import save_file

        description = {
            "labels": self.labels,
            "vocabularies": self._model.vocabularies,
            "threshold": self.threshold,
            "embedder": self._embedder and {"name": self._embedder.name, "sha256": self._embedder.sha256},
        }
        learnt = {
            "calibration.chooser": self._calibration.chooser,
            "calibration.known": self._calibration.known,
            "scores": self._scores,
        }
        with atomic_folder(folder) as temporary:
            (temporary / _DESCRIPTION).write_text(json.dumps(description))
            arrays = {name: np.ascontiguousarray(array) for name, array in (self._model.arrays | learnt).items()}
            save_file(arrays, temporary / _ARRAYS)

    @classmethod
    def load(cls, folder: Path) -> "Router":
        """Loads the router that ``save`` wrote into ``folder``.

        Raises PipelineError if its embedding model is missing or is another one.
        """
        from safetensors.numpy import load_file

        description: dict[str, Any] = json.loads((folder / _DESCRIPTION).read_text())
        arrays = load_file(folder / _ARRAYS)
        chooser, known, scores = (arrays.pop(name) for name in ("calibration.chooser", "calibration.known", "scores"))
        model = EvidenceModel(description["labels"], arrays, description["vocabularies"])
        embedder = _same_embedder(description["embedder"], folder)
        return cls(model, Calibration(chooser, known), scores, description["threshold"], embedder)


def _questions(
    texts: Sequence[str],
    labels: Sequence[str],
    clusters: Sequence[str],
    embedder: Embedder | None,
    vectors: np.ndarray | None = None,
) -> LabelledQuestions:
    """The questions that a model is trained on, with their embeddings, unless ``vectors`` are those of ``texts``."""
    chosen = select_questions(texts, labels, clusters)
    columns = (np.array([values[i] for i in chosen], dtype=object) for values in (texts, labels, clusters))
    questions = LabelledQuestions(*columns, None if vectors is None else vectors[chosen])
    if vectors is not None or embedder is None:
        return questions
    return LabelledQuestions(
        questions.texts, questions.labels, questions.clusters, _embed(embedder, questions.texts.tolist())
    )


def _embed(embedder: Embedder | None, texts: Sequence[str]) -> np.ndarray | None:
    """Embeddings as a router stores them: rounded to float16, so that a loaded router computes what a new one does."""
    return None if embedder is None else embedder.embed(texts).astype(np.float16).astype(np.float32)


def _known_scores(scores: TrialScores | None) -> np.ndarray:
    """The sorted probabilities of the trials' known questions whose labels were not cut down, float32."""
    if scores is None:
        return np.zeros(0, dtype=np.float32)
    return np.sort(scores.known[scores.is_known & ~scores.cut]).astype(np.float32)


def _same_embedder(named: dict[str, str] | None, folder: Path) -> Embedder | None:
    if named is None:
        return None
    embedder = Embedder(named["name"])
    if embedder.sha256 != named["sha256"]:
        raise PipelineError(
            f"The embedding model {named['name']} is not the one that the router in {folder} was trained with.",
            "Materialise 'router' again, and train adapters that have their own router again.",
        )
    return embedder
