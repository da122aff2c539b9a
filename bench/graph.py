"""The overhead per step of running the assets' functions in the Dagster graph, in process.

    python -m bench.graph [--recipe smoke] [--rounds 5] [--write]

It runs the full pipeline on the sample rows in a new lake: once from scratch, then ``--rounds`` times with everything up to
date. The function of each asset and check is timed inside the run; the rest of the run's wall-clock time is Dagster's
overhead, including its event log and metadata. Training has its own process and counts as the asset's function.
"""

import functools
import inspect
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from rich.table import Table

from bench.side_by_side import arguments, machine, report

MAX_OVERHEAD = 0.15
"""Maximum overhead of the graph, in seconds per step."""


class Stopwatch:
    """Wall-clock and CPU seconds inside the wrapped functions, which run one at a time."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.processor += time.process_time() - cpu_started

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed. A generator is timed while it runs, not while it waits."""
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
                results = function(*args, **kwargs)
                while True:
                    with self.running():
                        result = next(results, None)
                    if result is None:
                        return
                    yield result

            return generate

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return call


@contextmanager
def time_functions(job: dg.JobDefinition) -> Iterator[Stopwatch]:
    """Times the functions of all assets and checks of ``job`` within the context."""
    stopwatch = Stopwatch()
    operations: list[Any] = list(job.graph.node_defs)
    originals = [operation._compute_fn for operation in operations]
    for operation, original in zip(operations, originals, strict=True):
        operation._compute_fn = original._replace(decorated_fn=stopwatch.timed(original.decorated_fn))
    try:
        yield stopwatch
    finally:
        for operation, original in zip(operations, originals, strict=True):
            operation._compute_fn = original


def measure(job: dg.JobDefinition, recipe: str, home: Path, rounds: int) -> dict[str, Any]:
    """Runs ``job`` for the partition ``recipe`` once, then ``rounds`` more times, on a Dagster instance in ``home``."""
    home.mkdir(parents=True)
    runs = []
    with dg.DagsterInstance.local_temp(str(home), {"telemetry": {"enabled": False}}) as instance:
        for _ in range(rounds + 1):
            with time_functions(job) as stopwatch:
                started, cpu_started = time.perf_counter(), time.process_time()
                result = job.execute_in_process(instance=instance, partition_key=recipe)
                wall, processor = time.perf_counter() - started, time.process_time() - cpu_started
            steps = sum(event.is_step_success for event in result.all_events)
            runs.append(
                {
                    "steps": steps,
                    "wall": wall,
                    "functions": stopwatch.seconds,
                    "above_per_step": (wall - stopwatch.seconds) / steps,
                    "processor_above_per_step": (processor - stopwatch.processor) / steps,
                }
            )
    return {
        "recipe": recipe,
        "first": runs[0],
        "again": runs[1:],
        **{
            name: statistics.median(run[name] for run in runs[1:])
            for name in ("above_per_step", "processor_above_per_step")
        },
        "most": MAX_OVERHEAD,
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--recipe", default="smoke")
    given = parser.parse_args()
    from cs_pipeline.definitions import defs

    conditions = machine("dagster", "dagster-webserver")
    with tempfile.TemporaryDirectory(prefix="bench-graph-") as folder:
        os.environ |= {"CS_LAKE": str(Path(folder, "lake")), "CS_BITEXT": "sample"}
        job = defs.resolve_job_def("support_model")
        result = conditions | measure(job, given.recipe, Path(folder, "dagster"), given.rounds)
    title = f"overhead of the graph per step; at most {MAX_OVERHEAD} s"
    table = Table("run", "steps", "wall s", "functions s", "overhead s", "CPU overhead s", title=title)
    for name, run in [("first", result["first"]), *((f"again {i + 1}", run) for i, run in enumerate(result["again"]))]:
        times = (f"{run[key]:.2f}" for key in ("wall", "functions"))
        overheads = (f"{run[key]:.3f}" for key in ("above_per_step", "processor_above_per_step"))
        table.add_row(name, str(run["steps"]), *times, *overheads)
    medians = (f"{result[key]:.3f}" for key in ("above_per_step", "processor_above_per_step"))
    table.add_row("median again", "", "", "", *medians)
    report("graph", result, table, given.write)


if __name__ == "__main__":
    main()
