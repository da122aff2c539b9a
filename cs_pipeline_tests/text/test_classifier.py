"""The text classifier: accuracy and storage."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.splits.split import Split
from cs_pipeline.text.classifier import Features, TextClassifier

Texts = tuple[list[str], list[str]]


@pytest.fixture(scope="module")
def questions() -> Texts:
    """Questions of the project's own grammar and their 27 intents."""
    rows = sample_rows(810)
    return rows["instruction"].tolist(), rows["intent"].tolist()


@pytest.fixture(scope="module")
def fitted(questions: Texts) -> TextClassifier:
    return TextClassifier.fit(*questions, "characters")


def accuracy(predicted: list[str], labels: list[str]) -> float:
    return sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(labels)


def test_it_learns_and_returns_probabilities(fitted: TextClassifier, questions: Texts) -> None:
    texts, labels = questions
    predicted, confidence = fitted.predict(texts)
    assert accuracy(predicted, labels) > 0.98
    assert confidence.shape == (810,)
    assert (confidence > 1 / 27).all()
    assert (confidence <= 1).all()
    wrong = np.array([a != b for a, b in zip(predicted, labels, strict=True)])
    assert not wrong.any() or confidence[wrong].mean() < confidence[~wrong].mean()
    _, unsure = fitted.predict(["zzz", ""])
    assert (unsure < 0.2).all()


def test_typos_are_tolerated(fitted: TextClassifier, questions: Texts) -> None:
    random = Random(0)
    texts, labels = zip(*random.sample(list(zip(*questions, strict=True)), 200), strict=True)
    misspelt = []
    for text in texts:
        index = random.randrange(len(text))
        misspelt.append(text[:index] + random.choice("qxz") + text[index + 1 :])
    assert accuracy(fitted.predict(misspelt)[0], list(labels)) > 0.95


@pytest.mark.parametrize("features", ["characters", "words"])
@pytest.mark.parametrize("labels", [27, 2])
def test_a_loaded_classifier_equals_the_saved_one(
    features: Features, labels: int, questions: Texts, tmp_path: Path
) -> None:
    kept = sorted(set(questions[1]))[:labels]
    texts, intents = zip(*(pair for pair in zip(*questions, strict=True) if pair[1] in kept), strict=True)
    model = TextClassifier.fit(texts, intents, features)
    model.save(tmp_path / "model")
    loaded = TextClassifier.load(tmp_path / "model")
    other = [*questions[0], "", "été \U0001f642", "quite another thing"]
    names, confidence = model.predict(other)
    names_again, confidence_again = loaded.predict(other)
    assert names_again == names
    assert set(names) <= set(kept)
    np.testing.assert_array_equal(confidence_again, confidence)
    loaded.save(tmp_path / "again")
    for name in ("classifier.json", "classifier.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_equal_input_gives_equal_files_without_pickle(questions: Texts, fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "a")
    TextClassifier.fit(*questions, "characters").save(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["classifier.json", "classifier.safetensors"]
    for name in files:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert content[:1] == b"{" or content[8:9] == b"{", "JSON, or the JSON header of safetensors"


def test_saving_replaces_existing_files(fitted: TextClassifier, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("from an earlier version")
    fitted.save(tmp_path / "model")
    assert not (tmp_path / "model" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_texts_give_empty_results(fitted: TextClassifier) -> None:
    names, confidence = fitted.predict([])
    assert names == []
    assert confidence.shape == (0,)


def test_accuracy_on_bitext(split_bitext: Split) -> None:
    frame = split_bitext.rows.select(["instruction", "intent", "split"]).to_pandas()
    train, test = frame[frame["split"] == "train"], frame[frame["split"] == "test"]
    model = TextClassifier.fit(train["instruction"].tolist(), train["intent"].tolist(), "characters")
    predicted, _ = model.predict(test["instruction"].tolist())
    assert accuracy(predicted, test["intent"].tolist()) >= 0.99
