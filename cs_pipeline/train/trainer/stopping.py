"""Handles requests to stop: SIGTERM and Ctrl-C are recorded, and the training ends after its current step."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cs_pipeline.core.errors import PipelineError

_REPEAT_SECONDS = 3.0
"""A second signal within this time is ignored: Ctrl-C reaches all processes of a terminal, and Dagster passes it on too."""


class StoppedError(PipelineError):
    """The training saved a checkpoint and stopped, because a signal asked for it."""


@dataclass
class StopRequest:
    """A request to stop. ``signal`` is the name of the signal, None if there was none."""

    signal: str | None = None


@contextmanager
def catch_stop_signals(request: StopRequest) -> Iterator[None]:
    """Records SIGTERM and SIGINT in ``request`` during the block; a second signal ends the process as usual.

    Does nothing outside the main thread, because only that receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    recorded_at = 0.0

    def record(number: int, frame: FrameType | None) -> None:
        nonlocal recorded_at
        if request.signal is None:
            request.signal, recorded_at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - recorded_at > _REPEAT_SECONDS:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    previous = {number: signal.signal(number, record) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
