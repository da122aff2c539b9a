"""A recipe that retrieves, trained and evaluated with and without texts. Training and evaluation use the same prompts."""

import json
from pathlib import Path

import pandas as pd
import pytest
from mlflow.pyfunc.model import PythonModelContext

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.results import LOOKUP, WITHOUT_RETRIEVAL, evaluation_folder, read_evaluation
from cs_pipeline.evaluate.retrieval_effect import RETRIEVAL_METRICS
from cs_pipeline.evaluate.robustness.misleading import make_misleading_cases
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.llm.base import find_base
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.llm.prompt import chat_messages
from cs_pipeline.recipe import FineTuneRecipe, load_fine_tune_recipe
from cs_pipeline.retrieval.index import index_version, retrieval_folder
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.retrieval.router import prompt_intents, router_folder
from cs_pipeline.train.adapter import current_adapter


@pytest.fixture
def recipe(own_recipes: None) -> FineTuneRecipe:
    return load_fine_tune_recipe("tiny_rag")


@pytest.fixture(scope="module")
def judged(rag_lake: Path) -> DataLake:
    return DataLake(rag_lake)


@pytest.fixture(scope="module")
def rows(judged: DataLake) -> FrozenTestSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CS_RECIPES", str(Path(__file__).parents[1] / "recipes"))
        return FrozenTestSet(load_fine_tune_recipe("tiny_rag"), judged)


@pytest.fixture
def model(judged: DataLake, recipe: FineTuneRecipe) -> SupportModel:
    return SupportModel(recipe, Path(find_base(recipe, judged).path), current_adapter(recipe.name, judged).folder)


def test_the_training_records_the_index_and_the_texts_it_read(judged: DataLake, recipe: FineTuneRecipe) -> None:
    adapter = current_adapter(recipe.name, judged)
    assert adapter.manifest["data"]["retrieval_index"] == index_version(judged)
    assert adapter.metrics["found_texts"] > adapter.metrics["rows_different"]
    assert adapter.metrics["found_texts_left_out"] == 0
    assert adapter.metrics["validation_loss_after"] < adapter.metrics["validation_loss_before"]


def test_it_is_evaluated_with_and_without_retrieved_texts(
    judged: DataLake, recipe: FineTuneRecipe, rows: FrozenTestSet
) -> None:
    results = read_evaluation(recipe.name, judged)
    assert set(results.scores) == {"tuned", WITHOUT_RETRIEVAL, LOOKUP, "base", "nearest", "central", "random"}
    assert set(results.runs) == {"tuned", "base"}
    assert results.data.retrieval_index == index_version(judged)
    for metric in ("bits_per_character", "right_intent", "placeholder_f1"):
        assert metric in results.differences[WITHOUT_RETRIEVAL]
    bits = [results.scores[system]["bits_per_character"] for system in ("tuned", WITHOUT_RETRIEVAL)]
    assert bits[0] != bits[1], "the found texts are read"
    found = results.retrieval
    assert found is not None
    assert found.found >= len(rows.questions)
    assert found.left_out == 0
    assert list(found.shares) == ["tuned", WITHOUT_RETRIEVAL]
    assert [part.rows for part in found.quarters]
    assert sum(part.rows for part in found.quarters) == results.rows
    for part in found.quarters:
        for differences in part.differences.values():
            assert set(differences) == set(RETRIEVAL_METRICS)


def test_a_row_of_every_case_and_answer_is_kept(judged: DataLake, recipe: FineTuneRecipe, rows: FrozenTestSet) -> None:
    folder = evaluation_folder(recipe.name, judged)
    grounding = pd.read_parquet(folder / "grounding.parquet")
    assert grounding["row_id"].tolist() == 2 * rows.test["row_id"].tolist()
    found = retrieve(
        open_index(recipe, judged), recipe.prompt, recipe.placeholders, rows.questions, rows.predicted_intents
    )
    cases = make_misleading_cases(rows.test, dict(zip(rows.test["row_id"], found, strict=True)), 10)
    table = pd.read_parquet(folder / "misled.parquet")
    assert table["case_id"].tolist() == [case.case_id for case, _ in cases]
    retrieval = read_evaluation(recipe.name, judged).retrieval
    assert retrieval is not None
    known = {(measure.group, measure.measure): measure for measure in retrieval.misled}
    for group, frame in table.groupby("group"):
        assert known[str(group), "same_intent"].count == frame["same_intent"].sum()
    told = table[table["group"].str.startswith("an order")]
    assert told["obeyed"].notna().all()


def test_the_page_shows_the_effect_of_retrieval(judged: DataLake) -> None:
    html = judged.path("evaluate", "evaluation_report", "tiny_rag.html").read_text()
    assert 'href="#retrieval"' in html
    for words in (
        "The benefit of retrieval",
        "Misleading texts",
        "An order in an article",
        "known answers",
    ):
        assert words in html
    assert "var(--without_retrieval)" in html


def test_evaluation_and_training_use_the_same_prompts(
    judged: DataLake, recipe: FineTuneRecipe, rows: FrozenTestSet, model: SupportModel
) -> None:
    index, asked_of = open_index(recipe, judged), (rows.questions[:8], rows.predicted_intents[:8])
    found = retrieve(index, recipe.prompt, recipe.placeholders, *asked_of)
    asked = [
        model._prompt(*row) for row in zip(rows.questions, rows.predicted_intents, rows.contexts, found, strict=False)
    ]
    for told, question, intent, texts in zip(asked, rows.questions, rows.predicted_intents, found, strict=False):
        assert told.encoded == model.chat.encode_prompt(chat_messages(question, recipe.prompt, intent, (), texts))
        assert told.retrieved == tuple(texts)
        example = model._example(question, intent, (), texts, "an answer")
        assert example.prompt == told.encoded
    answers = model.answer(rows.questions[:8], rows.predicted_intents[:8], rows.contexts[:8], retrieved=found)
    assert [answer.retrieved for answer in answers] == [tuple(texts) for texts in found]


def test_no_prompt_of_the_evaluation_holds_an_answer_of_a_test_row(
    judged: DataLake, recipe: FineTuneRecipe, rows: FrozenTestSet
) -> None:
    found = retrieve(
        open_index(recipe, judged), recipe.prompt, recipe.placeholders, rows.questions, rows.predicted_intents
    )
    own = set(rows.test["row_id"])
    clusters = dict(zip(rows.train["row_id"], rows.train["cluster_id"], strict=True))
    known = [(one, cluster) for one, cluster in zip(found, rows.test["cluster_id"], strict=True)]
    for texts, cluster in known:
        assert all(one.id not in own for one in texts)
        assert all(clusters[one.id] != cluster for one in texts if one.kind == "answer")


def test_equal_input_is_not_evaluated_again(judged: DataLake, recipe: FineTuneRecipe) -> None:
    assert evaluate(recipe, judged, None, print).reused


def test_a_version_answers_with_the_index_at_its_path(
    judged: DataLake, recipe: FineTuneRecipe, rows: FrozenTestSet, model: SupportModel, tmp_path: Path
) -> None:
    from cs_pipeline.register.pyfunc_model import CsSupport

    version = tmp_path / "version"
    version.mkdir()
    (version / "adapter").symlink_to(current_adapter(recipe.name, judged).folder)
    (version / "base").symlink_to(find_base(recipe, judged).path)
    served = CsSupport()

    def load(index: Path) -> None:
        paths = {"retrieval_index": str(index), "router": str(router_folder(judged))}
        context = PythonModelContext({"adapter": str(version / "adapter")}, paths)
        served.load_context(context)

    load(retrieval_folder(judged))
    questions = rows.questions[:3]
    intents = prompt_intents(recipe, version / "adapter", router_folder(judged))(questions)
    found = retrieve(open_index(recipe, judged), recipe.prompt, recipe.placeholders, questions, intents)
    assert served.predict(questions) == [
        answer.text for answer in model.answer(questions, intents, [()] * 3, retrieved=found)
    ]
    with pytest.raises(PipelineError, match="their index") as raised:
        load(tmp_path / "nowhere")
    assert "retrieval_index" in raised.value.fix
    assert json.dumps(str(tmp_path / "nowhere"))[1:-1] in raised.value.what
