"""Answers as the desk reads them: written by an engine, token by token, or looked up at once."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from cs_pipeline.llm.escaping import ESCAPE
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.router import Route
from cs_pipeline.serve.models.jobs import Busy, Finish, Job
from cs_pipeline.serve.models.pool import ServedModel

STREAM_INTERVAL = 0.04
"""Seconds between two updates of a streamed answer. 25 updates a second look continuous, and each one decodes the text."""


@dataclass(eq=False)
class Generation(ABC):
    """An answer, possibly while it is being generated. Iterate it once for its pieces, or wait for ``text()``.

    The pieces joined are the version's raw answer, with unfilled placeholders. ``question`` is the text that the version
    got, and ``route`` where the lake's router puts it, None without a router. ``retrieved`` holds the texts that the answer
    is made from, and is None if the recipe does not retrieve. ``started`` is the value of ``time.monotonic`` when the
    question arrived.
    """

    served: ServedModel
    question: str
    route: Route | None
    retrieved: tuple[RetrievedText, ...] | None
    started: float

    @property
    def intent(self) -> str | None:
        """The intent or subject of the question, None if the router is not sure or if there is none."""
        return None if self.route is None else self.route.label

    @property
    def confidence(self) -> float | None:
        """The probability (0 to 1) that the question is about any known intent; None without a router."""
        return None if self.route is None else self.route.known

    @property
    def declined(self) -> bool:
        """Whether the version has no answer, so that a person should take over. Known from the start."""
        return False

    @abstractmethod
    def __iter__(self) -> Iterator[str]: ...

    @abstractmethod
    def text(self) -> str:
        """The whole answer. This is cheaper than iterating, and raises the same errors."""

    @property
    @abstractmethod
    def text_so_far(self) -> str:
        """The text so far, without waiting."""

    @property
    @abstractmethod
    def finish(self) -> Finish:
        """Why the answer ended. Waits for the end."""

    @property
    @abstractmethod
    def ended(self) -> str:
        """``finish`` of an answer that has ended, "error" if the model failed, or "declined"."""

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens that a model read; 0 without one."""
        return 0

    @property
    def tokens(self) -> int:
        """Number of tokens that a model has written so far; 0 without one."""
        return 0

    @abstractmethod
    def cancel(self) -> None:
        """Stops the answer as soon as possible. Can be called from any thread, more than once."""


@dataclass(eq=False)
class WrittenAnswer(Generation):
    """An answer that an engine writes."""

    job: Job

    def __iter__(self) -> Iterator[str]:
        """Raises PipelineError when the model fails, and Busy when the deadline passed before a batch had room."""
        sent = ""
        while not self.job.done.wait(STREAM_INTERVAL):
            text = self._stable_text()
            if len(text) > len(sent):
                yield text[len(sent) :]
                sent = text
        if rest := self.text()[len(sent) :]:
            yield rest

    def text(self) -> str:
        self.job.done.wait()
        if self.job.error is not None:
            raise self.job.error
        if self.job.finish == "time" and not self.job.tokens:
            raise Busy(math.ceil(time.monotonic() - self.started))
        return self.text_so_far

    @property
    def text_so_far(self) -> str:
        return self.job.variant.chat.decode(self.job.tokens.copy())

    @property
    def finish(self) -> Finish:
        self.job.done.wait()
        assert self.job.finish is not None
        return self.job.finish

    @property
    def ended(self) -> str:
        return self.job.finish or "error"

    @property
    def prompt_tokens(self) -> int:
        return len(self.job.prompt)

    @property
    def tokens(self) -> int:
        return len(self.job.tokens)

    def cancel(self) -> None:
        """Stops the answer at its next token."""
        self.job.cancelled.set()

    def _stable_text(self) -> str:
        """The text that later tokens cannot change: incomplete characters and escapes at its end are held back."""
        text = self.text_so_far.rstrip("\N{REPLACEMENT CHARACTER}")
        escape = text.rfind(ESCAPE, -8)
        return (text if escape < 0 else text[:escape]).rstrip()


@dataclass(eq=False)
class KnownAnswer(Generation):
    """The answer of a look-up, complete from the start: the text in ``retrieved``, word for word.

    If ``retrieved`` is empty, no known question is similar enough. ``cancelled`` says that nobody was waiting any more.
    """

    cancelled: bool

    @property
    def declined(self) -> bool:
        return not self.retrieved

    def __iter__(self) -> Iterator[str]:
        yield self.text()

    def text(self) -> str:
        return "" if self.cancelled else "".join(known.text for known in self.retrieved or ())

    @property
    def text_so_far(self) -> str:
        return self.text()

    @property
    def finish(self) -> Finish:
        return "cancelled" if self.cancelled else "stop"

    @property
    def ended(self) -> str:
        return "declined" if self.declined else self.finish

    def cancel(self) -> None:
        """Does nothing, because the answer is already complete."""
