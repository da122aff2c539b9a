"""Launchers: how settings choose one, a real Ray on this machine, and a pod run by a small stand-in for Kubernetes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import yaml

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.defs.launch import Launcher, filled_pod
from cs_pipeline.train.adapter import current_adapter
from cs_pipeline_tests.support.launching import launch, make_lake, make_world

BIN = Path(sys.executable).parent
POD = Path(__file__).parents[2] / "docs" / "pod.yaml"
MISSING = "There is no recipe 'missing' in"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def settings(world: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The recipes of ``world``, and a token that no cluster job may get."""
    monkeypatch.setenv("CS_RECIPES", str(world / "recipes"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return monkeypatch


@pytest.mark.parametrize(
    ("chosen", "what", "fix"),
    [
        ({"CS_LAUNCHER": "slurm"}, "There is no launcher 'slurm'", "local, torchrun, ray, kubernetes"),
        ({"CS_PROCESSES": "4"}, "'local' starts one process, and CS_PROCESSES is 4", "CS_LAUNCHER=torchrun"),
        ({"CS_LAUNCHER": "torchrun", "CS_PROCESSES": "two"}, "CS_PROCESSES is 'two'", "to a number"),
        ({"CS_LAUNCHER": "torchrun", "CUDA_VISIBLE_DEVICES": ""}, "this machine has no GPU", "CS_PROCESSES"),
    ],
)
def test_impossible_settings_are_refused(
    settings: pytest.MonkeyPatch, lake: DataLake, chosen: dict[str, str], what: str, fix: str
) -> None:
    for name, value in chosen.items():
        settings.setenv(name, value)
    success, _, reason = launch(Launcher(), lake, "small")
    assert not success
    assert what in reason
    assert fix in reason


def test_the_runs_configuration_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Launcher().is_local
    monkeypatch.setenv("CS_LAUNCHER", "ray")
    assert not Launcher().is_local
    assert Launcher(kind="torchrun").is_local


@pytest.fixture
def kubeconfig(settings: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of the Kubernetes client's configuration. The file does not exist."""
    pytest.importorskip("dagster_k8s", reason="the extra 'kubernetes' is not installed")
    settings.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    # The client reads KUBECONFIG when it is imported.
    settings.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return tmp_path / "kubeconfig"


def test_a_training_that_cannot_start_is_not_tried_again(kubeconfig: Path, lake: DataLake) -> None:
    success, lines, reason = launch(Launcher(kind="kubernetes", pod=str(POD)), lake, "small")
    assert not success
    assert reason.startswith("The training did not start: Invalid kube-config file.")
    assert "under the same path" in reason
    assert not [line for line in lines if "starting it again" in line]


# Ray


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != "zombie":
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray on this machine, for these tests only. Its jobs find this environment's programs."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    folder = (
        Path("/tmp") / f"cs-ray-{os.getpid()}"
    )  # Ray's sockets are below it, and their paths may have 107 characters at most
    port = free_port()
    command = ["ray", "start", "--head", "--block", "--port=0", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    with log.open("wb") as file:
        head = subprocess.Popen(
            [BIN / command[0], *command[1:]], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 300
        while not _answers(f"{address}/api/version"):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        yield address
    finally:
        head.terminate()
        end = time.monotonic() + 30
        while members(head.pid) and time.monotonic() < end:
            time.sleep(0.2)
        for member in members(head.pid):
            member.kill()
        head.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def test_a_job_on_ray_trains(ray: str, settings: pytest.MonkeyPatch, lake: DataLake) -> None:
    settings.setenv("RAY_ADDRESS", ray)
    make_lake(lake.root)
    success, lines, reason = launch(Launcher(kind="ray", gpus=0), lake, "small")
    assert success, reason
    assert len([line for line in lines if line.startswith("adapter step 10/10")]) == 1
    assert current_adapter("small", lake).metrics["steps"] == 10


def test_a_job_on_ray_reports_why_it_failed(ray: str, settings: pytest.MonkeyPatch, lake: DataLake) -> None:
    settings.setenv("RAY_ADDRESS", ray)
    success, lines, reason = launch(Launcher(kind="ray", gpus=0), lake, "missing")
    assert not success
    assert reason.startswith(MISSING)
    assert not [line for line in lines if "starting it again" in line]
    assert not list(lake.path("train").iterdir())


# Kubernetes


class Kubernetes(ThreadingHTTPServer):
    """The part of the Kubernetes API that a pod's lifecycle needs; the pod's command runs here, with its environment."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.pods: dict[str, dict[str, Any]] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.deleted: list[str] = []

    def create(self, pod: dict[str, Any]) -> dict[str, Any]:
        (container,) = pod["spec"]["containers"]
        given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        name = pod["metadata"]["name"]
        self.running[name] = subprocess.Popen(
            container["command"],
            env={"PATH": f"{BIN}:/usr/bin:/bin", **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pods[name] = pod
        return pod

    def with_status(self, name: str) -> dict[str, Any]:
        code = self.running[name].poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        container = {
            "name": "train",
            "ready": code is None,
            "state": state,
            "image": "",
            "imageID": "",
            "restartCount": 0,
        }
        return {**self.pods[name], "status": {"phase": "Running", "containerStatuses": [container]}}

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        self.shutdown()
        self.server_close()


class _Api(BaseHTTPRequestHandler):
    server: Kubernetes

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        assert self.path == "/api/v1/namespaces/support-ml/pods"
        self._reply(self.server.create(json.loads(self.rfile.read(int(self.headers["Content-Length"])))), 201)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        log = re.search(r"/pods/([\w-]+)/log", self.path)
        if log is None:
            name = query["fieldSelector"][0].removeprefix("metadata.name=")
            self._reply({"kind": "PodList", "apiVersion": "v1", "items": [self.server.with_status(name)]})
            return
        self.send_response(200)
        self.end_headers()  # the log ends when the connection is closed
        output = self.server.running[log[1]].stdout
        assert output is not None
        for line in output if "follow" in query else ():
            seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # every line has its own time
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            self.wfile.write(f"{stamp}.{nanoseconds:09}Z ".encode() + line)

    def do_DELETE(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        self.server.running[name].wait(60)
        self.server.deleted.append(name)
        self._reply({"kind": "Status", "apiVersion": "v1"})


@pytest.fixture
def kubernetes(kubeconfig: Path) -> Iterator[Kubernetes]:
    server = Kubernetes()
    threading.Thread(target=server.serve_forever).start()
    cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "here", "context": {"cluster": "here", "user": ""}}
    config = {"clusters": [cluster], "contexts": [context], "users": [], "current-context": "here"}
    kubeconfig.write_text(yaml.safe_dump(config))
    yield server
    server.close()


def test_a_pod_trains_reports_and_is_deleted(kubernetes: Kubernetes, lake: DataLake) -> None:
    make_lake(lake.root)
    launcher = Launcher(kind="kubernetes", pod=str(POD), processes=2)
    success, lines, reason = launch(launcher, lake, "small", "--base-only")
    assert success, reason
    assert lines.count("base model: base") == 1
    (name,) = kubernetes.deleted
    pod = kubernetes.pods[name]
    (container,) = pod["spec"]["containers"]
    assert container["command"][:4] == ["python", "-m", "torch.distributed.run", "--standalone"]
    assert container["resources"]["limits"] == {"memory": "48Gi", "nvidia.com/gpu": "2"}
    assert container["volumeMounts"][0] == {"name": "lake", "mountPath": "/lake"}
    assert pod["spec"]["restartPolicy"] == "Never"
    by_secret = {entry["name"] for entry in container["env"] if "value" not in entry}
    assert by_secret == {"HF_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert given["CS_LAKE"] == str(lake.root)
    assert "hf_secret" not in json.dumps(pod)


def test_a_pod_reports_why_it_failed(kubernetes: Kubernetes, lake: DataLake) -> None:
    success, _, reason = launch(Launcher(kind="kubernetes", pod=str(POD)), lake, "missing")
    assert not success
    assert reason.startswith(MISSING)
    assert len(kubernetes.deleted) == 1


def test_an_address_with_a_password_is_not_passed_to_a_pod(
    kubernetes: Kubernetes, settings: pytest.MonkeyPatch, lake: DataLake
) -> None:
    settings.setenv("MLFLOW_TRACKING_URI", "https://ann:pass@mlflow.example.com")
    success, _, reason = launch(Launcher(kind="kubernetes", pod=str(POD)), lake, "small")
    assert not success
    assert "contains a password" in reason
    assert "pass@" not in reason
    assert not kubernetes.pods


def test_a_pod_file_without_a_container_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text("spec: {}\n")
    with pytest.raises(PipelineError, match=r"no spec\.containers") as error:
        filled_pod(path, ["python"], 1)
    assert "docs/pod.yaml" in error.value.fix
