"""Being asked to stop: SIGTERM and Ctrl-C are noted, and the training ends at its next step."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cs_pipeline.core.errors import PipelineError

ECHO = 3.0
"""Seconds in which a second signal is the first one again: Ctrl-C reaches the whole terminal, and Dagster passes it on."""


class StoppedError(PipelineError):
    """The training has saved a checkpoint and stopped, as it was asked to."""


@dataclass
class Request:
    """Whether somebody asked: ``signal`` is its name, None if nobody did."""

    signal: str | None = None


@contextmanager
def noted(request: Request) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT are noted in ``request``; another one later ends the process as ever.

    In another thread than the main one, which alone gets signals, nothing is noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    at = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal at
        if request.signal is None:
            request.signal, at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - at > ECHO:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
