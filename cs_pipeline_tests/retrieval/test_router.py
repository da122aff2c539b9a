"""The router: what it knows, what it says it does not know, and that a saved one is the same."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.router import SHOPS
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.prepare.router import calibration_error
from cs_pipeline.retrieval.embedder import Embedder
from cs_pipeline.retrieval.evidence import (
    MAX_ROWS_OF_LABEL,
    EvidenceModel,
    LabelledQuestions,
    select_questions,
    small_labels,
)
from cs_pipeline.retrieval.router import NO_SUBJECT, Router
from cs_pipeline_tests.retrieval.test_embedder import tiny_model

Columns = tuple[list[str], list[str], list[str]]

LEFT_OUT = ("cancel_order", "delete_account", "get_invoice", "newsletter_subscription", "review")


def columns(rows: pd.DataFrame) -> Columns:
    return rows["instruction"].tolist(), rows["intent"].tolist(), rows["cluster_id"].tolist()


@pytest.fixture(scope="module")
def rows(prepared: Path) -> pd.DataFrame:
    """Bitext's rows of the sample, with their clusters and splits."""
    return DataLake(prepared).read("prepare", "bitext_splits").to_pandas()


@pytest.fixture(scope="module")
def train(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["split"] == "train"]


@pytest.fixture(scope="module")
def router(train: pd.DataFrame) -> Router:
    return Router.fit(*columns(train))


def none_share(router: Router, questions: Sequence[str]) -> float:
    return float(np.mean([route.label is None for route in router.route(questions)]))


def test_questions_about_labels_that_it_does_not_know_get_none(rows: pd.DataFrame) -> None:
    """A fifth of the clusters and five intents are kept from training."""
    is_unknown = rows["intent"].isin(LEFT_OUT)
    clusters = sorted(rows["cluster_id"].unique())
    is_test = rows["cluster_id"].isin(clusters[::5])
    router = Router.fit(*columns(rows[~is_unknown & ~is_test]))
    known, unknown = rows[~is_unknown & is_test], rows[is_unknown]
    routes = router.route(known["instruction"].tolist())
    right = np.array([route.best for route in routes], dtype=object) == known["intent"].to_numpy()
    error = calibration_error(np.array([route.probability for route in routes]), right)
    assert right.mean() > 0.9
    assert error is not None
    assert error < 0.1  # 150 questions
    assert none_share(router, known["instruction"].tolist()) < 0.12
    assert none_share(router, unknown["instruction"].tolist()) > 0.5
    assert none_share(router, read_yaml(SHOPS)["bicycles"]["foreign"][-5:]) == 1.0
    assert all(0 <= value <= 1 for route in routes for value in (route.known, route.probability, route.similarity))


def test_a_saved_router_is_the_same(router: Router, train: pd.DataFrame, tmp_path: Path) -> None:
    router.save(tmp_path / "router")
    assert {path.name for path in (tmp_path / "router").iterdir()} == {"router.json", "router.safetensors"}
    questions = [*train["instruction"][:50], "??", "", "unheard-of words"]
    loaded = Router.load(tmp_path / "router")
    assert loaded.route(questions) == router.route(questions)
    assert loaded.with_handover_share(0.3).route(questions) == router.with_handover_share(0.3).route(questions)
    assert loaded.unknown_handed_over == router.unknown_handed_over
    vocabularies = json.loads((tmp_path / "router" / "router.json").read_text())["vocabularies"]
    assert not any(" " in word.strip() for words in vocabularies.values() for word in words), "it holds texts"
    assert router.route([]) == []


def test_the_order_of_the_rows_has_no_effect(router: Router, train: pd.DataFrame, tmp_path: Path) -> None:
    router.save(tmp_path / "one")
    Router.fit(*columns(train[::-1])).save(tmp_path / "other")
    for path in (tmp_path / "one").iterdir():
        assert file_sha256(path) == file_sha256(tmp_path / "other" / path.name), path.name


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_with_few_labels_everything_is_known(labels: int, tmp_path: Path) -> None:
    texts = ["where is my parcel", "the parcel is late", "cancel my order", "stop it", "invoice please", "a bill"]
    given = texts[: 2 * labels], [name for name in "abc"[:labels] for _ in "12"], [*"123456"[: 2 * labels]]
    router = Router.fit(*given)
    assert [route.label for route in router.route(texts[: 2 * labels])] == given[1]
    assert {route.known for route in router.route([*texts, "??", ""])} == {1.0}
    assert router.unknown_handed_over is None
    assert len(router.out_of_fold(*given)) == 2 * labels
    assert router.with_validation(*given[:2]).route(texts) == router.route(texts)
    router.save(tmp_path / "router")
    assert Router.load(tmp_path / "router").route(texts) == router.route(texts)


def test_nothing_and_no_subject_are_no_labels() -> None:
    for given in ([], [], []), (["a question"], [NO_SUBJECT], ["c"]):
        with pytest.raises(ValueError, match="none with the label 'other'"):
            Router.fit(*given)


def test_the_share_of_questions_handed_over_can_be_chosen(router: Router, rows: pd.DataFrame) -> None:
    questions = rows[rows["split"] != "train"]["instruction"].tolist()
    shares = [none_share(router.with_handover_share(share), questions) for share in (0.0, 0.05, 0.2, 0.5)]
    assert shares == sorted(shares)
    assert shares[0] < 0.05 < shares[-1]
    assert router.route(questions) == router.with_handover_share(0.05).route(questions)


def test_validation_questions_move_the_threshold(router: Router, rows: pd.DataFrame) -> None:
    """Few of them say too little; enough of them replace the questions of the trials."""
    texts, labels, _ = columns(rows)
    few = router.with_validation(texts[:20], labels[:20], 0.05)
    assert few.thresholds[0] == pytest.approx(router.thresholds[0], rel=0.2)
    assert few.unknown_handed_over == pytest.approx(router.unknown_handed_over, abs=0.05)
    moved = router.with_validation(texts, labels, 0.1)
    assert none_share(moved, texts) == pytest.approx(0.1, abs=0.03)
    assert (moved.thresholds > router.thresholds).all()


def test_out_of_fold_no_model_has_seen_the_rows_cluster(router: Router, train: pd.DataFrame) -> None:
    """A label whose rows are all in one cluster is unknown to the model that routes them."""
    texts, labels, clusters = columns(train)
    texts, labels, clusters = [*texts, *["my kettle leaks"] * 3], [*labels, *["leaks"] * 3], [*clusters, *["own"] * 3]
    texts, labels, clusters = [*texts, "my kettle leaks, still"], [*labels, NO_SUBJECT], [*clusters, "own"]
    routes = Router.fit(texts[:-1], labels[:-1], clusters[:-1]).out_of_fold(texts, labels, clusters)
    assert len(routes) == len(texts)
    assert all(route.best != "leaks" for route in routes[-4:])
    assert NO_SUBJECT not in {route.best for route in routes}
    right = np.mean([route.best == label for route, label in zip(routes[:-4], labels[:-4], strict=True)])
    assert 0.85 < right < 1.0
    fitted = np.mean([one.best == label for one, label in zip(router.route(texts), labels, strict=True)][:-4])
    assert right < fitted


def test_a_company_subject_of_three_rows_beside_many_intents(rows: pd.DataFrame) -> None:
    shop = read_yaml(SHOPS)["coffee machines"]
    own = [(question, subject) for subject, questions in shop["known"].items() for question in questions]
    texts, labels, clusters = columns(rows)
    router = Router.fit(
        [*texts, *(question for question, _ in own)],
        [*labels, *(subject for _, subject in own)],
        [*clusters, *(question for question, _ in own)],
    )
    known = router.route([question for question, _ in own])
    assert [route.label for route in known] == [subject for _, subject in own]
    again = [(f"Good morning. {question}, please help", subject) for question, subject in own]
    routed = sum(
        route.label == subject for route, (_, subject) in zip(router.route([q for q, _ in again]), again, strict=True)
    )
    assert routed >= 27
    assert not {route.label for route in router.route(shop["foreign"][-5:])} & set(shop["known"])


def test_a_label_keeps_questions_of_many_clusters() -> None:
    clusters = ["one"] * MAX_ROWS_OF_LABEL + [f"other {number}" for number in range(9)]
    texts = [f"question {number}" for number in range(len(clusters))]
    chosen = select_questions(texts, ["a"] * len(texts), clusters)
    assert len(chosen) == MAX_ROWS_OF_LABEL
    assert {clusters[row] for row in chosen} == set(clusters)
    assert small_labels(np.array([1, 3, 100, 900])).tolist() == [1, 1, 0, 0]


def test_evidence_from_meaning_is_that_of_the_label() -> None:
    """Vectors of width 2: the label's nearest question, the mean of its questions, and its nearest question with answer."""
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    answers = np.array([[0, 1], [0, 0], [0, 0]], np.float32)
    texts, labels = np.array(["a b", "c d", "e f"], object), np.array(["x", "x", "y"], object)
    model = EvidenceModel.fit(LabelledQuestions(texts, labels, texts, vectors, answers))
    found = model.look_at(["g h"], np.array([[0, 1]], np.float32))
    assert found.kinds[0, :, 5] == pytest.approx([1.0, 0.8], abs=1e-3)
    assert found.of_small[0] == pytest.approx(np.array([[np.sqrt(0.5), 1.0], [0.8, 0.0]]), abs=1e-3)
    leads = found.of_labels(np.array([0]))[0, 12:14]
    assert leads == pytest.approx([np.sqrt(0.5) - 0.8, 1.0], abs=1e-3), "over the other small label"


def test_a_saved_router_of_another_release_is_refused(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path / "router")
    file = tmp_path / "router" / "router.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    with pytest.raises(PipelineError, match="was written by another release"):
        Router.load(tmp_path / "router")


def test_thresholds_of_small_labels_lie_between_both_limits(router: Router) -> None:
    sizes = np.array([3, 10, 17, 18, 100])
    model = EvidenceModel(list("abcde"), {"sizes": sizes}, {})
    low, *between, large, largest = Router(model, router._calibration, router._scores, (0.2, 0.8), None).thresholds
    assert (low, large, largest) == (0.8, 0.2, 0.2)
    assert 0.8 > between[0] > between[1] > 0.5


def test_a_router_with_an_embedding_model(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows = rows[rows["intent"].isin(LEFT_OUT)].groupby("intent").head(10)
    model = tiny_model(tmp_path / "model", seed=0)
    router = Router.fit(*columns(rows), Embedder(str(model)), rows["response"].tolist())
    router.save(tmp_path / "router")
    questions = rows["instruction"].tolist()[:20]
    assert Router.load(tmp_path / "router").route(questions) == router.route(questions)
    assert len(router.out_of_fold(*columns(rows), rows["response"].tolist())) == len(rows)
    tiny_model(model, seed=1)
    with pytest.raises(PipelineError, match="is not the one that the router"):
        Router.load(tmp_path / "router")


@pytest.mark.parametrize("labels", [16, 1, 3])
def test_too_few_questions_for_trials_leave_everything_known(labels: int) -> None:
    """With one question per label, or one cluster for all, no trial has anything to ask."""
    texts = [f"question {number} about thing{number}" for number in range(16)]
    named = [f"label {number % labels}" for number in range(16)]
    for clusters in (texts, ["one"] * 16):
        router = Router.fit(texts, named, clusters)
        assert [route.label for route in router.route(texts)] == named
