"""The MLflow store: a real SQLite store in this module's own lake, and servers that are not MLflow."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.tracking import (
    CHAMPION,
    FINGERPRINT,
    MODEL,
    artifacts_folder,
    champion_number,
    champion_version,
    find_run,
    find_versions,
    get_or_create_run,
    get_version,
    open_store,
    store_uri,
)
from cs_pipeline_tests.support.stores import Silent
from cs_pipeline_tests.support.stores import client as client  # the fixtures
from cs_pipeline_tests.support.stores import run as run
from cs_pipeline_tests.support.stores import silent as silent
from cs_pipeline_tests.support.stores import stored as stored

if TYPE_CHECKING:
    from mlflow import MlflowClient


# The store


def test_the_store_is_in_the_lake(stored: DataLake, client: "MlflowClient") -> None:
    assert store_uri(stored) == f"sqlite:///{stored.root}/register/mlflow.db"
    assert stored.path("register", "mlflow.db").stat().st_size > 0
    (experiment,) = [found for found in client.search_experiments() if found.name == MODEL]
    assert experiment.artifact_location == artifacts_folder(stored).as_uri()


def test_an_open_store_is_not_used_for_another_lake(stored: DataLake, lake: DataLake) -> None:
    import mlflow

    mlflow.set_tracking_uri("")  # as in a process that has not opened a store
    open_store(stored)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert store_uri(lake) == f"sqlite:///{lake.root}/register/mlflow.db"


def test_a_version_is_read_from_the_store_of_its_client(
    stored: DataLake, client: "MlflowClient", lake: DataLake, run: str
) -> None:
    folder = stored.path("register", "logged model")
    folder.mkdir(parents=True)
    client.create_registered_model(MODEL)
    try:
        client.create_model_version(MODEL, folder.as_uri(), run, tags={FINGERPRINT: "f", "cs.recipe": "tiny"})
        open_store(lake)  # MLflow's global address now names the other lake's store
        assert get_version(client, 1).folder == folder / "artifacts"
    finally:
        client.delete_registered_model(MODEL)


def test_the_environment_variable_names_another_store(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store_uri(lake) == "http://127.0.0.1:5000"


def test_a_fingerprint_has_one_run(client: "MlflowClient", stored: DataLake) -> None:
    assert find_run(client, "f1") is None
    first = get_or_create_run(client, stored, "f1", "tiny")
    assert get_or_create_run(client, stored, "f1", "tiny") == first == find_run(client, "f1")
    assert get_or_create_run(open_store(stored), stored, "f1", "tiny") == first
    client.set_terminated(first, "FAILED")
    assert get_or_create_run(client, stored, "f1", "tiny") == first
    assert get_or_create_run(client, stored, "f2", "tiny") != first
    run = client.get_run(first)
    assert (run.data.tags[FINGERPRINT], run.data.tags["cs.recipe"]) == ("f1", "tiny")
    assert len(client.search_runs([run.info.experiment_id], f"tags.`{FINGERPRINT}` = 'f1'")) == 1


def test_concurrent_callers_get_the_same_run(stored: DataLake) -> None:
    with ThreadPoolExecutor(8) as pool:
        clients = [open_store(stored) for _ in range(8)]
        barrier = threading.Barrier(len(clients))

        def ask(client: "MlflowClient") -> str:
            barrier.wait()
            return get_or_create_run(client, stored, "asked for at once", "tiny")

        assert len(set(pool.map(ask, clients))) == 1


def test_artifacts_of_a_run_are_in_the_lake(client: "MlflowClient", stored: DataLake, run: str) -> None:
    client.log_text(run, "très bien", "report/summary.md")
    (file,) = artifacts_folder(stored).rglob("summary.md")
    assert file.read_text(encoding="utf-8") == "très bien"


FIRST_USE = """
import sys
from pathlib import Path
import mlflow
from cs_pipeline.core.lake import DataLake
from cs_pipeline.tracking import get_or_create_run, open_store
print("ready", flush=True)
sys.stdin.readline()
lake = DataLake(Path(sys.argv[1]))
print(get_or_create_run(open_store(lake), lake, "theirs", "tiny"), flush=True)
"""


def test_two_processes_may_use_a_new_store_at_the_same_time(stored: DataLake, lake: DataLake) -> None:
    # ``stored`` has already imported MLflow here, so both begin at the same time.
    command = [sys.executable, "-c", FIRST_USE, str(lake.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        client = open_store(lake)
        ours = get_or_create_run(client, lake, "ours", "tiny")
        theirs = other.stdout.readline().strip()
    assert other.returncode == 0
    assert find_run(client, "theirs") == theirs != ours
    assert [experiment.name for experiment in client.search_experiments()].count(MODEL) == 1


# An unreachable store


@pytest.mark.parametrize("silent", ["closes"], indirect=True)
def test_the_error_for_a_server_that_is_not_mlflow_hides_the_password(
    silent: Silent, lake: DataLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent.uri)
    with pytest.raises(PipelineError, match="does not answer") as raised:
        open_store(lake)
    assert silent.uri.replace("somebody:s3cret@", "") in raised.value.what
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__, "the traceback does not show the password either"
    assert "MLFLOW_TRACKING_URI" in raised.value.fix
    assert 1 <= len(silent.connections) <= 3, "retried, but not for minutes"


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("http://somebody:s3cret@127.0.0.1:1", "http://127.0.0.1:1 does not answer"),
        ("postgresql://somebody:s3cret@127.0.0.1:1/mlflow", "postgresql://127.0.0.1:1/mlflow does not answer"),
        ("nonesuch://somebody:s3cret@host/x", "nonesuch://host/x does not answer"),
        ("./mlruns", "./mlruns does not answer"),
        ("sqlite:///{file}", "file is not a database"),
        ("sqlite:///{file}/mlflow.db", "{file}"),
    ],
)
def test_an_invalid_store_is_an_error_without_the_password(
    uri: str, complaint: str, lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("not a database at all, only lines of plain text. " * 20)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(file=file))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PipelineError) as raised:
        open_store(lake)
    assert complaint.format(file=file) in raised.value.what
    assert "s3cret" not in str(raised.value)
    assert "s3cret" not in repr(raised.value.__cause__)
    assert file.stat().st_size == 980, "unchanged"


def test_a_lake_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PipelineError, match="The data lake cannot be written"):
        open_store(DataLake(tmp_path / "file"))


# Versions


def test_versions_are_sorted_by_number_and_the_alias_names_the_champion(
    client: "MlflowClient", stored: DataLake, tmp_path: Path
) -> None:
    assert find_versions(client) == []
    assert champion_number(client) is None
    assert champion_version(stored) is None
    client.create_registered_model(MODEL)
    assert champion_number(client) is None
    assert champion_version(stored) is None

    (tmp_path / "adapter").mkdir()
    for number in range(1, 12):
        (tmp_path / "adapter" / "weights").write_text(str(number))
        run = get_or_create_run(client, stored, f"v{number}", "tiny")
        client.log_artifacts(run, str(tmp_path / "adapter"), "model/artifacts/adapter")
        tags = {FINGERPRINT: f"v{number}", "cs.recipe": "tiny"}
        client.create_model_version(MODEL, f"runs:/{run}/model", run, tags=tags)
    assert [int(version.version) for version in find_versions(client)] == list(range(1, 12)), (
        "sorted by number, not by name"
    )
    assert champion_number(client) is None

    for number in (2, 10):
        client.set_registered_model_alias(MODEL, CHAMPION, str(number))
        assert champion_number(client) == number
        found = champion_version(stored)
        assert found is not None
        assert (found.version, found.fingerprint, found.recipe) == (number, f"v{number}", "tiny")
        assert found.run_id == find_run(client, f"v{number}")
        assert (found.folder / "adapter" / "weights").read_text() == str(number)
