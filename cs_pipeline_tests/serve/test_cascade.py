"""A cascade in use: the demo that makes it, API, streams, page, drafts, MLflow, rollback, and a forgotten conversation."""

from collections.abc import Iterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import openai
import pytest
from playwright.sync_api import Page, expect
from rich.console import Console

from cs_pipeline.cli.demo import run_demo
from cs_pipeline.company import company_file, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.cascade import build_cascade
from cs_pipeline.evaluate.results import read_evaluation
from cs_pipeline.forget import find_affected, forget_records
from cs_pipeline.prepare.router import train_router
from cs_pipeline.recipe import CascadeRecipe, load_recipe
from cs_pipeline.register.history import read_history
from cs_pipeline.register.lineage import trace_lineage
from cs_pipeline.register.promotion import roll_back
from cs_pipeline.register.version import ask_version
from cs_pipeline.retrieval.index import build_index
from cs_pipeline.retrieval.passages import read_knowledge
from cs_pipeline.serve.desk.handover import HandoverReason
from cs_pipeline.serve.models.jobs import Sampling
from cs_pipeline.tracking import FORGOTTEN, MODEL, get_version, open_store
from cs_pipeline.train.adapter import current_adapter, seen_rows
from cs_pipeline_tests.conftest import RECIPES, copy_lake, own_world
from cs_pipeline_tests.serve.conftest import STRICT
from cs_pipeline_tests.serve.page.test_page import ask, open_tab
from cs_pipeline_tests.serve.page.test_page import browser as browser  # the fixtures
from cs_pipeline_tests.serve.page.test_page import page as page
from cs_pipeline_tests.serve.page.test_page import visitor as visitor
from cs_pipeline_tests.support.serving import SURE, Serving, running_service, wait_for
from cs_pipeline_tests.support.versions import add_lookup, known_answer

UNKNOWN = "A puppy ate it, refund"
"""A question to which no known question is similar enough. An article is about it, so it is not handed over as unknown."""
ARTICLE = "# When a puppy ate it\n\nA refund is possible even if a puppy ate it.\n"
LOOKUP, CASCADE = 3, 4


@pytest.fixture(scope="module")
def demo(company_lake: Path, small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataLake, str]:
    """A lake whose champion is version 4, made by the demo of a cascade, and what the demo printed.

    Version 2 is the cascade's model, trained on rows of a company, and version 3 a look-up. Serving uses a strict gate.
    """
    folder, said = tmp_path_factory.mktemp("cascade"), StringIO()
    lake = copy_lake(company_lake, folder / "lake")
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with own_world(lake.root) as patch:
        for name, value in (("CS_RECIPES", RECIPES), ("CS_BITEXT", small_csv), ("DAGSTER_HOME", folder)):
            patch.setenv(name, str(value))
        article = lake.path("landing", "knowledge", "pets.md")
        article.parent.mkdir(parents=True, exist_ok=True)
        article.write_text(ARTICLE)
        read_knowledge(lake, load_company(lake))
        build_index(lake)
        assert add_lookup(lake) == LOOKUP
        run_demo("tiny_cascade", lake, Console(file=said, width=500))
        roll_back(lake, CASCADE, "the tests need a champion", "a test")
        settings = company_file(lake)
        settings.write_text(settings.read_text() + STRICT)
        train_router(lake, "")
    return lake, said.getvalue()


@pytest.fixture(scope="module")
def lake(demo: tuple[DataLake, str]) -> DataLake:
    return demo[0]


@pytest.fixture(scope="module")
def serving(lake: DataLake) -> Iterator[Serving]:
    with own_world(lake.root), Serving(lake) as serving:
        wait_for(serving.ready)
        yield serving


def is_champion(serving: Serving, version: int) -> bool:
    return bool(serving.get("/ready").json().get("champion") == version)


def test_the_demo_needs_the_model_first_and_shows_the_answers_of_the_cascade(demo: tuple[DataLake, str]) -> None:
    lake, said = demo
    assert "A cascade needs a model, so tiny comes first" in said
    assert "Registered: cs-support version 4" in said, "the model was trained before, so it is no new version"
    assert "Version 4 (tiny_cascade) is challenger: " in said
    assert said.count("  cascade: ") == said.count("  look-up: ") == 3
    assert "its answers are not for customers" in said
    results = read_evaluation("tiny_cascade", lake)
    assert results.methods["tuned"] == "cascade"
    assert results.scores["tuned"]["bits_per_character"] is None
    assert "base" not in results.scores
    not_passed = [check for check in trace_lineage(CASCADE, lake)["checks"] if not check["passed"]]
    assert [(check["name"], check["severity"]) for check in not_passed] == [("subjects_reviewed", "WARN")]


def test_the_api_gives_known_answers_with_their_source_and_the_models_answers(serving: Serving, lake: DataLake) -> None:
    known = known_answer(lake, CASCADE, SURE)
    assert known is not None
    assert known_answer(lake, CASCADE, UNKNOWN) is None
    looked_up, written = serving.chat(SURE).json(), serving.chat(UNKNOWN).json()
    assert looked_up["response"] == serving.chat(SURE, model_name=str(LOOKUP)).json()["response"]
    (source,) = looked_up["sources"]
    assert (source["kind"], source["similarity"]) == ("answer", known.similarity)
    assert looked_up["tokens"] == 0
    assert written["response"] == serving.chat(UNKNOWN, model_name="2").json()["response"]
    assert (written["sources"], written["handover"]) == ([], None)
    assert written["tokens"] > 0
    for answer in (looked_up, written):
        found = {key: answer[key] for key in ("model", "version", "recipe", "author")}
        assert found == {"model": "4", "version": 4, "recipe": "tiny_cascade", "author": "model"}
    listed = {model["name"]: model for model in serving.get("/models").json()["models"]}
    assert listed["4"]["embedded"], "its model is the demo's"
    assert serving.chat(UNKNOWN, model_name="4:base").json()["model"] == "4:base"


def test_openai_clients_get_both_kinds_of_answers_whole_and_streamed(serving: Serving) -> None:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none is needed here", max_retries=0) as client:
        for question, tokens in ((SURE, False), (UNKNOWN, True)):
            options: dict[str, Any] = {"model": "champion", "messages": [{"role": "user", "content": question}]}
            whole = client.chat.completions.create(**options)
            assert whole.choices[0].message.content == serving.chat(question).json()["response"]
            assert whole.usage is not None
            assert bool(whole.usage.completion_tokens) == tokens
            chunks = client.chat.completions.create(**options, stream=True)
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert "".join(pieces) == whole.choices[0].message.content


def test_the_page_shows_answers_and_drafts_of_both(page: Page, serving: Serving) -> None:
    notes = page.locator("#conversation .notes")
    expect(ask(page, SURE)).to_have_text(serving.chat(SURE).json()["response"], use_inner_text=True)
    expect(page.locator("#conversation .sources")).to_contain_text("A past answer to")
    page.click("#new")
    expect(notes).to_have_count(0)
    expect(ask(page, UNKNOWN)).to_have_text(serving.chat(UNKNOWN).json()["response"].strip(), use_inner_text=True)
    expect(notes).to_contain_text("version 4 · no known intent")
    expect(page.locator("#conversation .sources, #conversation .handover")).to_have_count(0)
    expect(page.locator(".demo")).to_contain_text("not fit for customers")
    open_tab(page, "Agent assist")
    drafts = []
    for question in (SURE, UNKNOWN):
        page.fill("#ticket textarea", question)
        page.click("#draft")
        expect(page.locator(".about")).to_contain_text({SURE: "recover_password", UNKNOWN: "unknown"}[question])
        expect(page.locator("#use-1")).to_be_enabled()
        drafts.append(page.locator("#draft-1 .message-text").inner_text())
    assert drafts == [serving.chat(question).json()["response"].strip() for question in (SURE, UNKNOWN)]
    open_tab(page, "Performance")
    expect(page.locator(".performance h2").first).to_contain_text("Version 4 recipe tiny_cascade")
    expect(page.locator(".performance dl")).to_contain_text("cascade")


def test_mlflow_answers_as_the_server_does_and_shows_the_threshold(lake: DataLake) -> None:
    client = open_store(lake)
    answers = mlflow.pyfunc.load_model(f"models:/{MODEL}/{CASCADE}").predict([SURE, UNKNOWN])
    known = known_answer(lake, CASCADE, SURE)
    assert known is not None
    assert answers == [known.text, *ask_version(2, [UNKNOWN], lake)]
    adapter = current_adapter("tiny_cascade", lake)
    limit = adapter.manifest["min_similarity"]
    assert 0 < limit < 1
    version = client.get_model_version(MODEL, str(CASCADE))
    assert version.tags["cs.min_similarity"] == f"{limit:.3f}"
    assert version.run_id is not None
    run = client.get_run(version.run_id).data
    assert (run.metrics["train.min_similarity"], run.params["method"]) == (limit, "cascade")
    report = lake.path("evaluate", "evaluation_report", "tiny_cascade.html").read_text()
    assert f"{limit:.3f}" in report[report.index("Look-up answers from similarity") :][:200]


def test_a_running_server_follows_a_rollback_to_the_lookup_and_back(serving: Serving, lake: DataLake) -> None:
    before = serving.chat(UNKNOWN).json()
    roll_back(lake, LOOKUP, "the model stammers", "a person")
    wait_for(partial(is_champion, serving, LOOKUP))
    assert serving.chat(UNKNOWN).json()["handover"] == HandoverReason.UNCLEAR.value
    roll_back(lake, CASCADE, "customers wait for people", "a person")
    wait_for(partial(is_champion, serving, CASCADE))
    assert serving.chat(UNKNOWN).json() == before
    moves = [(entry["champion_before"], entry["version"]) for entry in read_history(lake)[-3:]]
    assert moves == [(1, CASCADE), (CASCADE, LOOKUP), (LOOKUP, CASCADE)]


def test_a_forgotten_conversation_is_not_given_any_more_and_marks_the_version(
    lake: DataLake, tmp_path: Path, own_recipes: None
) -> None:
    lake = copy_lake(lake.root, tmp_path / "lake")
    trained_on = set(seen_rows(get_version(open_store(lake), CASCADE).folder / "adapter").column("row_id").to_pylist())
    columns = ["row_id", "source", "instruction", "response"]
    rows = lake.read("prepare", "train_split", columns).to_pylist()
    questions = [row["instruction"] for row in rows if row["source"] == "company"]
    given = ask_version(CASCADE, questions, lake)
    texts = [row["response"] for row in rows]
    row = next(
        row
        for row in rows
        if row["source"] == "company"
        and row["row_id"] in trained_on
        and row["response"] in given
        and texts.count(row["response"]) == 1
    )
    question = questions[given.index(row["response"])]
    with running_service(lake) as service:
        assert service.start("champion", question, (), Sampling()).text() == row["response"]
        found = find_affected(lake, row=row["row_id"])
        assert found.versions == [2, CASCADE]
        forget_records(lake, found, "asked for")
        assert service.start("champion", question, (), Sampling()).text() != row["response"]
    assert row["response"] not in ask_version(CASCADE, questions, lake)
    client = open_store(lake)
    marked = [n for n in range(1, 5) if FORGOTTEN in client.get_model_version(MODEL, str(n)).tags]
    assert marked == [2, CASCADE]
    roll_back(lake, LOOKUP, "a customer asked to be forgotten", "a person")
    with pytest.raises(PipelineError, match="was trained on rows that are to be forgotten"):
        roll_back(lake, CASCADE, "it was better", "a person")
    recipe = load_recipe("tiny_cascade")
    assert isinstance(recipe, CascadeRecipe)
    with pytest.raises(
        PipelineError, match="The model 'tiny' of the cascade 'tiny_cascade' was trained on rows"
    ) as error:
        build_cascade(recipe, lake, print)
    assert "cs-pipeline demo --recipe tiny" in error.value.fix
