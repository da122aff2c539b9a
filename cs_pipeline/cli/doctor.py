"""What this machine has for the pipeline, what is wrong with it, and how to fix that."""

import importlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import requests

from cs_pipeline import tracking
from cs_pipeline.cli.dev import port_holder, refuse_relative_home
from cs_pipeline.core.errors import Finding, PipelineError, Status, without_secret
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.recipe import load_recipe

if TYPE_CHECKING:
    from rich.table import Table

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
"""The pins of a checkout; an installed package has none."""
MEMORY = 4.5e9
"""Bytes: the embedded recipe's training process peaked at 3.9 GB, the process that runs the job needs half of one."""
SERVICES = 1.2e9
"""Bytes: resident memory of Dagster's services (0.7 GB) and MLflow's server (0.5)."""
DISK = 1e9
"""Bytes: a run of the embedded recipe adds some tens of MB; with less than this, databases and checkpoints soon fail."""
DISK_FOR_HUB = 10e9
"""Bytes: a base model from the hub is 0.3 to 5 GB, and lies in the hub's cache as well as in the lake."""
NF4_ERROR = 0.2
"""Relative error of a layer's output. Rounding its weights to 16 values gives about 0.1; a broken library far more."""
ANEW = "Make the environment anew: make clean, then make demo."
MIGRATE = (
    "After an upgrade of Dagster: .venv/bin/dagster instance migrate. If its databases are broken, move history/ and "
    "schedules/ away: the runs' records are lost, the tables and models are not."
)

Found: TypeAlias = tuple[Status, str, str | None]


def examine(lake: DataLake, dagster_home: Path) -> list[Finding]:
    """All findings of this machine, in a fixed order, after some seconds: libraries are imported, stores opened.

    What a look raises is its finding, so this raises nothing. An instance or store that is not there yet is made, as by
    its first use.
    """
    looks: list[tuple[str, Callable[[], Found], str]] = [
        ("Python", _python, ANEW),
        ("libraries", _libraries, ANEW),
        ("torch", _torch, ANEW),
        ("GPU", _gpu, "Look at the driver with nvidia-smi."),
        ("bitsandbytes", _bitsandbytes, ANEW),
        ("memory", _memory, ANEW),
        ("disk", lambda: _disk(lake), "Point CS_LAKE at a folder that is there."),
        ("data lake", lambda: _lake(lake), "Free the disk, or point CS_LAKE at another folder."),
        ("Dagster", lambda: _dagster(dagster_home), MIGRATE),
        ("MLflow", lambda: _mlflow(lake), "Look at MLFLOW_TRACKING_URI and at the store that it names."),
        ("ports", _ports, "Look which programs listen there."),
        ("model hub", _hub, "Look at HF_ENDPOINT."),
    ]
    return [_finding(*look) for look in looks]


def examine_recipe(name: str, lake: DataLake) -> list[Finding]:
    """What a training by the recipe ``name`` would need of this machine, before it costs anything.

    Raises PipelineError for a recipe that is not there or is wrong.
    """
    from cs_pipeline.train.plan.machine_fit import check_machine, this_machine

    return check_machine(load_recipe(name), lake, this_machine())


def table(findings: list[Finding]) -> "Table":
    """The findings for a terminal."""
    from rich.table import Column, Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    fold = (Column(name, overflow="fold") for name in ("found", "what to do"))  # a long path is not cut
    shown = Table("", "", *fold, box=None)
    for finding in findings:
        status = Text(finding.status, colours[finding.status])
        shown.add_row(status, Text(finding.name), Text(finding.what), Text(finding.fix or ""))
    return shown


def _finding(name: str, look: Callable[[], Found], fix: str) -> Finding:
    try:
        return Finding(name, *look())
    except PipelineError as error:
        return Finding(name, "problem", error.what, error.fix)
    except Exception as error:  # a broken library may raise anything: it is what was found
        return Finding(name, "problem", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", fix)


def _python() -> Found:
    return "ok", f"{sys.version.split()[0]} in {sys.prefix}", None  # older than 3.11 it could not be installed in


def _libraries() -> Found:
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines()) if CONSTRAINTS.exists() else {}
    needed = [Requirement(text) for text in metadata.requires("cs-pipeline") or []]
    found: dict[str, str] = {}
    unfit, differing = [], []
    for requirement in needed:
        name = requirement.name
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            unfit.append(f"{name} is missing")
            continue
        public = found[name].partition("+")[0]  # without the build, as in 2.13.0+cpu
        if not requirement.specifier.contains(public, prereleases=True):
            unfit.append(f"{name} {found[name]} does not fit {requirement.specifier}")
        elif pins.get(name, public) != public:
            differing.append(f"{name} {found[name]} instead of {pins[name]}")
    if found.get("dagster") != found.get("dagster-webserver"):
        unfit.append(f"dagster {found.get('dagster')} and dagster-webserver {found.get('dagster-webserver')} differ")
    if unfit:
        return "problem", "; ".join(unfit), ANEW
    if differing:
        return "note", f"Not as pinned in constraints.txt: {', '.join(differing)}", ANEW
    return "ok", ", ".join(f"{name} {version}" for name, version in found.items()), None


def _torch() -> Found:
    import torch

    threads, cores = torch.get_num_threads(), _cores()
    what = f"{torch.__version__}, {threads} threads on {cores} cores"
    if threads > cores:
        return "note", f"{what}: waiting threads slow training many times", f"Set OMP_NUM_THREADS={cores}."
    return "ok", what, None


def _gpu() -> Found:
    import torch

    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia/version").exists():
            fix = (
                "Install a torch built for CUDA, and a driver that is new enough for it (nvidia-smi says which it is)."
            )
            return "problem", f"There is an Nvidia driver, but torch {torch.__version__} cannot use its GPU", fix
        what = "None. The embedded recipes take minutes on the CPU; recipes with a base from the hub take hours to days"
        return "note", what, "For those recipes: a machine with an Nvidia GPU of 8 GB or more."
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    # From compute capability 8.0 on; before it torch emulates bf16, slowly.
    texts = [f"{g.name}, {g.total_memory / 1e9:.0f} GB, {'bf16' if g.major >= 8 else 'no bf16'}" for g in gpus]
    return "ok", "; ".join(texts), None


def _bitsandbytes() -> Found:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # when imported, it recommends another package
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact = torch.nn.Linear(64, 64, bias=False)
    rounded = Linear4bit(64, 64, bias=False, quant_type="nf4")  # type: ignore[no-untyped-call]
    rounded.load_state_dict(exact.state_dict())
    rounded.to(device)  # quantises
    inputs = torch.randn(256, 64)
    with torch.inference_mode():
        expected, output = exact(inputs), rounded(inputs.to(device)).cpu()
    error = float((output - expected).norm() / expected.norm())
    what = f"{metadata.version('bitsandbytes')}: a layer in NF4 on {device} is off by {error:.1%}"
    if rounded.weight.dtype != torch.uint8 or not error < NF4_ERROR:
        return "problem", f"{what}, stored as {rounded.weight.dtype}; about 10% as uint8 is right", ANEW
    return "ok", what, None


def _memory() -> Found:
    import psutil

    memory = psutil.virtual_memory()
    limit = _cgroup("memory.max")[0]
    total = memory.total if limit == "max" else min(memory.total, int(limit))
    available = min(memory.available, total)
    what = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB available"
    if available < MEMORY:
        fix = f"End other programs (make dev takes {SERVICES / 1e9} GB), or the training may be killed."
        return "problem", f"{what}; training with the embedded recipe takes {MEMORY / 1e9} GB", fix
    return "ok", what, None


def _disk(lake: DataLake) -> Found:
    folder = next(path for path in (lake.root, *lake.root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    what = f"{free / 1e9:.1f} GB free for {lake.root}"
    fix = "Free the disk, or point CS_LAKE at a larger one."
    if free < DISK:
        return "problem", f"{what}, less than {DISK / 1e9:.0f} GB", fix
    if free < DISK_FOR_HUB:
        return "note", f"{what}; recipes with a base from the hub take {DISK_FOR_HUB / 1e9:.0f} GB", fix
    return "ok", what, None


def _lake(lake: DataLake) -> Found:
    probe = {"written": "by the doctor"}
    for folder in [lake.root, *(path for path in lake.root.glob("*") if path.is_dir())]:
        path = folder / f".doctor-{os.getpid()}"
        write_json(path, probe)
        same = read_json(path) == probe
        path.unlink()
        if not same:
            return "problem", f"{folder} gives back other than what was written", "Look at the disk."
    return "ok", f"{lake.root} can be written", None


def _dagster(home: Path) -> Found:
    refuse_relative_home(home)
    if not home.is_dir():
        return "problem", f"{home} is not a folder", "Make it, or unset DAGSTER_HOME to use the project's instance."
    with tempfile.TemporaryFile(dir=home):
        pass
    dagster = importlib.import_module("dagster")  # this module knows of Dagster only that it can be opened
    with dagster.DagsterInstance.from_config(str(home)) as instance:
        status = dagster.DagsterRunStatus
        running = instance.get_runs(dagster.RunsFilter(statuses=[status.STARTING, status.STARTED, status.CANCELING]))
        what = f"{home}: {instance.get_runs_count()} runs"
    if not (home / "dagster.yaml").exists():
        return "note", f"{what}, without the project's settings", f"Copy dagster_home/dagster.yaml into {home}."
    if running:
        names = ", ".join(run.run_id[:8] for run in running)
        fix = "Others wait for it. If it does not really run, end it in the Dagster UI: Runs, Terminate, Force."
        return "note", f"{what}, in progress: {names}", fix
    return "ok", what, None


def _mlflow(lake: DataLake) -> Found:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # else minutes for a server that is away
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    client = tracking.open_store(lake)
    versions, champion = len(tracking.find_versions(client)), tracking.champion_number(client)
    crowned = f"version {champion} is the champion" if champion else "no champion yet"
    return "ok", f"{versions} versions of {tracking.MODEL}, {crowned}", None


def _ports() -> Found:
    held = [f"{port} by {holder}" for port in (3000, 5000) if (holder := port_holder(port))]
    if held:
        return "note", f"In use: {', '.join(held)}", "Nothing if that is make dev; else stop it before make dev."
    return "ok", "3000 and 5000 are free for make dev", None


def _hub() -> Found:
    shown = without_secret(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    only = "only recipes with a base from the hub and the source 'hub' need it"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "note", f"HF_HUB_OFFLINE forbids asking {shown}; {only}", "Unset HF_HUB_OFFLINE to use the hub."
    fix = "Look at the network, the proxy and HF_ENDPOINT."
    try:
        answer = requests.head(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", timeout=(3, 5))
    except requests.RequestException as error:
        return "note", f"{shown} cannot be reached ({type(error).__name__}); {only}", fix
    if answer.status_code >= 400:
        return "note", f"{shown} answers {answer.status_code} {answer.reason}; {only}", fix
    return "ok", f"{shown} answers", None


def _cores() -> int:
    """The cores that this process may use: a container's share can be far below what the machine has."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, *period = _cgroup("cpu.max")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period[0])))


def _cgroup(file: str) -> list[str]:
    """The values of a limit of this container; ["max"] where there is none."""
    path = Path("/sys/fs/cgroup", file)
    return path.read_text().split() if path.exists() else ["max"]
