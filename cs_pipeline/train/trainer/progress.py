"""Progress of a training run: log lines, metrics and throughput."""

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORE_INDEX
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.train.trainer.distributed import world_size

Collate = Callable[[list[dict[str, Any]]], Any]


_METRICS = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm", "eval_loss": "validation_loss"}
"""Keys of transformers' log that become metrics, and the metrics' names."""


class DivergedError(PipelineError):
    """The loss is no longer a finite number."""


class Meter:
    """Counts tokens and seconds of training steps in this process. ``before`` holds the counts before an interruption.

    ``real`` counts tokens of text, ``padded`` all computed tokens. Time for validating and saving does not count.
    """

    def __init__(self) -> None:
        self.before = {"real": 0.0, "padded": 0.0, "seconds": 0.0}
        self._real = self._padded = 0
        self._started, self._excluded = time.monotonic(), 0.0

    def start(self) -> None:
        """Starts the clock at the first step of this process."""
        self._started, self._excluded = time.monotonic(), 0.0

    def exclude(self, seconds: float) -> None:
        """Excludes time that was spent on something other than steps."""
        self._excluded += seconds

    def counted(self, collate: Collate) -> Collate:
        """Wraps ``collate`` to count the tokens of each batch."""

        def count(rows: list[dict[str, Any]]) -> Any:
            batch = collate(rows)
            # A row without labels, which only fills a process's last batch, counts as padding.
            self._real += sum(len(row["input_ids"]) for row in rows if row["labels"] != [IGNORE_INDEX])
            self._padded += batch["input_ids"].numel()
            return batch

        return count

    @property
    def rate(self) -> float:
        """Tokens of text per second in all processes, estimated from this one: each has a similar share of every step."""
        return self._real * world_size() / (time.monotonic() - self._started - self._excluded)

    def totals(self) -> dict[str, float]:
        """``real``, ``padded`` and ``seconds`` of the training so far, including those before an interruption."""
        seconds = time.monotonic() - self._started - self._excluded
        counts = {"real": self._real, "padded": self._padded, "seconds": seconds}
        return {name: self.before[name] + counts[name] for name in counts}


class ProgressCallback(TrainerCallback):
    """Reports step, rate and remaining time, and passes metrics to ``on_metrics``.

    Raises DivergedError if a loss is not finite.
    """

    def __init__(
        self,
        recipe: FineTuneRecipe,
        report: Callable[[str], None],
        on_metrics: Callable[[int, dict[str, float]], None],
        meter: Meter,
    ) -> None:
        self._recipe, self._report, self._on_metrics, self._meter = recipe, report, on_metrics, meter
        self._loss = ""
        self._first, self._started, self._reported = 0, 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._meter.start()
        self._first, self._started = state.global_step, 0.0
        for entry in state.log_history:  # after a power failure, the spool may lack entries that are in the checkpoint
            self._send_metrics(entry["step"], entry)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._started:
            # Rate and remaining time are measured from the first step of this process, not of the training.
            self._started = self._reported = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        # More often in the first minute, when somebody is watching.
        if now - self._reported >= (5 if now - self._started < 60 else 30):
            self._report_step(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        if "eval_loss" in logs:
            self._check_finite(state, "validation loss", logs["eval_loss"])
            self._report(f"validation loss {logs['eval_loss']:.4f} after step {state.global_step}")
        if "loss" in logs:
            self._check_finite(state, "loss", logs["loss"])
            self._loss = f" loss {logs['loss']:.3f},"
            if state.global_step == state.max_steps:
                self._report_step(state)
        self._send_metrics(state.global_step, logs)

    def _send_metrics(self, step: int, logs: dict[str, float]) -> None:
        metrics = {name: logs[key] for key, name in _METRICS.items() if key in logs}
        if metrics:
            self._on_metrics(step, metrics)

    def _report_step(self, state: TrainerState) -> None:
        self._reported = time.monotonic()
        step_seconds = (self._reported - self._started) / (state.global_step - self._first)
        self._report(
            f"adapter step {state.global_step}/{state.max_steps},{self._loss} {self._meter.rate:,.0f} tokens/s, "
            f"{(state.max_steps - state.global_step) * step_seconds:.0f} s left"
        )

    def _check_finite(self, state: TrainerState, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"The {what} at step {state.global_step} is {loss}: the recipe '{self._recipe.name}' diverged.",
                "Lower trainer.learning_rate, or train with quantization: none to see whether nf4 is the reason.",
            )
