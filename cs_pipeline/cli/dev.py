"""Starts and stops Dagster's UI and daemon, MLflow's UI and the chat together, on one Dagster instance and MLflow store."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cs_pipeline import tracking
from cs_pipeline.core.errors import PipelineError, without_secret
from cs_pipeline.core.lake import DataLake

HOST = "127.0.0.1"
_TERMINATION_TIMEOUT = 10.0
"""Seconds that the services, and then the runs, have to end by themselves before they are killed."""
_POLL_INTERVAL = 0.2
"""Seconds between two checks of the services."""


@dataclass(frozen=True)
class Service:
    """A server on this machine. ``page`` is a path that answers 200 once the server is ready."""

    name: str
    port: int
    page: str
    command: Sequence[str]
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"


def serve_dev(
    project: Path, lake: DataLake, dagster_port: int = 3000, mlflow_port: int = 5000, chat_port: int = 8000
) -> int:
    """Serves Dagster, MLflow and the chat on localhost until Ctrl-C, SIGTERM or SIGHUP. Call it in the main thread.

    ``project`` is the folder with workspace.yaml. If ``MLFLOW_TRACKING_URI`` names a server, no MLflow server is started.
    Returns the exit code: 0 after a signal, 1 if a service ended by itself. All services are stopped in both cases.
    Before it starts any, it raises PipelineError if a port is in use, DAGSTER_HOME is relative or the store does not
    open.
    """
    services = [_dagster(dagster_home(project), lake, dagster_port)]
    uri = tracking.store_uri(lake)
    remote = uri.startswith(("http://", "https://"))
    if not remote:
        services.append(_mlflow(lake, mlflow_port))
    services.append(_chat(lake, chat_port))
    for service in services:
        holder = port_holder(service.port)
        if holder is not None:
            raise PipelineError(
                f"Port {service.port}, which {service.name} needs, is in use by {holder}.",
                "Stop that process first; if it is another make dev, use that one.",
            )
    if not remote:
        tracking.open_store(lake)  # created now, because its server and a first run could both create it later

    addresses = [f"{service.name}: {service.address}" for service in services]
    if remote:
        addresses.insert(1, f"MLflow: {without_secret(uri)}")
    processes: list[subprocess.Popen[bytes]] = []
    with _stop_signals() as stop:
        try:
            for service in services:
                processes.append(_start(service, project))  # noqa: PERF401  (the first one is stopped if the second fails)
            return _watch(services, processes, addresses, stop)
        finally:
            _stop(processes)


def dagster_home(project: Path) -> Path:
    """The folder of the Dagster instance, created if missing: ``DAGSTER_HOME``, else ``dagster_home/`` in ``project``.

    Raises PipelineError for a relative path, or if the folder cannot be created.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or project.absolute() / "dagster_home")
    require_absolute_home(home)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"The Dagster instance cannot be created in {home}: {error}.", "Point DAGSTER_HOME at a folder you own."
        ) from error
    return home


def require_absolute_home(home: Path) -> None:
    """Raises PipelineError for a relative ``DAGSTER_HOME``, which Dagster does not accept."""
    if not home.is_absolute():
        raise PipelineError(
            f"DAGSTER_HOME is the relative path '{home}'; Dagster accepts only absolute paths.",
            f"Set it to {home.absolute()}, or unset it to use the project's instance.",
        )


def port_holder(port: int) -> str | None:
    """The process that listens on a local port, such as "process 17 (python -m http.server)"; None if the port is free."""
    import psutil

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like the servers
        try:
            probe.bind((HOST, port))
            return None
        except OSError:
            pass
    for process in psutil.process_iter():
        try:
            listening = any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections())
            if listening:
                return f"process {process.pid} ({' '.join(process.cmdline()[:4])})"
        except psutil.Error:  # it has ended, or belongs to another user
            continue
    return "a process of another user"


def _dagster(home: Path, lake: DataLake, port: int) -> Service:
    command = ["dagster", "dev", "-w", "workspace.yaml", "-h", HOST, "-p", str(port)]
    return Service(
        "Dagster", port, "/server_info", command, {"DAGSTER_HOME": str(home), "CS_LAKE": str(lake.root.absolute())}
    )


def _mlflow(lake: DataLake, port: int) -> Service:
    command = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", tracking.artifacts_folder(lake).absolute().as_uri()]
    command += ["--uvicorn-opts", "--log-level warning"]  # without access logs
    environment = {
        "MLFLOW_BACKEND_STORE_URI": tracking.store_uri(lake),  # not in the command, which every user can see
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves five processes for unused server-side jobs
    }
    return Service("MLflow", port, "/health", command, environment)


def _chat(lake: DataLake, port: int) -> Service:
    command = ["cs-pipeline", "serve", "--host", HOST, "--port", str(port)]
    return Service("Chat and API", port, "/health", command, {"CS_LAKE": str(lake.root.absolute())})


def _start(service: Service, project: Path) -> subprocess.Popen[bytes]:
    # In a session of its own the service does not get the terminal's Ctrl-C, and its process group holds all its children.
    name, *arguments = service.command
    return subprocess.Popen(
        [str(Path(sys.executable).with_name(name)), *arguments],
        cwd=project,
        env=os.environ | service.environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch(
    services: Sequence[Service],
    processes: Sequence[subprocess.Popen[bytes]],
    addresses: Sequence[str],
    stop: Sequence[int],
) -> int:
    """Prints the addresses when all services answer. Returns the exit code when a signal arrives or a service ends."""
    _print("Starting Dagster, MLflow and the chat; Ctrl-C stops all of them.")
    announced = False
    while not stop:
        for service, process in zip(services, processes, strict=True):
            if process.poll() is not None:
                _print(f"{service.name} ended by itself with exit code {process.returncode}; its log is above.")
                return 1
        if not announced and all(map(_is_ready, services)):
            _print("\n".join(addresses))
            announced = True
        time.sleep(_POLL_INTERVAL)
    _print("Stopping.")
    return 0


def _is_ready(service: Service) -> bool:
    connection = http.client.HTTPConnection(HOST, service.port, timeout=1)
    try:
        connection.request("GET", service.page)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the services, then the other processes of their groups: the runs, which record that they were interrupted.

    Dagster would show a killed run as started for days. It would block all others, because only one may execute at a time.
    """
    for process in processes:
        process.terminate()
    _wait_for(lambda: all(process.poll() is not None for process in processes))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        _wait_for(lambda: not any(_members(process.pid) for process in processes))
    for process in processes:
        process.wait()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TERMINATION_TIMEOUT
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)


def _members(group: int) -> list[int]:
    """The ids of the running processes in the process group ``group``."""
    import psutil

    members = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP during the block instead of acting on them.

    A signal that this process inherited as ignored is collected too: otherwise the services would also ignore it.
    """
    received: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(name, lambda number, _frame: received.append(number)) for name in names]
    try:
        yield received
    finally:
        for name, handler in zip(names, previous, strict=True):
            signal.signal(name, handler)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201
