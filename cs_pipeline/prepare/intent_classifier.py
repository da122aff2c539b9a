"""Two intent classifiers, trained on Bitext's training split: one for questions and one for answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, file_sha256, read_json, write_json
from cs_pipeline.text.classifier import TextClassifier

INTENTS, ANSWERS = "intent_classifier", "answer_classifier"
"""The folders of the classifier for questions and the classifier for answers, in prepare."""


@dataclass(frozen=True)
class TrainedClassifier:
    """The classifier for questions. ``version`` is a hash of its files, ``intents`` the number of its labels.

    ``test_accuracy`` is the share of the ``test_rows`` whose intent it predicts correctly.
    """

    folder: Path
    version: str
    intents: int
    test_accuracy: float
    test_rows: int


def train_classifiers(lake: DataLake) -> TrainedClassifier:
    """Trains both classifiers on the training split of ``bitext_splits``. Saves them, and the accuracy on the test split."""
    rows = lake.read("prepare", "bitext_splits", ["instruction", "response", "intent", "split"]).to_pandas()
    train, test = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
    intents = train["intent"].tolist()
    TextClassifier.fit(train["response"].tolist(), intents, "words").save(lake.path("prepare", ANSWERS))
    classifier = TextClassifier.fit(train["instruction"].tolist(), intents, "characters")
    folder = lake.path("prepare", INTENTS)
    classifier.save(folder)
    predicted, _ = classifier.predict(test["instruction"].tolist())
    accuracy = float((test["intent"] == predicted).mean())
    write_json(_quality_file(lake), {"test_accuracy": accuracy, "test_rows": len(test)})
    version = digest({path.name: file_sha256(path) for path in sorted(folder.iterdir())})
    return TrainedClassifier(folder, version, rows["intent"].nunique(), accuracy, len(test))


def load_classifier(lake: DataLake, name: str) -> TextClassifier:
    """The classifier in the folder ``name``. Raises PipelineError if it has not been trained yet."""
    folder = lake.path("prepare", name)
    if not folder.exists():
        raise PipelineError(f"{folder} does not exist.", "Materialise 'intent_classifier' first, or run make demo.")
    return TextClassifier.load(folder)


def classifier_quality(lake: DataLake) -> dict[str, Any]:
    """The results of ``train_classifiers`` on the test split: ``test_accuracy`` (0 to 1) and ``test_rows``."""
    quality: dict[str, Any] = read_json(_quality_file(lake))
    return quality


def _quality_file(lake: DataLake) -> Path:
    return lake.path("prepare", f"{INTENTS}.json")
