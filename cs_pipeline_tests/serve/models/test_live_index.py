"""What the server looks up: always in the index that lies in the lake."""

from pathlib import Path

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import PASSAGE
from cs_pipeline.recipe import Prompt, Retrieve, load_recipe
from cs_pipeline.retrieval.index import build_index, forget_rows, index_lock, retrieval_folder
from cs_pipeline.serve.models.live_index import LiveIndex
from cs_pipeline.serve.models.refusals import NotReady
from cs_pipeline_tests.conftest import RECIPES, copy_lake

QUESTION = "I want a new password"


@pytest.fixture
def lake(champion_lake: Path, tmp_path: Path) -> DataLake:
    """A lake with an index of its own training rows."""
    lake = copy_lake(champion_lake, tmp_path / "lake")
    lake.write("prepare", "knowledge_base", PASSAGE.empty_table(), PASSAGE)
    build_index(lake)
    return lake


def test_a_forgotten_row_is_found_no_more(lake: DataLake) -> None:
    knowledge = LiveIndex(lake)
    first, second = knowledge.look_up(QUESTION, Retrieve(answers=2, passages=0))
    index = knowledge.index()
    assert knowledge.index() is index, "what did not change is not loaded again"
    with index_lock(lake):
        forget_rows(lake, [first.id])
    (now,) = knowledge.look_up(QUESTION, Retrieve(answers=1, passages=0))
    assert (now.id, now.text) == (second.id, second.text)


def test_without_an_index_and_with_a_damaged_one(
    lake: DataLake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS_RECIPES", str(RECIPES))
    reads_nothing = load_recipe("tiny")
    reads = reads_nothing.model_copy(update={"prompt": Prompt(retrieve=Retrieve(answers=0, passages=1))})
    knowledge = LiveIndex(lake)
    assert knowledge.told(QUESTION, None, reads) == []
    (retrieval_folder(lake) / "answers.parquet").write_bytes(b"")
    moved = retrieval_folder(lake).rename(lake.path("elsewhere"))
    for _ in range(2):
        with pytest.raises(NotReady, match="their index is not there"):
            knowledge.told(QUESTION, None, reads)
        assert knowledge.look_up(QUESTION, Retrieve(answers=1, passages=0)) == []
    assert caplog.text.count("no retrieval index") == 1
    moved.rename(retrieval_folder(lake))
    with pytest.raises(NotReady):
        knowledge.told(QUESTION, None, reads)
    assert "answers.parquet was changed" in caplog.text
    assert knowledge.told(QUESTION, None, reads_nothing) == [], "who retrieves nothing needs no index"
