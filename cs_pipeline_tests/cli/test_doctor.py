import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from huggingface_hub.constants import HF_HUB_CACHE
from rich.console import Console
from typer.testing import CliRunner

from cs_pipeline.cli import doctor
from cs_pipeline.cli.commands import app
from cs_pipeline.cli.doctor import check_installation, findings_table
from cs_pipeline.core.errors import Finding, PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.package import models_folder

ALL = [
    "Python",
    "libraries",
    "torch",
    "GPU",
    "bitsandbytes",
    "memory",
    "disk",
    "data lake",
    "Dagster",
    "MLflow",
    "ports",
    "model hub",
    "packages",
]


class Hub(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return home


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert [finding.name for finding in findings] == ALL
    assert all(finding.fix for finding in findings if finding.status != "ok")
    return {finding.name: finding for finding in findings}


def test_the_models_from_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "fetch_program", lambda: "uv")
    assert doctor._packages() == ("ok", f"{models_folder()}: no models from packages yet; uv fetches them", None)
    model = models_folder() / "tiny-data-1.0-0123"
    model.mkdir(parents=True)
    with (model / "weights.bin").open("wb") as file:
        file.truncate(1_200_000_000)  # a sparse file
    assert doctor._packages()[1] == f"{models_folder()}: tiny-data-1.0-0123 1.2 GB; uv fetches them"
    monkeypatch.setattr(doctor, "fetch_program", lambda: None)
    status, what, fix = doctor._packages()
    assert status == "note"
    assert "neither pip nor uv" in what
    assert "Install uv" in str(fix)


def test_free_space_is_checked_where_the_lake_and_where_bases_of_the_hub_are(
    lake: DataLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_HUB_DISK", 0)
    assert doctor._disk(lake)[0] == "ok"
    monkeypatch.setattr(doctor, "_HUB_DISK", 1e18)
    status, what, fix = doctor._disk(lake)
    assert (status, fix) == ("note", "Free disk space, or point HF_HOME at a larger disk.")
    assert f"free for {HF_HUB_CACHE}; a base from the hub can take" in what
    monkeypatch.setattr(doctor, "_MIN_DISK", 1e18)
    status, what, fix = doctor._disk(lake)
    assert (status, fix) == ("problem", "Free disk space, or point CS_LAKE at a larger disk.")
    assert f"free for {lake.root}, less than" in what


def test_a_healthy_machine_has_no_problems(lake: DataLake, home: Path, hub: HTTPServer) -> None:
    findings = check_installation(lake, home)
    found = by_name(findings)
    for name in ("Python", "bitsandbytes", "data lake", "Dagster", "MLflow", "model hub"):
        assert found[name].status == "ok", found[name]
    assert found["libraries"].status != "problem"
    assert found["Python"].what.startswith(sys.version.split()[0])
    assert "dagster-webserver 1." in found["libraries"].what
    assert "0 runs" in found["Dagster"].what
    assert "no champion yet" in found["MLflow"].what
    assert "secret" not in found["model hub"].what
    assert not list(lake.root.glob(".doctor*"))

    console = Console(width=200, record=True)
    console.print(findings_table(findings))
    shown = console.export_text()
    assert all(name in shown for name in ALL)


def test_several_faults_are_all_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HTTPServer) -> None:
    (tmp_path / "file").write_text("a lake cannot be created below a file, not even by root\n")
    hub.shutdown()
    hub.server_close()
    pins = tmp_path / "constraints.txt"
    pins.write_text("pandas==0.0.1\n")
    monkeypatch.setattr(doctor, "CONSTRAINTS", pins)

    found = by_name(check_installation(DataLake(tmp_path / "file" / "lake"), Path("relative/home")))

    assert found["data lake"].status == found["MLflow"].status == "problem"
    assert str(tmp_path / "file") in found["data lake"].what
    assert "CS_LAKE" in str(found["data lake"].fix)
    assert found["Dagster"].status == "problem"
    assert "relative/home" in found["Dagster"].what
    assert "DAGSTER_HOME" in found["Dagster"].what
    assert found["model hub"].status == "note"
    assert f"127.0.0.1:{hub.server_port} cannot be reached" in found["model hub"].what
    assert found["libraries"].status == "note"
    assert "instead of 0.0.1" in found["libraries"].what


def test_damaged_databases_are_found(lake: DataLake, home: Path) -> None:
    for database in (home / "history" / "runs.db", lake.path("register", "mlflow.db")):
        database.parent.mkdir(parents=True)
        database.write_bytes(b"not a database" * 1000)

    found = by_name(check_installation(lake, home))

    assert found["Dagster"].status == found["MLflow"].status == "problem"
    assert "not a database" in found["Dagster"].what
    assert "not a database" in found["MLflow"].what
    assert found["model hub"].status == "note"
    assert "HF_HUB_OFFLINE" in found["model hub"].what


def test_a_blocking_run_and_a_refusing_hub_are_notes(
    lake: DataLake, home: Path, hub: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "status", 403)
    with DagsterInstance.from_config(str(home)) as instance:
        run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)

    found = by_name(check_installation(lake, home))

    assert found["Dagster"].status == found["model hub"].status == "note"
    assert run.run_id[:8] in found["Dagster"].what
    assert "403" in found["model hub"].what


def test_a_recipe_is_checked_before_it_is_trained(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_notToBeShown")
    runner = CliRunner()
    fine = runner.invoke(app, ["doctor", "--recipe", "smoke"])
    assert fine.exit_code == 0, fine.output
    assert all(name in fine.output for name in ("base", "download", "memory", "time"))
    lookup = runner.invoke(app, ["doctor", "--recipe", "lookup"])
    assert lookup.exit_code == 0, lookup.output
    assert "a look-up is not trained" in " ".join(lookup.output.split())
    assert not any(name in lookup.output for name in ("download", "memory", "problem"))
    cascade = " ".join(runner.invoke(app, ["doctor", "--recipe", "cascade"]).output.split())
    assert "its model is trained with the recipe 'smollm2_135m_package_rag_long'" in cascade
    assert all(name in cascade for name in ("base", "download", "memory", "time")), "those of its model"
    huge = runner.invoke(app, ["doctor", "--recipe", "gptj_6b_qlora"])
    assert huge.exit_code == 1  # on a CPU it would take weeks
    assert "problem" in huge.output
    assert "EleutherAI/gpt-j-6b, licence" in huge.output
    assert "Apache-2.0" in huge.output
    assert "hf_not" not in huge.output
    assert isinstance(runner.invoke(app, ["doctor", "--recipe", "none"]).exception, PipelineError)
