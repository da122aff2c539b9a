"""Jobs (questions to a model in memory, with their settings and growing answers), and the reasons to refuse a question."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import ChatFormat

Finish = Literal["stop", "length", "cancelled", "time"]
"""Why an answer ended: at a stop token, at its token limit, because nobody was waiting any more, or at its deadline."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 is greedy. ``max_tokens`` is capped at the recipe's limit, its default."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Variant:
    """A version on its engine: chat format, stop tokens, adapter (None for the base), and the ``max_rows`` of a batch."""

    chat: ChatFormat
    stops: frozenset[int]
    adapter: str | None
    max_rows: int


@dataclass(eq=False)
class Job:
    """A question that waits or is being answered. The engine's thread writes it; other threads read it.

    ``deadline`` is a time of ``time.monotonic``. ``tokens`` only grows. ``finish`` or ``error`` is set before ``done``.
    """

    variant: Variant
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    deadline: float
    cancelled: threading.Event
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)
    on_end: Callable[[], None] = lambda: None

    def end(self, finish: Finish | None, error: Exception | None = None) -> None:
        """Ends the answer. Called once, by the engine's thread."""
        self.finish, self.error = finish, error
        self.on_end()
        self.done.set()

    def early_finish(self) -> Finish | None:
        """Why this row should leave its batch before the model ends the answer, or None."""
        if self.cancelled.is_set():
            return "cancelled"
        if len(self.tokens) >= self.max_tokens:
            return "length"
        return "time" if time.monotonic() >= self.deadline else None


class Refusal(PipelineError):  # noqa: N818  (nothing is broken)
    """A question that cannot be answered now. The API turns it into a status, the page into a message."""


class Busy(Refusal):
    """The queue is full. There is probably room after ``retry_after`` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many questions are waiting.", f"Try again in {retry_after} s.")
        self.retry_after = retry_after


class NotReady(Refusal):
    """The model is not available: there is no champion yet, the model does not load, or memory is short."""

    def __init__(self, what: str, fix: str, retry_after: int) -> None:
        super().__init__(what, fix)
        self.retry_after = retry_after


class TooLong(Refusal):
    """The prompt leaves the model no room for an answer, or the text is longer than the desk accepts."""

    def __init__(self, length: int, limit: int, unit: str = "tokens") -> None:
        super().__init__(f"The question is {length:,} {unit} long; the limit is {limit:,}.", "Shorten the question.")


class UnknownModel(Refusal):
    """No model has this name. The message lists the known ``names``; it does not repeat the requested one."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__("There is no such model.", f"Choose one of: {', '.join(names) or 'none is registered yet'}.")
