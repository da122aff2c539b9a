"""Decides after which steps to validate, to save a checkpoint and to end the training."""

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerState

from cs_pipeline.recipe import TrainerSettings
from cs_pipeline.train.trainer.distributed import max_over_processes, rank
from cs_pipeline.train.trainer.stopping import StopRequest


def validation_steps(settings: TrainerSettings, steps: int) -> set[int]:
    """The steps after which the validation loss is measured: evenly over all ``steps``, including the last."""
    return {math.ceil(i * steps / settings.evaluations) for i in range(1, settings.evaluations + 1)}


def validated(state: TrainerState) -> list[tuple[int, float]]:
    """(step, loss) of each validation so far, oldest first, except the one before the first step."""
    return [
        (int(entry["step"]), entry["eval_loss"])
        for entry in state.log_history
        if entry.get("eval_loss") and entry["step"]
    ]


def best_step(state: TrainerState) -> int | None:
    """The first step with the lowest validation loss so far; None before the first validation."""
    losses = validated(state)
    return min(losses, key=lambda pair: pair[1])[0] if losses else None


def is_finished(settings: TrainerSettings, state: TrainerState) -> bool:
    """Whether the training is finished: after the last step, or when early stopping applies."""
    losses = [loss for _, loss in validated(state)]
    waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
    return state.global_step >= state.max_steps or (
        settings.early_stopping_patience is not None and waited >= settings.early_stopping_patience
    )


class ScheduleCallback(TrainerCallback):
    """Triggers validation, checkpoints and the end of training, by the recipe, the clock and requests to stop."""

    def __init__(self, settings: TrainerSettings, request: StopRequest) -> None:
        self._settings, self._request = settings, request

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        control.should_evaluate = state.global_step in validation_steps(self._settings, state.max_steps)
        control.should_log |= last
        # All processes must do the same: only the first process's clock is used, and a stop request to one stops all.
        save = rank() == 0 and not last and time.monotonic() - self._saved >= self._settings.checkpoint_seconds
        action = max_over_processes(2 if self._request.signal else int(save))
        control.should_save = action > 0
        control.should_training_stop |= action > 1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            return
        control.should_training_stop |= is_finished(self._settings, state)
        # The best weights must be saved, unless the last step has them: its weights are in memory at the end.
        control.should_save |= best_step(state) == state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()
