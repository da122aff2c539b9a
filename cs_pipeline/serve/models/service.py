"""The entry point to the models: takes a model name and a question, and returns the answer as it is generated."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.escaping import ESCAPE
from cs_pipeline.llm.prompt import Context, RetrievedText, chat_messages, fit_prompt
from cs_pipeline.serve.models.jobs import Busy, Finish, Job, Refusal, Sampling, TooLong
from cs_pipeline.serve.models.live_index import LiveIndex
from cs_pipeline.serve.models.pool import LoadedModel, ModelPool, ServedModel
from cs_pipeline.serve.models.registry import ModelRegistry

STREAM_INTERVAL = 0.04
"""Seconds between two updates of a streamed answer. 25 updates a second look continuous, and each one decodes the text."""

MAX_CONTEXT_TOKENS = 8192
"""Limit for prompt and answer together, even for models with a longer context: the rows of a batch share the memory."""


@dataclass(eq=False)
class Generation:
    """An answer while it is being generated. Iterate it once for its pieces, or wait for ``text()``.

    The pieces joined are the model's raw answer, with unfilled placeholders. ``question`` is the text that the model got.
    ``intent`` and ``confidence`` come from the version's own intent classifier, or from the lake's if the version has none;
    they are None without either. ``retrieved`` holds the texts in the prompt, and is None if the recipe does not retrieve.
    """

    served: ServedModel
    question: str
    job: Job
    intent: str | None
    confidence: float | None
    retrieved: tuple[RetrievedText, ...] | None
    started: float = field(default_factory=time.monotonic)

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
        """The whole answer. Cheaper than its pieces, and raises the same errors."""
        self.job.done.wait()
        if self.job.error is not None:
            raise self.job.error
        if self.job.finish == "time" and not self.job.tokens:
            raise Busy(math.ceil(time.monotonic() - self.started))
        return self.text_so_far

    @property
    def text_so_far(self) -> str:
        """The text so far, without waiting."""
        return self.job.variant.chat.decode(self.job.tokens.copy())

    @property
    def finish(self) -> Finish:
        """Why the answer ended. Waits for the end."""
        self.job.done.wait()
        assert self.job.finish is not None
        return self.job.finish

    @property
    def ended(self) -> str:
        """``finish`` without waiting, or "error" if the model failed."""
        return self.job.finish or "error"

    @property
    def prompt_tokens(self) -> int:
        return len(self.job.prompt)

    @property
    def tokens(self) -> int:
        """Number of tokens so far."""
        return len(self.job.tokens)

    def cancel(self) -> None:
        """Stops the answer at its next token. Can be called from any thread, more than once."""
        self.job.cancelled.set()

    def _stable_text(self) -> str:
        """The text that later tokens cannot change: incomplete characters and escapes at its end are held back."""
        text = self.text_so_far.rstrip("\N{REPLACEMENT CHARACTER}")
        escape = text.rfind(ESCAPE, -8)
        return (text if escape < 0 else text[:escape]).rstrip()


@dataclass(frozen=True)
class ListedModel:
    """A valid model name, the model behind it now, and that model's aliases."""

    name: str
    served: ServedModel
    aliases: tuple[str, ...]
    loaded: bool


class ModelService:
    """The registry, the models in memory and their queues. Thread-safe; each caller waits in its own thread.

    At most ``queue`` questions wait or are being answered, each for at most ``seconds``. ``observe`` is called with each
    answer that has ended.
    """

    def __init__(
        self,
        lake: DataLake,
        memory: int,
        queue: int,
        seconds: float,
        poll_seconds: float,
        observe: Callable[[Generation], object],
    ) -> None:
        self._queue = queue
        self._seconds = seconds
        self._observe = observe
        self.pool = ModelPool(lake, memory)
        self.registry = ModelRegistry(lake, self.pool, poll_seconds)
        self.live_index = LiveIndex(lake)
        self._inside = 0
        self._ended: deque[float] = deque(maxlen=64)
        self._lock = threading.Lock()

    def served(self, model: str) -> ServedModel:
        """The model behind the name now, without loading it. Raises UnknownModel, NotReady."""
        return self.registry.resolve(model)

    def models(self) -> list[ListedModel]:
        """All models: aliases first, then versions, newest first, each followed by its base."""
        aliases, loaded = self.registry.state.aliases, self.pool.usage()
        listed = []
        for name in self.registry.names():
            with suppress(Refusal):  # the registry may have changed since
                served = self.registry.resolve(name)
                own = tuple(alias for alias, number in aliases.items() if number == served.version and not served.base)
                listed.append(ListedModel(name, served, own, served.name in loaded))
        return listed

    def start(
        self,
        model: str,
        question: str,
        earlier: Context,
        sampling: Sampling,
        cancelled: threading.Event | None = None,
    ) -> Generation:
        """Queues ``question`` for ``model``, loading it if needed, and returns before there is an answer.

        The prompt holds the texts that the recipe retrieves, and the latest of the ``earlier`` turns that fit into its
        ``max_length``. Set ``cancelled`` when nobody is waiting any more (the client hung up, a stop button was pressed).
        Raises UnknownModel, NotReady, TooLong, Busy.
        """
        self._enter()
        try:
            loaded = self.pool.hold(self.registry.resolve(model))
            try:
                return self._start(loaded, question, earlier, sampling, cancelled or threading.Event())
            except BaseException:
                self.pool.release(loaded)
                raise
        except BaseException:
            self._leave()
            raise

    @property
    def inside(self) -> int:
        """Number of questions that wait or are being answered."""
        return self._inside

    def close(self) -> None:
        """Answers the queued questions, then unloads all models."""
        self.registry.close()
        self.pool.close()

    def _start(
        self, loaded: LoadedModel, question: str, earlier: Context, sampling: Sampling, cancelled: threading.Event
    ) -> Generation:
        recipe, chat = loaded.recipe, loaded.variant.chat
        intent, confidence = None, None
        if loaded.classifier is not None:
            intents, confidences = loaded.classifier.predict([question])
            intent, confidence = intents[0], float(confidences[0])

        def encode(turns: Context, known: Sequence[RetrievedText]) -> list[int]:
            return chat.encode_prompt(chat_messages(question, recipe.prompt, intent, turns, known))

        max_tokens = min(sampling.max_tokens or recipe.generation.max_new_tokens, recipe.generation.max_new_tokens)
        positions = getattr(loaded.engine.model.config, "max_position_embeddings", MAX_CONTEXT_TOKENS)  # T5 has none
        room = min(positions, MAX_CONTEXT_TOKENS) - recipe.generation.max_new_tokens
        texts = self.live_index.retrieve_for(recipe, question, intent)
        fitted = fit_prompt(encode, earlier, texts, min(recipe.trainer.max_length, room))
        prompt = fitted.encoded
        if len(prompt) > room:
            raise TooLong(len(prompt), room)
        job = Job(loaded.variant, prompt, sampling, max_tokens, time.monotonic() + self._seconds, cancelled)
        retrieved = None if recipe.prompt.retrieve is None else fitted.retrieved
        generation = Generation(loaded.served, question, job, intent, confidence, retrieved)

        def on_end() -> None:
            self.pool.release(loaded)
            self._leave()
            self._ended.append(time.monotonic())
            self._observe(generation)

        job.on_end = on_end
        loaded.engine.submit(job)
        return generation

    def _enter(self) -> None:
        with self._lock:
            if self._inside >= self._queue:
                raise Busy(self._estimated_wait())
            self._inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def _estimated_wait(self) -> int:
        """Whole seconds (1 to 60) until the current queue is done, at the rate of the last answers."""
        if len(self._ended) < 2 or self._ended[-1] <= self._ended[0]:
            return 1
        seconds_each = (self._ended[-1] - self._ended[0]) / (len(self._ended) - 1)
        return max(1, min(60, math.ceil(seconds_each * self._inside)))
