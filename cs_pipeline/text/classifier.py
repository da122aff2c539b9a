"""A text classifier that trains in seconds: TF-IDF and multinomial logistic regression. It is saved without pickle."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cs_pipeline.core.lake import atomic_folder

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

Features = Literal["characters", "words"]


class TextClassifier:
    """Predicts a label and a confidence for a text.

    The features ``characters`` (n-grams of 2 to 4 characters inside words) tolerate typos and suit questions; ``words``
    (unigrams and bigrams) are ten times faster on answers.
    """

    def __init__(self, features: Features, vectorizer: "TfidfVectorizer", model: "LogisticRegression") -> None:
        self._features: Features = features
        self._vectorizer = vectorizer
        self._model = model

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[str], features: Features) -> "TextClassifier":
        """Trains on ``texts`` and their ``labels``. The same input gives the same weights."""
        from sklearn.linear_model import LogisticRegression

        vectorizer = _vectorizer(features)
        model = LogisticRegression(C=10, max_iter=300, tol=1e-3)
        model.fit(vectorizer.fit_transform(texts), np.asarray(labels))
        return cls(features, vectorizer, model)

    def predict(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """The most probable label of each text, and its probability as an array of shape [texts]."""
        if not texts:
            return [], np.zeros(0)
        probabilities = self._model.predict_proba(self._vectorizer.transform(texts))
        return self._model.classes_[probabilities.argmax(axis=1)].tolist(), probabilities.max(axis=1)

    def save(self, folder: Path) -> None:
        """Writes ``classifier.json`` (labels, vocabulary) and ``classifier.safetensors`` (weights) into ``folder``."""
        from safetensors.numpy import save_file

        with atomic_folder(folder) as temporary:
            vocabulary = sorted(self._vectorizer.vocabulary_, key=self._vectorizer.vocabulary_.__getitem__)
            description = {
                "features": self._features,
                "labels": self._model.classes_.tolist(),
                "vocabulary": vocabulary,
            }
            (temporary / "classifier.json").write_text(json.dumps(description))
            arrays = {
                "idf": self._vectorizer.idf_,
                "coefficients": np.ascontiguousarray(self._model.coef_),
                "intercepts": self._model.intercept_,
            }
            save_file(arrays, temporary / "classifier.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "TextClassifier":
        """Loads the classifier that ``save`` wrote into ``folder``."""
        from safetensors.numpy import load_file
        from sklearn.linear_model import LogisticRegression

        description = json.loads((folder / "classifier.json").read_text())
        arrays = load_file(folder / "classifier.safetensors")
        vectorizer = _vectorizer(description["features"], description["vocabulary"])
        vectorizer.idf_ = arrays["idf"]
        model = LogisticRegression()
        model.classes_ = np.array(description["labels"])
        model.coef_, model.intercept_ = arrays["coefficients"], arrays["intercepts"]
        model.n_features_in_ = len(description["vocabulary"])
        return cls(description["features"], vectorizer, model)


def _vectorizer(features: Features, vocabulary: list[str] | None = None) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    if features == "characters":
        return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, vocabulary=vocabulary)
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=vocabulary)
