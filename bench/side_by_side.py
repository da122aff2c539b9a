"""Shared by the benchmarks: running arms in turn, ratios of their times, and the conditions of a measurement."""

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from cs_pipeline.core.lake import write_json

RESULTS = Path(__file__).parent / "results"

T = TypeVar("T")


@dataclass(frozen=True)
class Arm(Generic[T]):
    """The times of one arm and the results that it ``computed``, one entry per round.

    ``seconds`` is wall-clock time. ``processor`` is the CPU time of all threads of this process; other work on the machine
    increases only ``seconds``.
    """

    seconds: list[float]
    processor: list[float]
    computed: list[T]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def facts(self) -> dict[str, Any]:
        """The timings as they are stored in a result."""
        return {"seconds": self.seconds, "median": self.median, "processor_seconds": self.processor}


def in_turn(arms: dict[str, Callable[[], T]], rounds: int, warmup_rounds: int = 1) -> dict[str, Arm[T]]:
    """Runs all ``arms`` one after the other, ``rounds`` times; each round begins with a different arm.

    A temporary slowdown of the machine therefore affects all arms. Before that, ``warmup_rounds`` fill caches and do not
    count.
    """
    names = list(arms)
    ran: dict[str, Arm[T]] = {name: Arm([], [], []) for name in names}
    for number in range(-warmup_rounds, rounds):
        for offset in range(len(names)):
            name = names[(number + offset) % len(names)]
            gc.collect()
            started, cpu_started = time.perf_counter(), time.process_time()
            computed = arms[name]()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            if number >= 0:
                ran[name].seconds.append(seconds)
                ran[name].processor.append(cpu_seconds)
                ran[name].computed.append(computed)
    return ran


def ratio(slower: Arm[T], faster: Arm[T]) -> dict[str, float]:
    """The time of ``slower`` divided by that of ``faster``: the median over the rounds, for wall-clock and CPU time."""
    return {
        "clock": _median_ratio(slower.seconds, faster.seconds),
        "processor": _median_ratio(slower.processor, faster.processor),
    }


def _median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def machine(*packages: str) -> dict[str, Any]:
    """The conditions of a measurement: date, machine, versions, and the load before it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(name: str, result: dict[str, Any], table: Table, write: bool) -> None:
    """Prints ``table`` and the conditions of the measurement; with ``write``, saves ``result`` as results/``name``.json."""
    console = Console()
    console.print(table)
    conditions = (result[key] for key in ("date", "machine", "load_before", "versions"))
    console.print("{}, {}, load {}, {}".format(*conditions), soft_wrap=True, highlight=False)
    if write:
        write_json(RESULTS / f"{name}.json", result)


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each arm runs")
    parser.add_argument("--write", action="store_true", help="save the result in bench/results")
    return parser
