"""The course of a training: after which steps it validates, saves a checkpoint and ends."""

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerState

from cs_pipeline.recipe import Trainer as Settings
from cs_pipeline.train.trainer.distributed import highest, rank
from cs_pipeline.train.trainer.stopping import Request


def validation_steps(settings: Settings, steps: int) -> set[int]:
    """The steps after which the validation loss is taken: evenly over all ``steps``, the last one among them."""
    return {math.ceil(i * steps / settings.evaluations) for i in range(1, settings.evaluations + 1)}


def validated(state: TrainerState) -> list[tuple[int, float]]:
    """(step, loss) of each validation so far, oldest first; not that before the first step."""
    return [
        (int(entry["step"]), entry["eval_loss"])
        for entry in state.log_history
        if entry.get("eval_loss") and entry["step"]
    ]


def best_step(state: TrainerState) -> int | None:
    """The step of the lowest validation loss so far, the first of equals; None before any."""
    found = validated(state)
    return min(found, key=lambda pair: pair[1])[0] if found else None


def is_over(settings: Settings, state: TrainerState) -> bool:
    """Whether nothing is left to train: the last step is done, or the recipe's patience is at its end."""
    losses = [loss for _, loss in validated(state)]
    waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
    return state.global_step >= state.max_steps or (
        settings.early_stopping_patience is not None and waited >= settings.early_stopping_patience
    )


class Schedule(TrainerCallback):
    """Follows the recipe, the clock, and who asks to stop."""

    def __init__(self, settings: Settings, request: Request) -> None:
        self._settings, self._request = settings, request
        self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        control.should_evaluate = state.global_step in validation_steps(self._settings, state.max_steps)
        control.should_log |= last
        # Of several processes the first one's clock counts, and a request to any of them: all must do the same.
        due = rank() == 0 and not last and time.monotonic() - self._saved >= self._settings.checkpoint_seconds
        wish = highest(2 if self._request.signal else int(due))
        control.should_save = wish > 0
        control.should_training_stop |= wish > 1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            return
        control.should_training_stop |= is_over(self._settings, state)
        # The weights of the last step are at hand when it ends; those of a better one before it must be kept.
        control.should_save |= best_step(state) == state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()
