"""What answers cost: pure functions from what was measured to the figures of the report.

In go measurements of one system: of the run over all test rows its answers, its tokens and its seconds of the clock, and the
seconds of answers that were generated one at a time. Prices are of the user's currency per hour of the machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cs_pipeline.core.errors import PipelineError


@dataclass(frozen=True)
class Run:
    """Answers generated in ``seconds`` of the clock, with ``tokens`` new tokens and ``peak_memory`` GiB."""

    answers: int
    tokens: int
    seconds: float
    peak_memory: float


@dataclass(frozen=True)
class Cost:
    """What a system costs. ``per_1000_answers`` is in the price's currency, None without a price.

    ``p50`` and ``p95`` are seconds for one answer alone, None where none was timed alone: a batch tells only throughput.
    """

    tokens_per_second: float
    answers_per_second: float
    p50: float | None
    p95: float | None
    memory_gib: float
    adapter_mib: float
    per_1000_answers: float | None


def cost(run: Run, alone: Sequence[float], adapter_bytes: int, price_per_hour: float | None) -> Cost:
    """The figures of ``run``; ``alone`` are the seconds of answers that were generated one at a time.

    ``per_1000_answers`` is that of a machine which is kept as busy as in the run: one that waits for questions costs more.
    Raises PipelineError when something was not measured or is no number.
    """
    measured = (run.answers, run.seconds, *alone)
    if not (np.isfinite(measured).all() and min(measured) > 0 and run.tokens >= 0):
        raise PipelineError(
            f"{run.answers} answers with {run.tokens} tokens in {run.seconds} s cannot be turned into a cost.",
            "Measure a run of at least one answer, with a clock that runs.",
        )
    if price_per_hour is not None and not (np.isfinite(price_per_hour) and price_per_hour >= 0):
        raise PipelineError(f"A price of {price_per_hour} an hour is no price.", "Give a number from 0 on, or none.")
    p50, p95 = map(float, np.percentile(alone, [50, 95])) if len(alone) else (None, None)
    return Cost(
        tokens_per_second=run.tokens / run.seconds,
        answers_per_second=run.answers / run.seconds,
        p50=p50,
        p95=p95,
        memory_gib=run.peak_memory,
        adapter_mib=adapter_bytes / 2**20,
        per_1000_answers=None if price_per_hour is None else 1000 * price_per_hour * run.seconds / 3600 / run.answers,
    )


def weights_size(folder: Path) -> int:
    """Bytes of the weights in an adapter folder: what has to be kept and loaded for a version beside its base."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
