"""How far a training is and what it measured, for people and for the spool."""

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORED
from cs_pipeline.recipe import Recipe
from cs_pipeline.train.trainer.distributed import processes

Collate = Callable[[list[dict[str, Any]]], Any]


MEASURED = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm", "eval_loss": "validation_loss"}
"""What of transformers' log is a metric of the training, and its name."""


class DivergedError(PipelineError):
    """The loss is no number any more."""


class Meter:
    """Tokens and seconds of a training's steps: those of this process, and with ``before`` those before an interruption.

    ``real`` tokens are text, ``padded`` ones are all that were computed. Seconds for validating and saving are left out.
    """

    def __init__(self) -> None:
        self.before = {"real": 0.0, "padded": 0.0, "seconds": 0.0}
        self._real = self._padded = 0
        self._began, self._aside = time.monotonic(), 0.0

    def start(self) -> None:
        """The steps of this process begin now."""
        self._began, self._aside = time.monotonic(), 0.0

    def leave_out(self, seconds: float) -> None:
        """So long something else than steps was done."""
        self._aside += seconds

    def counted(self, collate: Collate) -> Collate:
        """``collate``, which has the tokens of each batch counted."""

        def count(rows: list[dict[str, Any]]) -> Any:
            batch = collate(rows)
            # A row that only fills a process's last batch has nothing to learn, and is padding.
            self._real += sum(len(row["input_ids"]) for row in rows if row["labels"] != [IGNORED])
            self._padded += batch["input_ids"].numel()
            return batch

        return count

    @property
    def rate(self) -> float:
        """Tokens of text a second in all processes, which have like parts of every step."""
        return self._real * processes() / (time.monotonic() - self._began - self._aside)

    def all(self) -> dict[str, float]:
        """real, padded and seconds of the whole training so far."""
        seconds = time.monotonic() - self._began - self._aside
        here = {"real": self._real, "padded": self._padded, "seconds": seconds}
        return {name: self.before[name] + here[name] for name in here}


class Progress(TrainerCallback):
    """Says how far the training is, how fast, and how long it still takes; hands its metrics on.

    Raises DivergedError when a loss is no finite number.
    """

    def __init__(
        self,
        recipe: Recipe,
        report: Callable[[str], None],
        on_metrics: Callable[[int, dict[str, float]], None],
        meter: Meter,
    ) -> None:
        self._recipe, self._report, self._on_metrics, self._meter = recipe, report, on_metrics, meter
        self._loss = ""
        self._first, self._began, self._said = 0, 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._meter.start()
        self._first, self._began = state.global_step, 0.0
        for entry in state.log_history:  # a spool on a disk that lost its power may lack what the checkpoint knows
            self._hand_on(entry["step"], entry)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._began:
            # Rate and time left are those of this process, which may have begun at a checkpoint.
            self._began = self._said = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        # Every few seconds at first, when somebody watches.
        if now - self._said >= (5 if now - self._began < 60 else 30):
            self._say(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        if "eval_loss" in logs:
            self._check(state, "validation loss", logs["eval_loss"])
            self._report(f"validation loss {logs['eval_loss']:.4f} after step {state.global_step}")
        if "loss" in logs:
            self._check(state, "loss", logs["loss"])
            self._loss = f" loss {logs['loss']:.3f},"
            if state.global_step == state.max_steps:
                self._say(state)
        self._hand_on(state.global_step, logs)

    def _hand_on(self, step: int, logs: dict[str, float]) -> None:
        metrics = {name: logs[key] for key, name in MEASURED.items() if key in logs}
        if metrics:
            self._on_metrics(step, metrics)

    def _say(self, state: TrainerState) -> None:
        self._said = time.monotonic()
        step_seconds = (self._said - self._began) / (state.global_step - self._first)
        self._report(
            f"adapter step {state.global_step}/{state.max_steps},{self._loss} {self._meter.rate:,.0f} tokens/s, "
            f"{(state.max_steps - state.global_step) * step_seconds:.0f} s left"
        )

    def _check(self, state: TrainerState, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"The {what} at step {state.global_step} is {loss}: the recipe '{self._recipe.name}' diverged.",
                "Lower trainer.learning_rate, or train without nf4 to see whether quantisation is the reason.",
            )
