"""A question to a model in memory: how it is to be answered, and the answer as it grows."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cs_pipeline.llm.prompt import ChatFormat

Finish = Literal["stop", "length", "cancelled", "time"]
"""Why an answer ended: the model ended it, its tokens or its time were used up, or nobody waited for it any more."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 is greedy; ``max_tokens`` None, or more, is the recipe's number."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Voice:
    """How an engine's model speaks for one version: with ``adapter``, None for the base alone, at most ``rows`` at once."""

    chat: ChatFormat
    stops: frozenset[int]
    adapter: str | None
    rows: int


class Job:
    """A question that waits or is being answered: what the engine's thread writes, and others read.

    ``deadline`` is of ``time.monotonic``. ``tokens`` only grow; ``finish`` or ``error`` are there once ``done`` is set.
    """

    def __init__(
        self,
        voice: Voice,
        prompt: list[int],
        sampling: Sampling,
        most: int,
        deadline: float,
        cancelled: threading.Event,
    ) -> None:
        self.voice = voice
        self.prompt = prompt
        self.sampling = sampling
        self.most = most
        self.deadline = deadline
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self.error: Exception | None = None
        self.cancelled = cancelled
        self.done = threading.Event()
        self.then: Callable[[], None] = lambda: None

    def end(self, finish: Finish | None, error: Exception | None = None) -> None:
        """No token follows; to be called once, by the engine's thread."""
        self.finish, self.error = finish, error
        self.then()
        self.done.set()

    def over(self) -> Finish | None:
        """Why this job's row is to leave its batch before the model has ended the answer, None while it is not."""
        if self.cancelled.is_set():
            return "cancelled"
        if len(self.tokens) >= self.most:
            return "length"
        return "time" if time.monotonic() >= self.deadline else None
