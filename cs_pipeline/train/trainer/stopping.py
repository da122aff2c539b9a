"""Handles requests to stop: SIGTERM and Ctrl-C are recorded, and the training ends at its next step."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cs_pipeline.core.errors import PipelineError

_REPEAT_SECONDS = 3.0
"""A second signal within this time counts as the first: Ctrl-C reaches the whole terminal, and Dagster passes it on too."""


class StoppedError(PipelineError):
    """The training saved a checkpoint and stopped because it was asked to."""


@dataclass
class StopRequest:
    """``signal`` is the name of the signal that asked to stop, None if there was none."""

    signal: str | None = None


@contextmanager
def catch_stop_signals(request: StopRequest) -> Iterator[None]:
    """Records SIGTERM and SIGINT in ``request`` during the block; another signal later ends the process as usual.

    Does nothing outside the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    at = 0.0

    def record(number: int, frame: FrameType | None) -> None:
        nonlocal at
        if request.signal is None:
            request.signal, at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - at > _REPEAT_SECONDS:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    before = {number: signal.signal(number, record) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
