"""A cascade of a look-up and a tiny model: its threshold, its answers, and the whole way to the registry and the server."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.cascade import NEVER, build_cascade, choose_threshold
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.evaluate.results import evaluation_folder
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.recipe import CascadeRecipe, PromptSettings, RetrievalSettings, load_recipe, read_recipe
from cs_pipeline.register.version import ask_version, register
from cs_pipeline.retrieval.lookup import CascadeModel, LookupModel, load_contender, write_threshold
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.serve.models.generation import KnownAnswer, WrittenAnswer
from cs_pipeline.serve.models.jobs import Sampling
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.tracking import get_version, open_store
from cs_pipeline.train.adapter import Adapter, find_adapter, seen_rows
from cs_pipeline_tests.conftest import RECIPES, copy_lake

KNOWN, UNKNOWN = "where is my refund?", "zzz qqq xxx"


def cascade() -> CascadeRecipe:
    recipe = load_recipe("tiny_cascade")
    assert isinstance(recipe, CascadeRecipe)
    return recipe


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS_RECIPES", str(RECIPES))


@pytest.fixture(scope="module")
def lake(champion_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    return copy_lake(champion_lake, tmp_path_factory.mktemp("cascade") / "lake")


@pytest.fixture(scope="module")
def built(lake: DataLake) -> Adapter:
    return build_cascade(cascade(), lake, print)


@pytest.mark.parametrize(
    ("similarities", "looked_up", "written", "threshold"),
    [
        ([0.9, 0.7, 0.5, 0.3], [1, 1, 0, 0], [0, 0, 1, 1], 0.7),
        ([0.9, 0.7, 0.5, 0.3], [1, 1, 1, 1], [0, 0, 0, 0], 0.3),
        ([0.9, 0.7, 0.5, 0.3], [0, 0, 0, 0], [1, 1, 1, 1], NEVER),
        ([0.9, 0.7, 0.5, 0.3], [1, 1, 1, 1], [1, 1, 1, 1], 0.3),  # equally good: copying costs nothing
        ([0.9, 0.9, 0.5], [1, 0, 0], [0.4, 0.4, 1], 0.9),
        ([0.9, 0.0], [1, 0], [0, 1], 0.9),  # no known answer at all
        ([0.0, 0.0], [0, 0], [0, 0], NEVER),
    ],
)
def test_the_threshold_gives_the_best_answers(
    similarities: list[float], looked_up: list[float], written: list[float], threshold: float
) -> None:
    assert choose_threshold(np.array(similarities), np.array(looked_up), np.array(written)) == threshold


def test_a_cascade_is_made_of_its_models_adapter_and_a_threshold(lake: DataLake, built: Adapter) -> None:
    model = find_adapter(load_recipe("tiny"), lake)
    assert model is not None
    assert built.manifest["model"] == model.fingerprint
    assert built.manifest["base"] == model.manifest["base"]
    assert not built.is_lookup
    assert seen_rows(built.folder).equals(seen_rows(model.folder))
    assert read_recipe(built.folder / "recipe.yaml") == cascade()
    assert 0 < built.metrics["min_similarity"] < 1  # the tiny model writes nonsense
    assert built.metrics["looked_up_share"] > 0.5
    assert find_adapter(cascade(), lake) == built  # equal input is reused
    stricter = cascade().model_copy(update={"validation_rows": 30})
    assert find_adapter(stricter, lake) is None


def test_each_question_is_answered_by_the_lookup_or_by_the_model(lake: DataLake, built: Adapter) -> None:
    recipe = cascade()
    base = lake.path("train", "base_model")
    contender = load_contender(recipe, next(path for path in base.iterdir() if path.is_dir()), built.folder)
    assert isinstance(contender, CascadeModel)
    rows = lake.read("prepare", "test_split", ["instruction", "predicted_intent"]).slice(0, 8).to_pydict()
    questions, intents = rows["instruction"], rows["predicted_intent"]
    retrieved = retrieve(open_index(recipe, lake), recipe.prompt, recipe.placeholders, questions, intents)
    similarities = sorted(texts[0].similarity for texts in retrieved)
    contender.lookup.min_similarity = similarities[4]
    done: list[int] = []
    answers = contender.answer(questions, intents, [()] * 8, done.append, retrieved)
    by_model = contender.model.answer(questions, intents, [()] * 8)
    always = LookupModel(recipe, 0.0).answer(questions, intents, [()] * 8, retrieved=retrieved)
    for texts, answer, copied, written in zip(retrieved, answers, always, by_model, strict=True):
        assert answer.text == (copied if texts[0].similarity >= similarities[4] else written).text
    assert done[-1] == 8
    assert contender.has_room(questions[0], intents[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": PromptSettings(retrieve=RetrievalSettings(answers=1, passages=0))}, "prompt.route: intent"),
        ({"placeholders": PlaceholderMode.GENERIC}, "placeholders: keep"),
    ],
)
def test_a_cascade_that_reads_other_texts_than_its_model_is_refused(
    lake: DataLake, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(PipelineError, match="do not get the same texts") as error:
        build_cascade(cascade().model_copy(update=change), lake, print)
    assert reason in error.value.fix


def test_a_cascade_of_a_model_that_is_not_trained_says_so(lake: DataLake) -> None:
    with pytest.raises(PipelineError, match="the recipe 'tiny_lora' has no trained adapter"):
        find_adapter(cascade().model_copy(update={"model": "tiny_lora"}), lake)


def test_a_cascade_is_evaluated_registered_and_served(lake: DataLake, built: Adapter) -> None:
    recipe = cascade()
    results = evaluate(recipe, lake, None, print).results
    assert results.methods == {"tuned": "cascade"}
    assert results.scores["tuned"]["bits_per_character"] is None
    report = write_report(recipe, lake)
    assert "cascade" in report.path.read_text()
    answers = pd.read_parquet(evaluation_folder(recipe.name, lake) / "answers.parquet")
    assert set(answers["system"]) == {"tuned", "lookup", "nearest", "central", "random"}

    version = register(recipe, lake, "a run", [], report.path).version
    folder = get_version(open_store(lake), version).folder
    assert base_of_version(recipe, folder) == folder / "base"
    known, unknown = ask_version(version, [KNOWN, UNKNOWN], lake)

    service = ModelService(lake, 10**9, 10, 60, 0.1, id)
    try:
        while str(version) not in service.registry.names():
            pass
        looked_up = service.start(str(version), KNOWN, (), Sampling())
        assert isinstance(looked_up, KnownAnswer)
        assert looked_up.text() == known
        written = service.start(str(version), UNKNOWN, (), Sampling())
        assert isinstance(written, WrittenAnswer)
        assert written.text() == unknown
        assert not written.declined
        bare = service.start(f"{version}:base", KNOWN, (), Sampling())
        assert isinstance(bare, WrittenAnswer)
        bare.text()
    finally:
        service.close()


def test_a_changed_threshold_in_a_version_is_refused(lake: DataLake, built: Adapter) -> None:
    before = (built.folder / "lookup.json").read_text()
    write_threshold(built.folder, 0.1)
    with pytest.raises(PipelineError, match=r"lookup\.json was changed"):
        find_adapter(cascade(), lake)
    (built.folder / "lookup.json").write_text(before)
