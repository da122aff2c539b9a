"""What this machine has for the pipeline, what is wrong with it, and how to mend that."""

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import requests

from cs_pipeline import tracking
from cs_pipeline.dev import port_holder
from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake, read_json, write_json

if TYPE_CHECKING:
    from rich.table import Table

PYTHON = (3, 11)
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
"""The pins of a checkout; an installed package has none."""

MEMORY = 2.5e9
"""Bytes. Resident, as measured: Dagster's services 0.7 GB, MLflow's server 0.5, a run 0.3, its training process 1."""
DISK = 1e9
"""Bytes. Tables, models, reports and MLflow's copies of them, of a few runs of the embedded recipe."""
DISK_FOR_HUB = 10e9
"""Bytes. A base model from the hub is stored in its cache and, merged into no version, once in the lake: 0.3 to 5 GB each."""
NF4_ERROR = 0.2
"""Relative error of a layer's output above which NF4 is broken. Rounding normal weights to 16 values gives about 0.1."""

ANEW = "Make the environment anew: make clean, then make demo."


@dataclass(frozen=True)
class Finding:
    """What was found under ``name``, and where it is not ok what to do; a note is no obstacle to the main job."""

    name: str
    status: Literal["ok", "note", "problem"]
    what: str
    mend: str | None = None


def examine(lake: DataLake, dagster_home: Path) -> list[Finding]:
    """Everything worth knowing of this machine, in a fixed order. Takes some seconds, for it imports and opens all.

    Never raises: what a look raises is its finding. The Dagster instance and the MLflow store are made where there
    are none, as their first use would.
    """
    looks: list[tuple[str, Callable[[], Finding], str]] = [
        ("Python", _python, "Install Python 3.11 or newer."),
        ("libraries", _libraries, ANEW),
        ("torch", _torch, ANEW),
        ("GPU", _gpu, "Check the driver with nvidia-smi; without a GPU everything runs on the CPU."),
        ("bitsandbytes", _bitsandbytes, ANEW),
        ("memory", _memory, ANEW),
        ("disk", lambda: _disk(lake), "Point CS_LAKE at a folder that is there."),
        ("data lake", lambda: _lake(lake), "Give this user the right to write there, or point CS_LAKE elsewhere."),
        ("Dagster", lambda: _instance(dagster_home), "After an upgrade: .venv/bin/dagster instance migrate."),
        ("MLflow", lambda: _store(lake), "After an upgrade: .venv/bin/mlflow db upgrade <address of the store>."),
        ("ports", _ports, "make dev needs the ports 3000 and 5000."),
        ("model hub", _hub, "Check HF_ENDPOINT and the proxy."),
    ]
    return [_look(name, look, mend) for name, look, mend in looks]


def table(findings: list[Finding]) -> "Table":
    """The findings for a terminal."""
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    shown = Table("", "", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        shown.add_row(
            Text(finding.status, colours[finding.status]), Text(finding.name), Text(finding.what), Text(finding.mend or "")
        )
    return shown


def _look(name: str, look: Callable[[], Finding], mend: str) -> Finding:
    try:
        return look()
    except PipelineError as error:
        return Finding(name, "problem", error.what, error.mend)
    except Exception as error:  # a broken library may raise anything; it is shown, not hidden
        return Finding(name, "problem", f"{type(error).__name__}: {error}".strip(), mend)
