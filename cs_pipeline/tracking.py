"""The MLflow store: one run per adapter fingerprint, its metrics during training, model versions and aliases."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.errors import PipelineError, without_secret
from cs_pipeline.core.lake import DataLake, locked, make_folder, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "cs-support"
"""The name of the registered model and of the experiment with its runs."""

CHAMPION, CHALLENGER = "champion", "challenger"
FINGERPRINT = "cs.fingerprint"
"""Tag of runs and versions: the fingerprint of the adapter."""

FORGOTTEN = "cs.forgotten"
"""Tag of versions that were trained on rows that have since been forgotten."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model. ``folder`` is a local copy of its files: ``adapter/``, and ``base/`` if logged."""

    version: int
    fingerprint: str
    recipe: str
    run_id: str
    folder: Path


def store_uri(lake: DataLake) -> str:
    """``MLFLOW_TRACKING_URI``, else an SQLite database in the lake."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{lake.path('register', 'mlflow.db')}"


def artifacts_folder(lake: DataLake) -> Path:
    """Where the SQLite store keeps the artifacts of its runs."""
    return lake.path("register", "artifacts")


def open_store(lake: DataLake) -> "MlflowClient":
    """A client of the store, which is created on first use. Raises PipelineError when it cannot be reached."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # By default MLflow retries an unreachable server for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # hides a line per created table
    uri = store_uri(lake)
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if not configured:
        # set_tracking_uri also sets this variable, and every other lake in this process would then use this lake's store.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        with _store_lock(lake):  # the first use of an SQLite store creates its tables
            client = mlflow.MlflowClient(uri, uri)
            if client.get_experiment_by_name(MODEL) is None:
                # A server chooses the location itself; an SQLite store would choose the current folder.
                location = artifacts_folder(lake).as_uri() if uri.startswith("sqlite:") else None
                client.create_experiment(MODEL, artifact_location=location)
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        # Not "from error": its text may contain the password of the URI.
        raise PipelineError(
            without_secret(f"The MLflow store {uri} does not answer: {str(error).strip().splitlines()[0]}"),
            "Start the server that MLFLOW_TRACKING_URI names, or unset it to use the store in the lake.",
        ) from None
    return client


def find_run(client: "MlflowClient", fingerprint: str) -> str | None:
    """The id of the run of ``fingerprint``, or None."""
    # Take the oldest run, because a slow server may complete a request late and create a second run.
    runs = client.search_runs(
        [_experiment_id(client)],
        f"tags.`{FINGERPRINT}` = '{fingerprint}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return runs[0].info.run_id if runs else None


def get_or_create_run(client: "MlflowClient", lake: DataLake, fingerprint: str, recipe: str) -> str:
    """The id of the run of ``fingerprint``, created if needed. Two processes that call this at once get the same run."""
    with _store_lock(lake):
        run_id = find_run(client, fingerprint)
        if run_id:
            return run_id
        tags = {FINGERPRINT: fingerprint, "cs.recipe": recipe}
        run = client.create_run(_experiment_id(client), tags=tags, run_name=f"{recipe}-{fingerprint[:6]}")
        return str(run.info.run_id)


def _experiment_id(client: "MlflowClient") -> str:
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment is not None  # created by open_store
    return str(experiment.experiment_id)


def find_versions(client: "MlflowClient") -> list[Any]:
    """All versions of the registered model (MLflow's ModelVersion), oldest first."""
    return sorted(client.search_model_versions(f"name = '{MODEL}'"), key=lambda v: int(v.version))


def champion_number(client: "MlflowClient") -> int | None:
    """The number of the version with the alias ``champion``, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_model_version_by_alias(MODEL, CHAMPION).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def get_version(client: "MlflowClient", number: int) -> Version:
    """Version ``number``, with its files downloaded."""
    import mlflow

    version = client.get_model_version(MODEL, str(number))
    # MLflow would look up a models:/ URI in the store that this process opened last, even with a registry_uri.
    uri = client.get_model_version_download_uri(MODEL, str(number))
    folder = Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=client.tracking_uri))
    return Version(
        number, version.tags[FINGERPRINT], version.tags["cs.recipe"], str(version.run_id), folder / "artifacts"
    )


def champion_version(lake: DataLake) -> Version | None:
    """The current champion, or None if there is none."""
    client = open_store(lake)
    number = champion_number(client)
    return None if number is None else get_version(client, number)


SEND_EVERY = 3.0
"""Seconds between two batches of live metrics."""


class Spool:
    """The metrics of a training run on disk, one JSON line per step, so that training does not depend on MLflow.

    A resumed training repeats the steps since its last checkpoint. Values that are already in the spool stay and are not
    written again, so every metric has one value per step, in the spool and in MLflow.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path.parent)

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the ``metrics`` that ``step`` has not written yet. Only one process at a time may append."""
        new = {name: value for name, value in metrics.items() if (step, name) not in self._written}
        if new:
            with self.path.open("a") as file:
                file.write(json.dumps({"time": int(time.time() * 1000), "step": step, "metrics": new}) + "\n")
            self._written.update((step, name) for name in new)

    @cached_property
    def _written(self) -> set[tuple[int, str]]:
        """Step and name of every value in the spool. Cuts off a partial last line, which a full disk can cause."""
        content = self._complete_lines()
        if self.path.exists():
            os.truncate(self.path, len(content))
        return {(line["step"], name) for line in map(json.loads, content.splitlines()) for name in line["metrics"]}

    def replay(self, client: "MlflowClient", run_id: str) -> int:
        """Sends the values that ``run_id`` has not received yet and returns their number. MLflow ignores repeated values.

        If ``run_id`` is not the run of the last call, for example because the store was changed, it receives all values.
        """
        from mlflow.entities import Metric

        progress_file = self.path.with_suffix(".sent")
        progress = read_json(progress_file) if progress_file.exists() else {}
        sent = progress["bytes"] if progress.get("run") == run_id else 0
        content = self._complete_lines()
        lines = [json.loads(line) for line in content[sent:].splitlines()]
        batch = [Metric(k, v, line["time"], line["step"]) for line in lines for k, v in line["metrics"].items()]
        for start in range(0, len(batch), 1000):  # the limit of log_batch
            client.log_batch(run_id, metrics=batch[start : start + 1000])
        if batch:
            write_json(progress_file, {"bytes": len(content), "run": run_id})
        return len(batch)

    def _complete_lines(self) -> bytes:
        """The content of the spool up to the end of its last complete line."""
        content = self.path.read_bytes() if self.path.exists() else b""
        return content[: content.rfind(b"\n") + 1]


@contextmanager
def stream_metrics(spool: Spool, lake: DataLake, fingerprint: str, recipe: str) -> Iterator[None]:
    """Sends the spool to MLflow every few seconds while the block runs. An unreachable store does not slow it down."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    done = threading.Event()
    reported = False

    def send() -> None:
        nonlocal reported
        while True:
            last = done.wait(SEND_EVERY)
            try:
                client = open_store(lake)
                spool.replay(client, get_or_create_run(client, lake, fingerprint, recipe))
            except Exception as error:
                # The spool keeps all values after any error. They are sent when the model is registered.
                if not reported:
                    reported = True
                    print(without_secret(f"MLflow does not accept metrics; they are sent later. {error}"), flush=True)  # noqa: T201
            if last:
                return

    thread = threading.Thread(target=send, daemon=True, name="mlflow-live")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


def _store_lock(lake: DataLake) -> AbstractContextManager[bool]:
    """The lock to hold while looking for something in the store and creating it if it is missing."""
    return locked(lake.path("register", ".mlflow.lock"))
