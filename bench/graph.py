"""What the Dagster graph takes above the functions that it calls, per step, in process.

    python -m bench.graph [--recipe smoke] [--rounds 5] [--write]

It materialises the whole job on the project's sample rows in a lake of its own, once to make everything and then round by
round with nothing to do anew. Each asset's and check's own function is timed inside the very run that is measured: what is
left of the run's wall time is Dagster's, its event log and metadata included. The training, which has a process of its own,
counts as the asset's function.
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

MOST = 0.15
"""Seconds per step that the graph may take for itself."""


class Stopwatch:
    """Seconds inside the functions that it wraps, of the clock and of the processor; one runs at a time."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started, used = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.processor += time.process_time() - used

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts; one that yields is timed while it works, not while it waits."""
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
                results = function(*args, **kwargs)
                while True:
                    with self.running():
                        result = next(results, None)
                    if result is None:
                        return
                    yield result

            return steps

        @functools.wraps(function)
        def whole(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return whole


@contextmanager
def watched(job: dg.JobDefinition) -> Iterator[Stopwatch]:
    """A stopwatch on the functions of all assets and checks of ``job``."""
    stopwatch = Stopwatch()
    operations: list[Any] = list(job.graph.node_defs)
    plain = [operation._compute_fn for operation in operations]
    for operation, compute in zip(operations, plain, strict=True):
        operation._compute_fn = compute._replace(decorated_fn=stopwatch.timed(compute.decorated_fn))
    try:
        yield stopwatch
    finally:
        for operation, compute in zip(operations, plain, strict=True):
            operation._compute_fn = compute


def measure(job: dg.JobDefinition, recipe: str, home: Path, rounds: int) -> dict[str, Any]:
    """Runs ``job`` for the partition ``recipe`` once and ``rounds`` times again, on a Dagster instance in ``home``."""
    home.mkdir(parents=True)
    runs = []
    with dg.DagsterInstance.local_temp(str(home), {"telemetry": {"enabled": False}}) as instance:
        for _ in range(rounds + 1):
            with watched(job) as stopwatch:
                started, used = time.perf_counter(), time.process_time()
                result = job.execute_in_process(instance=instance, partition_key=recipe)
                wall, processor = time.perf_counter() - started, time.process_time() - used
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
        "most": MOST,
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--recipe", default="smoke")
    given = parser.parse_args()
    from cs_pipeline.definitions import defs

    about = machine("dagster", "dagster-webserver")
    with tempfile.TemporaryDirectory(prefix="bench-graph-") as folder:
        os.environ |= {"CS_LAKE": str(Path(folder, "lake")), "CS_BITEXT": "sample"}
        job = defs.resolve_job_def("support_model")
        result = about | measure(job, given.recipe, Path(folder, "dagster"), given.rounds)
    title = "the graph above its functions, per step"
    table = Table("run", "steps", "wall s", "functions s", "above s", "of the processor", title=title)
    for name, run in [("first", result["first"]), *((f"again {i + 1}", run) for i, run in enumerate(result["again"]))]:
        told = (run[key] for key in ("above_per_step", "processor_above_per_step"))
        spent = (run[key] for key in ("wall", "functions"))
        table.add_row(
            name, str(run["steps"]), *(f"{value:.2f}" for value in spent), *(f"{value:.3f}" for value in told)
        )
    median = (result[key] for key in ("above_per_step", "processor_above_per_step"))
    table.add_row("median again", f"at most {MOST}", "", "", *(f"{value:.3f}" for value in median))
    report("graph", result, table, given.write)


if __name__ == "__main__":
    main()
