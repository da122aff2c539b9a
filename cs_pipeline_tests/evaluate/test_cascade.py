"""A cascade of a look-up and a tiny model: its threshold, its answers and its adapter. serve/test_cascade.py serves one."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.cascade import build_cascade, check_prompts, choose_threshold
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.recipe import (
    CascadeRecipe,
    PromptSettings,
    RetrievalSettings,
    load_fine_tune_recipe,
    load_recipe,
    read_recipe,
)
from cs_pipeline.retrieval.lookup import NEVER, CascadeModel, LookupModel, load_contender, write_threshold
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.train.adapter import Adapter, find_adapter, seen_rows
from cs_pipeline_tests.conftest import RECIPES, copy_lake, run_job
from cs_pipeline_tests.evaluate.test_out_of_fold import add_twins


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


def test_the_threshold_does_not_count_answers_of_the_questions_own_conversation(
    champion_lake: Path, tmp_path: Path
) -> None:
    """Their training rows are more similar than any other, and their answers are worthless to everybody else."""
    lake = copy_lake(champion_lake, tmp_path / "lake")
    add_twins(lake)
    few = cascade().model_copy(update={"validation_rows": 10})
    found = build_cascade(few, lake, print)
    rows = FrozenTestSet(few, lake, "validation", 10)
    index = open_index(few, lake)
    asked = few.prompt, few.placeholders, rows.questions, rows.predicted_intents
    best = [texts[0].similarity for texts in retrieve(index, *asked, own_rows=rows.own_rows)]
    assert found.metrics["min_similarity"] in [*best, NEVER]
    assert found.metrics["min_similarity"] not in [texts[0].similarity for texts in retrieve(index, *asked)]


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


def test_a_model_that_retrieves_without_a_route_needs_a_cascade_without_one() -> None:
    model = load_fine_tune_recipe("tiny_rag")
    routed = cascade().model_copy(update={"prompt": model.prompt})
    check_prompts(routed, model)
    model = model.model_copy(update={"prompt": model.prompt.model_copy(update={"route": "none"})})
    with pytest.raises(PipelineError) as error:
        check_prompts(routed, model)
    assert "prompt.route: none" in error.value.fix


def test_a_cascade_of_a_model_that_is_not_trained_says_so(lake: DataLake) -> None:
    other = cascade().model_copy(update={"model": "tiny_lora"})
    with pytest.raises(
        PipelineError, match="'tiny_cascade' needs a model: 'tiny_lora' has no trained adapter"
    ) as error:
        find_adapter(other, lake)
    assert "cs-pipeline demo --recipe tiny_lora" in error.value.fix
    with pytest.raises(PipelineError, match="There is no recipe 'misspelt'"):
        find_adapter(cascade().model_copy(update={"model": "misspelt"}), lake)


def test_materialising_it_without_its_model_says_what_to_run_first(
    prepared: Path, small_csv: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "prepare", tmp_path / "lake" / "prepare")
    result = run_job(tmp_path / "lake", small_csv, ["base_model"], recipe="tiny_cascade")
    (failed,) = [event.event_specific_data for event in result.all_events if event.is_step_failure]
    assert "cs-pipeline demo --recipe tiny, then repeat this for 'tiny_cascade'" in str(failed)


def test_a_changed_threshold_in_a_version_is_refused(lake: DataLake, built: Adapter) -> None:
    before = (built.folder / "lookup.json").read_text()
    write_threshold(built.folder, 0.1)
    with pytest.raises(PipelineError, match=r"lookup\.json was changed"):
        find_adapter(cascade(), lake)
    (built.folder / "lookup.json").write_text(before)
