"""The cost of answers, as pure functions of the measurements of one system.

Prices are per hour of the machine, in the user's currency.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.retrieval.lookup import MODEL_FOLDER


@dataclass(frozen=True)
class GenerationRun:
    """A run over all test rows: ``answers`` with ``tokens`` new tokens in ``seconds`` of wall-clock time, ``peak_memory`` in
    GiB."""

    answers: int
    tokens: int
    seconds: float
    peak_memory: float


@dataclass(frozen=True)
class Cost:
    """The cost of a system. ``per_1000_answers`` is in the price's currency, None without a price.

    ``p50`` and ``p95`` are the latencies of single answers in seconds, None when none was timed: a batch shows only
    throughput.
    """

    tokens_per_second: float
    answers_per_second: float
    p50: float | None
    p95: float | None
    memory_gib: float
    adapter_mib: float
    per_1000_answers: float | None


def cost(run: GenerationRun, latencies: Sequence[float], adapter_bytes: int, price_per_hour: float | None) -> Cost:
    """The cost of ``run``; ``latencies`` are the seconds of answers that were generated one at a time.

    ``per_1000_answers`` assumes a machine that is as busy as in the run; with idle time an answer costs more. Raises
    PipelineError when a measurement is missing or is not a number.
    """
    measured = (run.answers, run.seconds, *latencies)
    if not (np.isfinite(measured).all() and min(measured) > 0 and run.tokens >= 0):
        raise PipelineError(
            f"{run.answers} answers with {run.tokens} tokens in {run.seconds} s cannot be turned into a cost.",
            "Measure a run of at least one answer that takes some time.",
        )
    if price_per_hour is not None and not (np.isfinite(price_per_hour) and price_per_hour >= 0):
        raise PipelineError(f"{price_per_hour} is not a price per hour.", "Give a number of at least 0, or none.")
    p50, p95 = map(float, np.percentile(latencies, [50, 95])) if len(latencies) else (None, None)
    return Cost(
        tokens_per_second=run.tokens / run.seconds,
        answers_per_second=run.answers / run.seconds,
        p50=p50,
        p95=p95,
        memory_gib=run.peak_memory,
        adapter_mib=adapter_bytes / 2**20,
        per_1000_answers=None if price_per_hour is None else 1000 * price_per_hour * run.seconds / 3600 / run.answers,
    )


def weights_bytes(folder: Path) -> int:
    """The size of the weights in an adapter folder, in bytes. A version needs them in addition to its base.

    A cascade's weights are in the folder of its model.
    """
    files = (*folder.glob("*.safetensors"), *folder.glob(f"{MODEL_FOLDER}/*.safetensors"))
    return sum(path.stat().st_size for path in files)
