"""A look-up in Bitext's and a company's answers: the first champion of a fresh lake, made by the real job.

It is registered, loaded, rolled back to and retrained like a model. A row can be forgotten without a new version.
"""

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cs_pipeline.company import company_file, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.definitions import defs
from cs_pipeline.evaluate.openings import read_openings
from cs_pipeline.evaluate.results import evaluation_folder, read_evaluation
from cs_pipeline.forget import find_affected, forget_records
from cs_pipeline.ingest.landing import land_files
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.llm.base import NO_BASE
from cs_pipeline.recipe import LookupRecipe
from cs_pipeline.register.history import read_history
from cs_pipeline.register.lineage import lineage_tree, trace_lineage
from cs_pipeline.register.promotion import roll_back
from cs_pipeline.register.version import ask_version, probe_version
from cs_pipeline.retrieval.index import RetrievalIndex, index_version, retrieval_folder
from cs_pipeline.retrieval.lookup import HANDOVER_ANSWER
from cs_pipeline.text.copied import mostly_copied
from cs_pipeline.tracking import FORGOTTEN, MODEL, champion_number, find_versions, open_store
from cs_pipeline.train.adapter import build_lookup, current_adapter
from cs_pipeline.train.retraining import check_retraining
from cs_pipeline_tests.conftest import copy_lake, own_world, run_job
from cs_pipeline_tests.support.company import SETTINGS, ingest, known_rows
from cs_pipeline_tests.support.exports import export
from cs_pipeline_tests.support.versions import add_lookup, known_answer

UNKNOWN = "zzzz qqqq"
"""Nothing known has an n-gram in common with it."""


@pytest.fixture(scope="module")
def first_run(
    prepared: Path, small_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DataLake, dg.ExecuteInProcessResult]:
    """A fresh lake with 120 rows of a company after one run of the job for the look-up, and that run."""
    folder = tmp_path_factory.mktemp("lookup")
    lake = DataLake(folder / "lake")
    for stage in ("ingest", "prepare"):
        shutil.copytree(prepared / stage, lake.path(stage))
    company_file(lake).write_text(SETTINGS)
    with own_world(lake.root):
        land_files([export(folder / "tickets.csv", 120, seed=1)], lake, load_company(lake))
        ingest(lake)
        result = run_job(lake.root, small_csv, recipe="tiny_lookup")
    assert result.success
    return lake, result


@pytest.fixture(scope="module")
def registered(first_run: tuple[DataLake, dg.ExecuteInProcessResult]) -> DataLake:
    """The lake of ``first_run``, to be read."""
    return first_run[0]


@pytest.fixture
def lake(registered: DataLake, tmp_path: Path) -> DataLake:
    """A copy of it that the test may change."""
    return copy_lake(registered.root, tmp_path / "lake")


def answers_of(lake: DataLake) -> list[dict[str, Any]]:
    """The evaluated answers of all systems."""
    rows: list[dict[str, Any]] = pq.read_table(evaluation_folder("tiny_lookup", lake) / "answers.parquet").to_pylist()
    return rows


def train_rows(lake: DataLake) -> list[dict[str, Any]]:
    columns = ["row_id", "source", "subject_id", "instruction", "response"]
    rows: list[dict[str, Any]] = lake.read("prepare", "train_split", columns).to_pylist()
    return rows


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = [e for e in result.all_events if e.is_step_materialization and e.asset_key == dg.AssetKey(asset)]
    return {name: value.value for name, value in event.materialization.metadata.items()}


# The first champion


def test_it_becomes_the_first_champion_by_itself(first_run: tuple[DataLake, dg.ExecuteInProcessResult]) -> None:
    lake, result = first_run
    assert metadata_of(result, "model_version")["version"] == metadata_of(result, "champion")["champion"] == 1
    (entry,) = read_history(lake)
    found = {key: entry[key] for key in ("kind", "version", "champion_before", "promote", "recipe", "undecided")}
    assert found == {
        "kind": "decision",
        "version": 1,
        "champion_before": None,
        "promote": True,
        "recipe": "tiny_lookup",
        "undecided": False,
    }
    assert entry["reason"] == "there is no champion yet, and a look-up costs nothing"
    client = open_store(lake)
    assert champion_number(client) == 1
    assert {alias: int(number) for alias, number in client.get_registered_model(MODEL).aliases.items()} == {
        "champion": 1
    }


def test_every_step_of_the_job_succeeds_without_a_model_and_no_check_fails(
    first_run: tuple[DataLake, dg.ExecuteInProcessResult],
) -> None:
    lake, result = first_run
    assets = {key.to_user_string() for key in defs.resolve_job_def("support_model").asset_layer.selected_asset_keys}
    checks = {(e.asset_key.to_user_string(), e.check_name): e for e in result.get_asset_check_evaluations()}
    wanted = [key for key in defs.resolve_asset_graph().asset_check_keys if key.asset_key.to_user_string() in assets]
    assert set(checks) == {(key.asset_key.to_user_string(), key.name) for key in wanted}
    assert [key for key, check in checks.items() if not check.passed] == [("subjects", "subjects_reviewed")]
    assert checks["subjects", "subjects_reviewed"].severity == dg.AssetCheckSeverity.WARN, "no failure"
    assert checks["adapter", "loss_fell"].metadata["training"].value == "none"
    assert checks["model_version", "answers_from_the_registry"].metadata["answer"].value
    base, adapter = metadata_of(result, "base_model"), metadata_of(result, "adapter")
    assert {key: base[key] for key in ("source", "name")} == {"source": "none", "name": NO_BASE.name}
    assert "dagster/uri" not in base
    assert adapter["rows"] == len(train_rows(lake)) == len(known_rows(lake))
    assert adapter["fingerprint"] == current_adapter("tiny_lookup", lake).fingerprint
    assert not lake.path("train", "base_model").exists()
    assert [path.name for path in lake.path("train", "adapter").glob("*.json")] == ["tiny_lookup.json"]


def test_a_second_run_changes_nothing(lake: DataLake, small_csv: Path) -> None:
    manifest = current_adapter("tiny_lookup", lake).folder / "manifest.json"

    def state() -> tuple[Any, ...]:
        results = read_evaluation("tiny_lookup", lake)
        return manifest.stat().st_mtime_ns, read_history(lake), results, read_openings(lake)

    before = state()
    assert [each.evaluation for each in before[3]] == [before[2].fingerprint], "report and promotion are one opening"
    result = run_job(lake.root, small_csv, recipe="tiny_lookup")
    assert result.success
    assert state() == before
    assert [int(version.version) for version in find_versions(open_store(lake))] == [1]


def test_it_is_evaluated_like_a_model_but_for_likelihood_and_base(registered: DataLake) -> None:
    results = read_evaluation("tiny_lookup", registered)
    assert results.methods == {"tuned": "look-up"}
    assert results.base == NO_BASE.facts()
    assert set(results.scores) == {"tuned", "lookup", "nearest", "central", "random"}
    assert results.scores["tuned"]["bits_per_character"] is None
    assert results.runs["tuned"].tokens == 0
    rows = answers_of(registered)
    given = {row["row_id"]: row["answer"] for row in rows if row["system"] == "tuned"}
    known = {row["response"] for row in train_rows(registered)} | {HANDOVER_ANSWER}
    assert set(given.values()) <= known
    free = {row["row_id"]: row["answer"] for row in rows if row["system"] == "lookup"}
    assert all(answer in (free[row], HANDOVER_ANSWER) for row, answer in given.items())


# In the registry


def test_the_version_holds_the_lookup_and_no_base(registered: DataLake, tiny_lookup: LookupRecipe) -> None:
    client, adapter = open_store(registered), current_adapter("tiny_lookup", registered)
    version = client.get_model_version(MODEL, "1")
    tags = version.tags
    assert (tags["cs.recipe"], tags["cs.base"], tags["cs.company_rows"], tags["cs.files"]) == (
        "tiny_lookup",
        NO_BASE.name,
        "0",
        "0",
    )
    assert tags["cs.data.retrieval_index"] == index_version(registered)
    assert FORGOTTEN not in tags
    assert version.description == tiny_lookup.description
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1"))
    names = {
        str(path.relative_to(folder / "artifacts")) for path in (folder / "artifacts").rglob("*") if path.is_file()
    }
    assert names == {f"adapter/{name}" for name in (*adapter.manifest["files"], "manifest.json")}
    read_manifest(folder / "artifacts" / "adapter", "model_version")
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt", ".joblib")]
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "look-up"
    assert run.data.params["handover_share"] == str(tiny_lookup.handover_share)
    assert run.data.metrics["train.min_similarity"] == adapter.metrics["min_similarity"]
    quality = read_evaluation("tiny_lookup", registered).scores["tuned"]["quality"]
    assert quality is not None
    assert run.data.metrics["test.quality"] == pytest.approx(quality.score)
    assert not [name for name in run.data.metrics if "base" in name or "bits" in name]


def test_any_client_gets_known_answers_word_for_word_or_a_handover(registered: DataLake) -> None:
    rows = train_rows(registered)
    asked = [*[row["instruction"] for row in rows if row["source"] == "company"][:5], UNKNOWN, ""]
    open_store(registered)
    answers = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion").predict(asked)
    assert len(answers) == len(asked)
    assert set(answers[:5]) <= {row["response"] for row in rows}
    assert answers[5:] == [HANDOVER_ANSWER] * 2
    expected = [known_answer(registered, 1, question) for question in asked[:5]]
    assert answers[:5] == [known.text if known else HANDOVER_ANSWER for known in expected]
    assert ask_version(1, asked, registered) == answers


def test_it_answers_from_the_current_index_or_from_a_given_one(lake: DataLake, tmp_path: Path) -> None:
    """The lake has moved since the version was registered."""
    question = train_rows(lake)[0]["instruction"]
    before = ask_version(1, [question], lake)
    assert before != [HANDOVER_ANSWER]
    retrieval_folder(lake).rename(tmp_path / "elsewhere")
    with pytest.raises(PipelineError, match=rf"their index {retrieval_folder(lake)} is missing") as raised:
        ask_version(1, [question], lake)
    assert "model_config" in raised.value.fix
    elsewhere = {"retrieval_index": str(tmp_path / "elsewhere")}
    assert mlflow.pyfunc.load_model(f"models:/{MODEL}/1", model_config=elsewhere).predict([question]) == before


def test_the_lineage_has_the_index_and_no_trained_row(registered: DataLake) -> None:
    found = trace_lineage(1, registered)
    assert (found["recipe"], found["aliases"], found["files"]) == ("tiny_lookup", ["champion"], [])
    assert found["base"] == NO_BASE.facts()
    assert found["data"]["retrieval_index"] == index_version(registered)
    assert found["sides"]["train"]["company"] > 10
    assert [(entry["version"], entry["promote"]) for entry in found["history"]] == [(1, True)]
    assert [check["name"] for check in found["checks"] if not check["passed"]] == ["subjects_reviewed"]
    console = Console(width=200, record=True, file=StringIO())
    console.print(lineage_tree(found))
    text = console.export_text()
    assert "version 1 (champion), recipe tiny_lookup" in text
    assert "base: none: a look-up needs no model" in text
    assert "tickets.csv" not in text, "it was trained on no row of it"
    count, warned = len(found["checks"]), "warned: subjects.subjects_reviewed"
    assert f"checks: {count - 1} of {count} passed; {warned}" in text
    gate = next(check for check in found["checks"] if check["severity"] == "ERROR")
    gate["passed"] = False
    console.print(lineage_tree(found))
    assert f"{count - 2} of {count} passed; failed: {gate['asset']}.{gate['name']}; {warned}" in console.export_text()


def test_a_changed_threshold_is_refused(lake: DataLake) -> None:
    (file,) = lake.path("register").rglob("lookup.json")
    file.write_text(json.dumps({"min_similarity": 0.0}))
    with pytest.raises(PipelineError, match=r"lookup\.json was changed after it was written"):
        ask_version(1, ["where is my refund?"], lake)


# Rolling back


def test_a_person_can_roll_back_to_a_lookup_and_from_it(champion_lake: Path, tmp_path: Path) -> None:
    lake = copy_lake(champion_lake, tmp_path / "lake")
    assert add_lookup(lake) == 2
    assert champion_number(open_store(lake)) == 1
    entry = roll_back(lake, 2, "the model stammers", "a person")
    assert (entry["kind"], entry["version"], entry["champion_before"], entry["recipe"]) == ("rollback", 2, 1, "lookup")
    assert champion_number(open_store(lake)) == 2
    assert ask_version(2, [UNKNOWN], lake) == [HANDOVER_ANSWER]
    back = roll_back(lake, 1, "it copies", "a person")
    assert (back["version"], back["champion_before"], back["recipe"]) == (1, 2, "tiny")
    assert champion_number(open_store(lake)) == 1


# Retraining


def test_retraining_beside_a_lookup(
    lake: DataLake, tmp_path: Path, own_recipes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, decision = check_retraining(lake)
    assert (state.recipe, state.champion, state.champion_marked, state.new_rows) == ("tiny_lookup", 1, False, 0)
    assert (decision.due, decision.reason) == (False, "no new usable row since the last training")
    # A model that was never trained has every row before it, so the look-up does not keep it from being trained.
    with monkeypatch.context() as other:
        other.setenv("CS_RECIPE", "tiny")
        state, decision = check_retraining(lake)
    assert (state.recipe, state.champion, state.new_rows) == ("tiny", 1, 120)
    assert decision.due
    land_files([export(tmp_path / "few.csv", 30, seed=2)], lake, load_company(lake))
    ingest(lake)
    state, decision = check_retraining(lake)
    assert (decision.due, state.new_rows) == (False, 30)
    assert "30 new usable rows of 40 needed, and champion 1 is" in decision.reason
    land_files([export(tmp_path / "more.csv", 20, seed=3)], lake, load_company(lake))
    ingest(lake)
    state, decision = check_retraining(lake)
    assert (decision.due, state.new_rows) == (True, 50)


# Forgetting


@pytest.fixture
def given(lake: DataLake) -> dict[str, Any]:
    """A test question that the look-up answers with a company's answer, which no other row has.

    Keys: ``question`` with ``question_id``, and the ``row_id``, ``subject_id`` and ``response`` of the copied row.
    """
    rows = train_rows(lake)
    texts = [row["response"] for row in rows]
    unique = {row["response"]: row for row in rows if row["source"] == "company" and texts.count(row["response"]) == 1}
    asked = next(row for row in answers_of(lake) if row["system"] == "tuned" and row["answer"] in unique)
    return unique[asked["answer"]] | {"question": asked["question"], "question_id": asked["row_id"]}


def test_a_forgotten_conversation_answers_nobody_any_more_and_needs_no_new_version(
    lake: DataLake, given: dict[str, Any], tiny_lookup: LookupRecipe
) -> None:
    client, before = open_store(lake), index_version(lake)
    assert ask_version(1, [given["question"]], lake) == [given["response"]]
    found = find_affected(lake, row=given["row_id"])
    assert found.versions == []
    assert given["response"] in found.answers
    assert "model versions trained on them, to be marked: none" in found.summary()
    assert lake.path("evaluate", "evaluation_report", "tiny_lookup.html") in found.reports

    forget_records(lake, found, "asked for")
    assert FORGOTTEN not in client.get_model_version(MODEL, "1").tags
    assert champion_number(client) == 1
    assert given["row_id"] not in known_rows(lake)
    assert index_version(lake) != before
    RetrievalIndex.load(retrieval_folder(lake))
    (answer,) = ask_version(1, [given["question"]], lake)
    assert answer != given["response"]
    assert answer in {HANDOVER_ANSWER, *(row["response"] for row in train_rows(lake))}
    with Ledger(lake) as ledger:
        assert given["row_id"] in ledger.tombstones().rows
    # No retraining is due: the other rows are not new, although the table of training rows has changed.
    state, due = check_retraining(lake)
    assert (state.new_rows, state.champion_marked, due.due) == (0, False, False)
    # The threshold depends on the index, so the next run makes another adapter; the current version can stay.
    old = current_adapter("tiny_lookup", lake).fingerprint
    assert build_lookup(tiny_lookup, lake).fingerprint != old


def test_the_evaluation_loses_the_questions_that_were_answered_with_it(lake: DataLake, given: dict[str, Any]) -> None:
    folder = evaluation_folder("tiny_lookup", lake)
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in ("answers", "robustness", "probe")}
    # Questions written by hand have no row of the test split.
    by_hand = next(row["case_id"] for row in tables["robustness"].to_pylist() if row["row_id"] is None)
    common = tables["probe"].column("question")[3].as_py()
    for name, column, key in (("robustness", "case_id", by_hand), ("probe", "question", common)):
        rows = [
            row | ({"answer": f"Well: {given['response']}"} if row[column] == key else {})
            for row in tables[name].to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, tables[name].schema), folder / f"{name}.parquet")
    copied = mostly_copied(tables["answers"].column("answer").to_pylist(), [given["response"]])
    questions = set(tables["answers"].filter(pa.array(copied)).column("row_id").to_pylist())
    assert given["question_id"] in questions

    forget_records(lake, find_affected(lake, row=given["row_id"]), "asked for")
    left = {name: pq.read_table(folder / f"{name}.parquet") for name in tables}
    for name, table in left.items():
        assert not mostly_copied(table.column("answer").to_pylist(), [given["response"]]).any(), name
    assert set(left["answers"].column("row_id").to_pylist()) == (
        set(tables["answers"].column("row_id").to_pylist()) - questions
    )
    cases = set(tables["robustness"].column("case_id").to_pylist())
    assert by_hand in cases
    lost = cases - set(left["robustness"].column("case_id").to_pylist())
    assert by_hand in lost
    assert len(lost) < len(cases) / 2, "the other questions written by hand stay"
    # The look-up may have given the forgotten answer to other common questions too.
    probe = tables["probe"].to_pylist()
    given_to = mostly_copied([row["answer"] for row in probe], [given["response"]])
    kept = {row["question"] for row, copied in zip(probe, given_to, strict=True) if not copied} - {common}
    assert set(left["probe"].column("question").to_pylist()) == kept
    assert len(kept) > len(probe) / 2


def test_reports_that_may_quote_the_answer_are_deleted_in_the_lake_and_in_mlflow(
    lake: DataLake, given: dict[str, Any]
) -> None:
    client = open_store(lake)
    run = client.get_model_version(MODEL, "1").run_id
    assert run is not None
    logged = {"report/evaluation.json", "report/tiny_lookup.html"}
    assert {file.path for file in client.list_artifacts(run, "report")} == logged
    reports = [path for path in lake.root.rglob("tiny_lookup.html") if "report" in str(path)]
    assert len(reports) == 2
    found = find_affected(lake, row=given["row_id"])
    assert any("tiny_lookup.html: removed, in MLflow too" in line for line in found.summary())
    forget_records(lake, found, "asked for")
    assert not any(path.exists() for path in reports)
    assert [file.path for file in client.list_artifacts(run, "report")] == ["report/evaluation.json"]
    figures = Path(client.download_artifacts(run, "report/evaluation.json")).read_text()
    assert given["response"][:60] not in figures


def test_a_probe_of_a_lookup_is_not_stored(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer depends on the index, and a tag would keep a known answer that is forgotten later."""
    tags = open_store(lake).get_model_version(MODEL, "1").tags
    assert "cs.probed" not in tags, "the job has asked a question"
    asked: list[str] = []

    def ask(number: int, questions: list[str], lake: DataLake) -> list[str]:
        asked.extend(questions)
        return [f"answer {len(asked)}"]

    monkeypatch.setattr("cs_pipeline.register.version.ask_version", ask)
    assert [probe_version(1, "and my order?", lake) for _ in range(2)] == ["answer 1", "answer 2"]
    assert open_store(lake).get_model_version(MODEL, "1").tags == tags
