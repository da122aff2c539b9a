"""Progress lines have the right rate and time left, even after resuming from a checkpoint."""

from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from cs_pipeline.train.trainer import progress
from cs_pipeline.train.trainer.progress import Meter, ProgressCallback


class Clock:
    """A clock that only moves when a test changes it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": torch.zeros(len(rows), 10)}


def run(clock: Clock, first: int, last: int, lines: list[str], metrics: list[Any], history: list[Any]) -> Meter:
    """Runs steps of two seconds with 8 tokens of text in 10, after 30 seconds of validation."""
    meter = Meter()
    callback = ProgressCallback(None, lines.append, lambda step, measured: metrics.append((step, measured)), meter)  # type: ignore[arg-type]
    state = TrainerState(global_step=first, max_steps=100, log_history=history)
    count = meter.counted(collate)
    everything: dict[str, Any] = {"args": None, "state": state, "control": TrainerControl()}
    callback.on_train_begin(**everything)
    clock.now += 30
    meter.exclude(30)
    for step in range(first + 1, last + 1):
        callback.on_step_begin(**everything)
        count([{"input_ids": [1] * 8, "labels": [1]}])
        clock.now += 2
        state.global_step = step
        callback.on_step_end(**everything)
        if step % 10 == 0:
            callback.on_log(**everything, logs={"loss": step / 100, "learning_rate": 0.5, "epoch": 1.0})
    return meter


def test_rate_and_time_left_from_the_start(clock: Clock) -> None:
    lines: list[str] = []
    run(clock, 0, 12, lines, [], [])
    assert lines == [
        "adapter step 3/100, 4 tokens/s, 194 s left",
        "adapter step 6/100, 4 tokens/s, 188 s left",
        "adapter step 9/100, 4 tokens/s, 182 s left",
        "adapter step 12/100, loss 0.100, 4 tokens/s, 176 s left",
    ]


def test_rate_and_time_left_after_a_checkpoint(clock: Clock) -> None:
    """The ninety steps before the checkpoint do not count into the rate."""
    lines: list[str] = []
    metrics: list[Any] = []
    before = [{"step": 0, "eval_loss": 9.0}, {"step": 90, "loss": 0.9, "entropy": 1.0}]
    meter = run(clock, 90, 100, lines, metrics, before)
    assert lines[0] == "adapter step 93/100, 4 tokens/s, 14 s left"
    assert lines[-1] == "adapter step 100/100, loss 1.000, 4 tokens/s, 0 s left"
    assert metrics == [(0, {"validation_loss": 9.0}), (90, {"loss": 0.9}), (100, {"loss": 1.0, "learning_rate": 0.5})]
    assert meter.totals() == {"real": 80, "padded": 100, "seconds": 20}
    meter.before = {"real": 720.0, "padded": 900.0, "seconds": 180.0}
    assert meter.totals() == {"real": 800, "padded": 1000, "seconds": 200}


def test_progress_is_reported_less_often_after_a_minute(clock: Clock) -> None:
    lines: list[str] = []
    run(clock, 0, 75, lines, [], [])
    steps = [int(line.split()[2].partition("/")[0]) for line in lines]
    assert steps == [*range(3, 28, 3), 42, 57, 72]
