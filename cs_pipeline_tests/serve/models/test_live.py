"""The server always uses the index and the router that are in the lake now."""

import shutil
from pathlib import Path

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import PASSAGE
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.recipe import PromptSettings, RetrievalSettings, load_fine_tune_recipe
from cs_pipeline.retrieval.index import build_index, forget_rows, index_lock, retrieval_folder
from cs_pipeline.retrieval.router import Router, router_folder
from cs_pipeline.serve.models.jobs import NotReady
from cs_pipeline.serve.models.live import LiveIndex, LiveRouter
from cs_pipeline_tests.conftest import RECIPES, copy_lake

QUESTION = "I want a new password"


@pytest.fixture
def lake(champion_lake: Path, tmp_path: Path) -> DataLake:
    """A lake with an index of its training rows."""
    lake = copy_lake(champion_lake, tmp_path / "lake")
    lake.write("prepare", "knowledge_base", PASSAGE.empty_table(), PASSAGE)
    build_index(lake)
    return lake


def test_a_forgotten_row_is_no_longer_found(lake: DataLake) -> None:
    live_index = LiveIndex(lake)
    first, second = live_index.look_up(QUESTION, RetrievalSettings(answers=2, passages=0))
    index = live_index.index()
    assert live_index.index() is index, "an unchanged index is not reloaded"
    with index_lock(lake):
        forget_rows(lake, [first.id])
    (now,) = live_index.look_up(QUESTION, RetrievalSettings(answers=1, passages=0))
    assert (now.id, now.text) == (second.id, second.text)


def test_a_missing_or_damaged_index_is_reported(
    lake: DataLake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS_RECIPES", str(RECIPES))
    without_retrieval = load_fine_tune_recipe("tiny")
    reads = without_retrieval.model_copy(
        update={"prompt": PromptSettings(retrieve=RetrievalSettings(answers=0, passages=1))}
    )
    live_index = LiveIndex(lake)
    assert live_index.retrieve_for(reads, QUESTION, None) == []
    (retrieval_folder(lake) / "answers.parquet").write_bytes(b"")
    moved = retrieval_folder(lake).rename(lake.path("elsewhere"))
    for _ in range(2):
        with pytest.raises(NotReady, match="retrieval index, which is missing"):
            live_index.retrieve_for(reads, QUESTION, None)
        assert live_index.look_up(QUESTION, RetrievalSettings(answers=1, passages=0)) == []
    assert caplog.text.count("no retrieval index") == 1
    moved.rename(retrieval_folder(lake))
    with pytest.raises(NotReady):
        live_index.retrieve_for(reads, QUESTION, None)
    assert "answers.parquet was changed" in caplog.text
    assert live_index.retrieve_for(without_retrieval, QUESTION, None) == [], "a recipe without retrieval needs no index"


def test_a_new_router_is_used_at_once(tmp_path: Path) -> None:
    """Without a router no question is routed. A folder that cannot be read does not replace the router in use."""
    lake = DataLake(tmp_path / "lake")
    live_router, folder = LiveRouter(lake), router_folder(lake)
    assert live_router.route(QUESTION) is None
    rows = sample_rows(540)
    questions = rows["instruction"].tolist()
    router = Router.fit(questions, rows["intent"].tolist(), questions)
    router.save(folder)
    asked = [QUESTION, *(question[: len(question) // 2] for question in questions[::10])]
    expected = [(route.label, route.best) for route in router.route(asked)]
    assert [(route.label, route.best) for question in asked if (route := live_router.route(question))] == expected
    route = live_router.route(QUESTION)
    assert route is not None
    assert route.best == "recover_password"
    one_label = Router.fit(["where is it"], ["track_order"], ["a"])
    shutil.rmtree(folder)
    assert live_router.route(QUESTION) == route
    folder.mkdir()
    assert live_router.route(QUESTION) == route, "an incomplete folder"
    folder.rmdir()
    one_label.save(folder)
    assert live_router.route(QUESTION) == one_label.route([QUESTION])[0]
