"""Dagster's UI and daemon, MLflow's UI and the chat over one instance and one store, started and stopped together."""

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
GRACE = 10.0
"""Seconds that the services, and then the runs, have to end by themselves; what is then left is killed."""
POLL = 0.2
"""Seconds between two looks at the services."""


@dataclass(frozen=True)
class Service:
    """A server on this machine: ``page`` is a path that answers 200 once it serves."""

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
    """Serves all three, to this machine alone, until Ctrl-C, SIGTERM or SIGHUP. For the main thread, where signals arrive.

    ``project`` is the folder with workspace.yaml. Where ``MLFLOW_TRACKING_URI`` names a server that one is used.
    Returns the exit code: 0 after being stopped, 1 after a service ended by itself; nothing is left running either way.
    Raises PipelineError before starting anything: a port in use, a relative DAGSTER_HOME, a store that does not open.
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
                f"Port {service.port}, where {service.name} is to answer, is in use by {holder}.",
                "Stop that first; if it is another make dev, use that one.",
            )
    if not remote:
        tracking.open_store(lake)  # makes the store, which its server and a first run would otherwise both try

    addresses = [f"{service.name}: {service.address}" for service in services]
    if remote:
        addresses.insert(1, f"MLflow: {without_secret(uri)}")
    processes: list[subprocess.Popen[bytes]] = []
    with _stop_signals() as stop:
        try:
            for service in services:
                processes.append(_start(service, project))  # noqa: PERF401  (the first is stopped if the second fails)
            return _watch(services, processes, addresses, stop)
        finally:
            _stop(processes)


def dagster_home(project: Path) -> Path:
    """The folder of the Dagster instance: ``DAGSTER_HOME``, else ``dagster_home/`` of ``project``; made if not there.

    Raises PipelineError for a relative path and for a folder that cannot be made.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or project.absolute() / "dagster_home")
    refuse_relative_home(home)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(
            f"The Dagster instance cannot be kept in {home}: {error}.", "Point DAGSTER_HOME at a folder of yours."
        ) from error
    return home


def refuse_relative_home(home: Path) -> None:
    """Raises PipelineError for a relative ``DAGSTER_HOME``, which Dagster does not take."""
    if not home.is_absolute():
        raise PipelineError(
            f"DAGSTER_HOME is the relative path '{home}'; Dagster takes an absolute one only.",
            f"Set it to {home.absolute()}, or unset it to use the instance of the project.",
        )


def port_holder(port: int) -> str | None:
    """None where ``port`` of this machine is free; else who listens there, such as "process 17 (python -m http.server)"."""
    import psutil

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
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
        except psutil.Error:  # ended meanwhile, or another user's
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
    command += ["--uvicorn-opts", "--log-level warning"]  # no line for each request
    environment = {
        "MLFLOW_BACKEND_STORE_URI": tracking.store_uri(lake),  # not in the command, which every user can read
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five more processes, for evaluations nobody asks it for
    }
    return Service("MLflow", port, "/health", command, environment)


def _chat(lake: DataLake, port: int) -> Service:
    command = ["cs-pipeline", "serve", "--host", HOST, "--port", str(port)]
    return Service("Chat and API", port, "/health", command, {"CS_LAKE": str(lake.root.absolute())})


def _start(service: Service, project: Path) -> subprocess.Popen[bytes]:
    # In a session of its own, the terminal's Ctrl-C reaches us alone, and its process group holds all it starts.
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
    """Says the addresses once all answer, and returns the exit code once ``stop`` holds a signal or a service ended."""
    _say("Starting Dagster, MLflow and the chat; Ctrl-C stops all.")
    said = False
    while not stop:
        for service, process in zip(services, processes, strict=True):
            if process.poll() is not None:
                _say(f"{service.name} ended by itself with exit code {process.returncode}; its log is above.")
                return 1
        if not said and all(_answers(service) for service in services):
            _say("\n".join(addresses))
            said = True
        time.sleep(POLL)
    _say("Stopping.")
    return 0


def _answers(service: Service) -> bool:
    connection = http.client.HTTPConnection(HOST, service.port, timeout=1)
    try:
        connection.request("GET", service.page)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the services, then what is left in their groups: the runs, which write down that they were interrupted.

    A run that was only killed would count as started for days, and with one run at a time let no other begin.
    """
    for process in processes:
        process.terminate()
    _wait(lambda: all(process.poll() is not None for process in processes))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        _wait(lambda: not any(_members(process.pid) for process in processes))
    for process in processes:
        process.wait()


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + GRACE
    while not condition() and time.monotonic() < end:
        time.sleep(POLL)


def _members(group: int) -> list[int]:
    """The processes of a group that still run."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals received that ask to stop; inside the block they do nothing but stand there.

    Handled even where our parent ignores them: what a process ignores its children ignore too, and Dagster with them.
    """
    received: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(name, lambda number, _frame: received.append(number)) for name in names]
    try:
        yield received
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
