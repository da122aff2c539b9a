"""A registered version, read back with MLflow's own client and run as its users run it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.core.manifest import write_manifest
from cs_pipeline.core.schema import SEEN_ROW, SPLIT_ROW
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.results import evaluation_file, read_evaluation
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.register.version import EVALUATED, ask_version, probe_version, register, version_of
from cs_pipeline.tracking import FINGERPRINT, FORGOTTEN, MODEL, get_version, open_store, store_uri
from cs_pipeline.train.adapter import Adapter, current_adapter, seen_rows
from cs_pipeline_tests.conftest import copy_lake, own_world

QUESTION = "where is my refund?"


@pytest.fixture
def registered(champion_lake: Path) -> DataLake:
    return DataLake(champion_lake)


@pytest.fixture
def adapter(registered: DataLake) -> Adapter:
    return current_adapter("tiny", registered)


def the_run(lake: DataLake) -> Any:
    client = open_store(lake)
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_one_run_holds_settings_and_figures(registered: DataLake, adapter: Adapter, tiny: FineTuneRecipe) -> None:
    run = the_run(registered)
    assert run.info.status == "FINISHED"
    assert run.data.tags[FINGERPRINT] == adapter.fingerprint
    parameters = run.data.params
    assert parameters["quantization"] == "nf4"
    assert parameters["trainer.max_steps"] == str(tiny.trainer.max_steps)
    assert parameters["lora.r"] == "8"
    assert parameters["base.source"] == "embedded"
    results, metrics = read_evaluation("tiny", registered), run.data.metrics
    for name in ("validation_loss_before", "validation_loss_after", "tokens_per_second", "real_token_share"):
        assert metrics[f"train.{name}"] == adapter.metrics[name]
    assert parameters["method"] == "QLoRA"
    systems = ("base", "lookup", "nearest", "central", "random")
    assert set(results.scores) == {"tuned", *systems}
    for system, prefix in (("tuned", "test"), *((name, f"test.{name}") for name in systems)):
        for name, value in results.scores[system].items():
            if value is None:
                assert f"{prefix}.{name}" not in metrics
            else:
                assert metrics[f"{prefix}.{name}"] == pytest.approx(value.score)


def test_the_run_holds_the_loss_curve_of_the_training(registered: DataLake, adapter: Adapter) -> None:
    history = open_store(registered).get_metric_history(the_run(registered).info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(p["step"], p["loss"]) for p in adapter.metrics["loss"]]
    assert history[0].timestamp < history[-1].timestamp  # as they came, not as they were sent


def test_the_run_names_its_data(registered: DataLake, adapter: Adapter) -> None:
    inputs = {i.dataset.name: i for i in the_run(registered).inputs.dataset_inputs}
    data = adapter.manifest["data"] | read_evaluation("tiny", registered).data.model_dump()
    assert set(inputs) == {"train_split", "validation_split", "test_split"}
    for name, entry in inputs.items():
        assert entry.dataset.digest == data[name][:16]
        assert {t.value for t in entry.tags} == {name.removesuffix("_split")}


def test_the_run_holds_the_report(registered: DataLake, tmp_path: Path) -> None:
    client, run = open_store(registered), the_run(registered)
    assert {f.path for f in client.list_artifacts(run.info.run_id, "report")} == {
        "report/evaluation.json",
        "report/tiny.html",
    }
    folder = Path(client.download_artifacts(run.info.run_id, "report", str(tmp_path)))
    assert (folder / "evaluation.json").read_bytes() == evaluation_file("tiny", registered).read_bytes()
    report = registered.path("evaluate", "evaluation_report", "tiny.html")
    assert (folder / "tiny.html").read_bytes() == report.read_bytes()


def test_the_tags_of_a_version_lead_back_to_its_sources(
    registered: DataLake, adapter: Adapter, small_csv: Path
) -> None:
    client = open_store(registered)
    version = client.get_model_version_by_alias(MODEL, "champion")
    assert int(version.version) == 1
    assert version.run_id == the_run(registered).info.run_id
    tags = version.tags
    assert tags[FINGERPRINT] == adapter.fingerprint
    assert tags[EVALUATED] == read_evaluation("tiny", registered).fingerprint
    assert tags["cs.recipe"] == "tiny"
    assert tags["cs.git_commit"] == str(adapter.manifest["git_commit"])
    assert tags["cs.base"] == adapter.manifest["base"]["name"]
    assert {k.removeprefix("cs.data."): v for k, v in tags.items() if k.startswith("cs.data.")} == adapter.manifest[
        "data"
    ]
    assert (tags["cs.company_rows"], tags["cs.files"]) == ("0", "0")
    source = read_json(registered.path("ingest", "bitext_conversations.json"))
    assert tags["cs.source_sha256"] == source["sha256"]
    assert tags["cs.source"] == source["address"]
    assert tags["cs.source"].endswith(small_csv.name)
    assert re.fullmatch(r"[0-9a-f-]{36}", tags["cs.dagster_run"])


def test_the_logged_model_holds_the_adapter_and_no_pickle(registered: DataLake, adapter: Adapter) -> None:
    import mlflow

    open_store(registered)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1"))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {f"artifacts/adapter/{name}" for name in (*adapter.manifest["files"], "manifest.json")} < names
    assert "artifacts/base/model.safetensors" in names
    assert not [name for name in names if Path(name).suffix in (".pkl", ".pickle", ".bin", ".pt", ".joblib")]
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in requirements)
    assert {line.partition("==")[0] for line in requirements} >= {"torch", "transformers", "peft", "mlflow"}


def test_registering_again_gives_the_same_version(registered: DataLake, tiny: FineTuneRecipe) -> None:
    client, run = open_store(registered), the_run(registered)
    models = client.search_logged_models([run.info.experiment_id])
    report = registered.path("evaluate", "evaluation_report", "tiny.html")
    again = register(tiny, registered, "another", [], report)
    assert (again.version, again.run_id, again.reused) == (1, run.info.run_id, True)
    assert [int(v.version) for v in client.search_model_versions(f"name = '{MODEL}'")] == [1]
    assert len(client.search_logged_models([run.info.experiment_id])) == len(models) == 1
    assert version_of("tiny", registered) == 1


def test_a_new_evaluation_updates_the_figures_of_the_same_version(
    champion_lake: Path, tmp_path: Path, tiny: FineTuneRecipe
) -> None:
    lake = copy_lake(champion_lake, tmp_path / "copy")
    before = the_run(lake).data.metrics["test.chrf"]
    lake.write("prepare", "test_split", lake.read("prepare", "test_split").slice(9), SPLIT_ROW)
    results = evaluate(tiny, lake, None, print).results
    again = register(tiny, lake, "a run", [], lake.path("evaluate", "evaluation_report", "tiny.html"))
    assert (again.version, again.reused) == (1, True)
    after = the_run(lake).data.metrics["test.chrf"]
    chrf = results.scores["tuned"]["chrf"]
    assert chrf is not None
    assert after == pytest.approx(chrf.score) != before
    assert open_store(lake).get_model_version(MODEL, "1").tags[EVALUATED] == results.fingerprint


@pytest.fixture
def of_a_company(champion_lake: Path, tmp_path: Path) -> DataLake:
    """A lake whose current adapter says that it has seen three rows of a company, from two files and two customers."""
    lake = copy_lake(champion_lake, tmp_path / "copy")
    folder = current_adapter("tiny", lake).folder
    other = folder.rename(folder.with_name("f" * 16))
    rows = [
        {"row_id": f"row {i}", "source": "company", "source_file_sha256": sha256, "subject_id": who, "through": ""}
        for i, (sha256, who) in enumerate((("a" * 64, "jane"), ("a" * 64, "joe"), ("b" * 64, "joe")))
    ]
    pq.write_table(pa.Table.from_pylist(rows, SEEN_ROW), other / "rows.parquet")
    files = [{"sha256": "a" * 64, "rows": 2}, {"sha256": "b" * 64, "rows": 1}]
    facts = {**read_json(other / "manifest.json"), "fingerprint": other.name, "company": {"rows": 3, "files": files}}
    write_manifest(other, facts)
    write_json(lake.path("train", "adapter", "tiny.json"), {"fingerprint": other.name})
    return lake


def test_a_version_records_the_company_rows_it_was_trained_on(of_a_company: DataLake, tiny: FineTuneRecipe) -> None:
    report = of_a_company.path("evaluate", "evaluation_report", "tiny.html")
    assert register(tiny, of_a_company, "a run", [], report).version == 2
    tags = open_store(of_a_company).get_model_version(MODEL, "2").tags
    assert (tags["cs.company_rows"], tags["cs.files"]) == ("3", "2")
    assert FORGOTTEN not in tags
    kept = seen_rows(get_version(open_store(of_a_company), 2).folder / "adapter")
    assert kept.equals(seen_rows(current_adapter("tiny", of_a_company).folder))
    assert kept.column("row_id").to_pylist() == ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize(
    ("kind", "id", "marked"), [("row", "row 2", True), ("subject", "joe", True), ("row", "joe", False)]
)
def test_a_version_is_marked_if_its_rows_were_forgotten_during_training(
    of_a_company: DataLake, tiny: FineTuneRecipe, kind: Literal["row", "subject"], id: str, marked: bool
) -> None:
    with Ledger(of_a_company) as ledger:
        ledger.add_tombstone(kind, id, "asked for")
    register(tiny, of_a_company, "a run", [], of_a_company.path("evaluate", "evaluation_report", "tiny.html"))
    client = open_store(of_a_company)
    assert (FORGOTTEN in client.get_model_version(MODEL, "2").tags) is marked
    assert FORGOTTEN not in client.get_model_version(MODEL, "1").tags


def test_a_missing_adapter_or_evaluation_is_refused(champion_lake: Path, lake: DataLake, tiny: FineTuneRecipe) -> None:
    shutil.copytree(champion_lake / "train", lake.root / "train")
    with pytest.raises(PipelineError, match=r"evaluation\.json is missing"):
        register(tiny, lake, "a run", [], lake.root / "no_report.html")
    with pytest.raises(PipelineError, match="of 'tiny' is not registered"):
        version_of("tiny", lake)


def user_environment(lake: DataLake) -> dict[str, str]:
    """The environment of a user of the registry, without any settings of this project."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**environment, "MLFLOW_TRACKING_URI": store_uri(lake), "PATH": path}


class Server:
    """A process that serves the champion."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self._log = f"http://127.0.0.1:{port}", folder / "serve.log"
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}@champion"]
        command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text()
            try:
                with urllib.request.urlopen(f"{self.address}/ping", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)


@pytest.fixture(scope="module")
def server(champion_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``mlflow models serve``, just started. It and its children are ended after the tests."""
    with own_world(champion_lake):
        running = Server(user_environment(DataLake(champion_lake)), tmp_path_factory.mktemp("serve"))
    try:
        yield running
    finally:
        running.stop()


def test_a_fresh_process_loads_the_champion_and_it_answers(
    registered: DataLake, server: Server, tmp_path: Path
) -> None:
    code = (
        "import json, mlflow; model = mlflow.pyfunc.load_model('models:/cs-support@champion');"
        f"print(json.dumps(model.predict([{QUESTION!r}, 'i forgot my password'])))"
    )
    command = [sys.executable, "-c", code]  # while the server starts
    out = subprocess.check_output(command, env=user_environment(registered), cwd=tmp_path, text=True, timeout=300)
    answers = json.loads(out.splitlines()[-1])
    assert len(answers) == 2
    assert all(isinstance(answer, str) and answer for answer in answers)
    assert ask_version(1, [QUESTION, "i forgot my password"], registered) == answers


def test_a_version_of_an_earlier_release_answers_too(registered: DataLake, tmp_path: Path) -> None:
    lake = copy_lake(registered.root, tmp_path / "copy")
    (code,) = lake.path("register").rglob("pyfunc_model.py")
    code.write_text(code.read_text().replace("cs_pipeline.core.errors", "cs_pipeline.errors"))
    with own_world(lake.root):
        answers = ask_version(1, [QUESTION], lake)
    assert answers == ask_version(1, [QUESTION], registered)


def test_mlflow_serves_the_champion(registered: DataLake, server: Server) -> None:
    server.wait()
    request = urllib.request.Request(
        f"{server.address}/invocations",
        data=json.dumps({"inputs": [QUESTION]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found = json.load(response)
    assert found == {"predictions": ask_version(1, [QUESTION], registered)}


def test_a_version_that_has_answered_is_verified_and_not_loaded_again(
    champion_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = copy_lake(champion_lake, tmp_path / "copy" / "lake")
    client = open_store(lake)
    with own_world(lake.root):
        before = client.get_model_version(MODEL, "1").tags["cs.probed"]
        assert probe_version(1, QUESTION, lake) == json.loads(before)["answer"], "the job has asked this question"
        asked: list[str] = []

        def ask(number: int, questions: list[str], lake: DataLake) -> list[str]:
            asked.extend(questions)
            return ["another answer"]

        monkeypatch.setattr("cs_pipeline.register.version.ask_version", ask)
        probe_version(1, QUESTION, lake)
        assert asked == []
        assert probe_version(1, "and my order?", lake) == "another answer"
        monkeypatch.setattr("cs_pipeline.register.version._LIBRARIES", ("torch",))
        probe_version(1, "and my order?", lake)
        assert asked == ["and my order?"] * 2, "other libraries may give another answer"
        (get_version(client, 1).folder / "adapter" / "metrics.json").write_text("{}")
        with pytest.raises(PipelineError, match="was changed after it was written"):
            probe_version(1, "and my order?", lake)
