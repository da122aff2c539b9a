"""The one entry to the models: from a name and a question to an answer that is being written."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import Context, RetrievedText, fit_found_texts, messages
from cs_pipeline.llm.written import ESCAPE
from cs_pipeline.serve.models.jobs import Finish, Job, Sampling
from cs_pipeline.serve.models.live_index import LiveIndex
from cs_pipeline.serve.models.pool import Loaded, Pool, Served
from cs_pipeline.serve.models.refusals import Busy, Refusal, TooLong
from cs_pipeline.serve.models.registry import Registry

__all__ = ["Answering", "Finish", "Model", "Running", "Sampling", "Served"]

PIECE = 0.04
"""Seconds between two looks at an answer that is read along: a reader sees 25 a second as flowing, and each costs a
decoding."""

LONGEST = 8192
"""Most tokens of prompt and answer, also of a model that could read more: the rows of a batch share the memory."""


class Running:
    """An answer that is being written: iterate once for its pieces, or wait for ``text()``.

    The pieces are the model's raw answer, placeholders unfilled; joined they are the text. ``question`` is as the model was
    told it. ``intent`` and ``confidence`` are of the version's own intent classifier, or of the lake's where the version
    brings none; None where neither is there. ``found`` are the known answers and passages that the model was told, None
    where its recipe retrieves nothing.
    """

    def __init__(
        self,
        served: Served,
        question: str,
        job: Job,
        intent: str | None,
        confidence: float | None,
        found: tuple[RetrievedText, ...] | None,
    ) -> None:
        self.served = served
        self.found = found
        self.question = question
        self.intent = intent
        self.confidence = confidence
        self.prompt_tokens = len(job.prompt)
        self.started = time.monotonic()
        self._job = job

    def __iter__(self) -> Iterator[str]:
        """Raises PipelineError when the model fails, Busy when the time was up before a batch had room."""
        shown = ""
        while not self._job.done.wait(PIECE):
            text = self._settled()
            if len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        if rest := self.text()[len(shown) :]:
            yield rest

    def text(self) -> str:
        """The whole answer; cheaper than its pieces where nobody reads along. Raises what iterating raises."""
        self._job.done.wait()
        if self._job.error is not None:
            raise self._job.error
        if self._job.finish == "time" and not self._job.tokens:
            raise Busy(math.ceil(time.monotonic() - self.started))
        return self.written

    @property
    def written(self) -> str:
        """What is written up to now, without waiting."""
        return self._job.voice.chat.read(self._job.tokens.copy())

    @property
    def finish(self) -> Finish:
        """Why the answer ended; after the last piece."""
        self._job.done.wait()
        assert self._job.finish is not None
        return self._job.finish

    @property
    def ended(self) -> str:
        """``finish`` without waiting; "error" where the model failed."""
        return self._job.finish or "error"

    @property
    def tokens(self) -> int:
        """How many were written up to now."""
        return len(self._job.tokens)

    def cancel(self) -> None:
        """Nobody waits any more: the row leaves its batch at the next token. May be called from any thread, and twice."""
        self._job.cancelled.set()

    def _settled(self) -> str:
        """What of the answer no further token changes: half a character, or half of one that is spelt, is held back."""
        text = self.written.rstrip("\N{REPLACEMENT CHARACTER}")
        begun = text.rfind(ESCAPE, -8)
        return (text if begun < 0 else text[:begun]).rstrip()


@dataclass(frozen=True)
class Model:
    """A name that may be asked for, what it stands for now, and the aliases that lie there."""

    name: str
    served: Served
    aliases: tuple[str, ...]
    loaded: bool


class Answering:
    """Names, models in memory and their batches behind one call. Thread-safe; each caller waits in its own thread.

    At most ``queue`` questions are in it at once, each for at most ``seconds``. ``observe`` is told of answers that ended.
    """

    def __init__(
        self,
        lake: DataLake,
        memory: int,
        queue: int,
        seconds: float,
        poll_seconds: float,
        observe: Callable[[Running], object],
    ) -> None:
        self._queue = queue
        self._seconds = seconds
        self._observe = observe
        self._pool = Pool(lake, memory)
        self.registry = Registry(lake, self._pool, poll_seconds)
        self.knowledge = LiveIndex(lake)
        self._inside = 0
        self._ended: deque[float] = deque(maxlen=64)
        self._lock = threading.Lock()

    def served(self, model: str) -> Served:
        """What the name stands for now; nothing is loaded. Raises UnknownModel, NotReady."""
        return self.registry.resolve(model)

    def models(self) -> list[Model]:
        """All there are: names of aliases first, then versions, the newest first, each with its base."""
        aliases, loaded = self.registry.known.aliases, self._pool.figures()
        found = []
        for name in self.registry.names():
            with suppress(Refusal):  # the store may have said something else since
                served = self.registry.resolve(name)
                own = tuple(alias for alias, number in aliases.items() if number == served.version and not served.base)
                found.append(Model(name, served, own, served.name in loaded))
        return found

    def start(
        self,
        model: str,
        question: str,
        earlier: Context,
        sampling: Sampling,
        cancelled: threading.Event | None = None,
    ) -> Running:
        """Puts ``question`` in the queue of ``model``, which is loaded if it must be: returns before there is an answer.

        Of the ``earlier`` turns the model is told the latest, as many as make no prompt longer than the longest row of its
        training, and before the question what its recipe retrieves. ``cancelled`` may be set by whoever knows first that
        nobody waits any more (a client that hung up, a stop button). Raises UnknownModel, NotReady, TooLong, Busy.
        """
        self._enter()
        try:
            loaded = self._pool.hold(self.registry.resolve(model))
            try:
                return self._start(loaded, question, earlier, sampling, cancelled or threading.Event())
            except BaseException:
                self._pool.release(loaded)
                raise
        except BaseException:
            self._leave()
            raise

    @property
    def inside(self) -> int:
        """Questions that wait or are being answered."""
        return self._inside

    def figures(self) -> dict[str, dict[str, int]]:
        """What is in memory, by name: its ``users``, and the ``bytes`` of its weights, shared ones included."""
        return self._pool.figures()

    @property
    def bytes(self) -> int:
        """What all weights in memory take."""
        return self._pool.bytes

    def close(self) -> None:
        """Stops when all that waits is answered."""
        self.registry.close()
        self._pool.close()

    def _start(
        self, loaded: Loaded, question: str, earlier: Context, sampling: Sampling, cancelled: threading.Event
    ) -> Running:
        recipe, chat = loaded.recipe, loaded.voice.chat
        intent, confidence = None, None
        if loaded.classifier is not None:
            intents, confidences = loaded.classifier.predict([question])
            intent, confidence = intents[0], float(confidences[0])

        def encode(turns: Context, known: Sequence[RetrievedText]) -> list[int]:
            return chat.prompt(messages(question, recipe.prompt, intent, turns, known))

        most = min(sampling.max_tokens or recipe.generation.max_new_tokens, recipe.generation.max_new_tokens)
        positions = getattr(loaded.engine.model.config, "max_position_embeddings", LONGEST)  # T5 has relative ones
        room = min(positions, LONGEST) - recipe.generation.max_new_tokens
        found = self.knowledge.told(question, intent, recipe)
        told = fit_found_texts(encode, earlier, found, min(recipe.trainer.max_length, room))
        prompt = told.encoded
        if len(prompt) > room:
            raise TooLong(len(prompt), room)
        job = Job(loaded.voice, prompt, sampling, most, time.monotonic() + self._seconds, cancelled)
        retrieved = None if recipe.prompt.retrieve is None else told.found
        running = Running(loaded.served, question, job, intent, confidence, retrieved)

        def then() -> None:
            self._pool.release(loaded)
            self._leave()
            self._ended.append(time.monotonic())
            self._observe(running)

        job.then = then
        loaded.engine.submit(job)
        return running

    def _enter(self) -> None:
        with self._lock:
            if self._inside >= self._queue:
                raise Busy(self._wait())
            self._inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def _wait(self) -> int:
        """Whole seconds in which, as fast as the last answers ended, a place becomes free for everybody who waits."""
        if len(self._ended) < 2 or self._ended[-1] <= self._ended[0]:
            return 1
        each = (self._ended[-1] - self._ended[0]) / (len(self._ended) - 1)
        return max(1, min(60, math.ceil(each * self._inside)))
