"""The entry point to the models: takes a model name and a question, and returns the answer while it is generated."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import Context, RetrievedText, chat_messages, fit_prompt
from cs_pipeline.retrieval.retrieve import in_context
from cs_pipeline.serve.models.generation import Generation, KnownAnswer, WrittenAnswer
from cs_pipeline.serve.models.jobs import Busy, Job, Refusal, Sampling, TooLong
from cs_pipeline.serve.models.live import LiveIndex, LiveRouter
from cs_pipeline.serve.models.pool import LoadedLanguageModel, LoadedLookup, LoadedModel, ModelPool, ServedModel
from cs_pipeline.serve.models.registry import ModelRegistry

MAX_CONTEXT_TOKENS = 8192
"""Limit for prompt and answer together, even for models with a longer context: the rows of a batch share the memory."""


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
        self._live_router = LiveRouter(lake)
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
        facts: str = "",
    ) -> Generation:
        """Queues ``question`` for ``model``, loading it if needed, and returns before there is an answer.

        The prompt holds the texts that the recipe retrieves, ``facts`` about the case, and the latest of the
        ``earlier`` turns that fit into its ``max_length``. The facts are the prompt's first turn, and so the first turn
        to be dropped; for a model that was trained on single questions, they begin the question. Set ``cancelled`` when
        nobody is waiting any more (the client hung up, a stop button was pressed). A look-up uses no queue and reads no
        facts: its answer is complete when this returns. Raises UnknownModel, NotReady, TooLong, Busy.
        """
        self._enter()
        try:
            loaded = self.pool.hold(self.registry.resolve(model))
            try:
                return self._start(loaded, question, earlier, sampling, cancelled or threading.Event(), facts)
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
        self,
        loaded: LoadedModel,
        question: str,
        earlier: Context,
        sampling: Sampling,
        cancelled: threading.Event,
        facts: str,
    ) -> Generation:
        started = time.monotonic()
        route = self._live_router.route(question)
        searched = question if route is None else in_context(question, earlier, route.label)
        if searched != question:
            route = self._live_router.route(searched)
        intent = None if route is None else route.label
        assert isinstance(loaded, LoadedLookup | LoadedLanguageModel)
        recipe = loaded.recipe if loaded.lookup is None else loaded.lookup.recipe
        texts = self.live_index.retrieve_for(recipe, searched, intent)
        known = None if loaded.lookup is None else loaded.lookup.find(texts, intent, earlier)
        if known is not None or isinstance(loaded, LoadedLookup):
            found = () if known is None else (known,)
            answer = KnownAnswer(loaded.served, question, route, found, started, cancelled.is_set())
            self._end(loaded, answer)
            return answer
        if loaded.recipe.prompt.retrieve is None:
            texts = []  # they were for a cascade's look-up; the cascade's model has no retrieved texts in its prompt
        # The facts come last, because the oldest turns are left out of a prompt that is too long.
        turns: Context = [*earlier, ("customer", facts)] if facts else earlier
        prompted = (question, turns) if loaded.reads_earlier_turns else (f"{facts}\n{searched}".strip(), ())
        prompt, retrieved = _fit(loaded, loaded.intents([searched])[0], *prompted, texts)
        limit = loaded.recipe.generation.max_new_tokens
        max_tokens = min(sampling.max_tokens or limit, limit)
        job = Job(loaded.variant, prompt, sampling, max_tokens, time.monotonic() + self._seconds, cancelled)
        generation = WrittenAnswer(loaded.served, question, route, retrieved, started, job)
        job.on_end = partial(self._end, loaded, generation)
        loaded.engine.submit(job)
        return generation

    def _end(self, loaded: LoadedModel, answer: Generation) -> None:
        self.pool.release(loaded)
        self._leave()
        self._ended.append(time.monotonic())
        self._observe(answer)

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


def _fit(
    loaded: LoadedLanguageModel, intent: str | None, question: str, earlier: Context, texts: Sequence[RetrievedText]
) -> tuple[list[int], tuple[RetrievedText, ...] | None]:
    """The prompt as tokens, and the ``texts`` in it; None if the recipe does not retrieve.

    Raises TooLong if no answer has room after it.
    """
    recipe, chat = loaded.recipe, loaded.variant.chat

    def encode(turns: Context, known: Sequence[RetrievedText]) -> list[int]:
        return chat.encode_prompt(chat_messages(question, recipe.prompt, intent, turns, known))

    positions = getattr(loaded.engine.model.config, "max_position_embeddings", MAX_CONTEXT_TOKENS)  # T5 has none
    room = min(positions, MAX_CONTEXT_TOKENS) - recipe.generation.max_new_tokens
    fitted = fit_prompt(encode, earlier, texts, min(recipe.trainer.max_length, room))
    if len(fitted.encoded) > room:
        raise TooLong(len(fitted.encoded), room)
    return fitted.encoded, None if recipe.prompt.retrieve is None else fitted.retrieved
