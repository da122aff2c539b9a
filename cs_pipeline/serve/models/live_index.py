"""What the company has said, as the server looks it up: the lake's retrieval index as it lies there now."""

import logging
import threading

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import NAME
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.recipe import Recipe, Retrieve
from cs_pipeline.retrieval.index import RetrievalIndex, retrieval_folder
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.serve.models.refusals import NotReady

logger = logging.getLogger(__name__)

RETRY = 10
"""Seconds after which to ask again where the index is not there."""


class LiveIndex:
    """The index in memory, loaded again when another was made: a changed article, or a forgotten row. Thread-safe."""

    def __init__(self, lake: DataLake) -> None:
        self._folder = retrieval_folder(lake)
        self._index: RetrievalIndex | None = None
        self._made: tuple[int, int] | None = None
        self._trouble = ""
        self._lock = threading.Lock()

    def index(self) -> RetrievalIndex | None:
        """The one that lies in the lake now, None where there is none, or one that was damaged."""
        with self._lock:
            made = self._stamp()
            if made is None or made != self._made:
                self._index = None  # first of all: what it holds may have been forgotten
                self._made, self._index = made, self._load()
            return self._index

    def look_up(self, question: str, wanted: Retrieve) -> list[RetrievedText]:
        """What there is for ``question``, in placeholder mode ``keep``; nothing where there is no index."""
        index = self.index()
        if index is None:
            return []
        return [*index.answers([question], wanted.answers)[0], *index.passages([question], wanted.passages)[0]]

    def told(self, question: str, intent: str | None, recipe: Recipe) -> list[RetrievedText]:
        """What a model of ``recipe`` is told before ``question``, which is routed to ``intent``.

        Raises NotReady where the index for it is not there.
        """
        if recipe.prompt.retrieve is None:
            return []
        index = self.index()
        if index is None:
            raise NotReady(
                "This model answers from known answers and articles, and their index is not there.",
                "Materialise 'retrieval_index'.",
                RETRY,
            )
        return retrieve(index, recipe.prompt, recipe.placeholders, [question], [intent])[0]

    def _load(self) -> RetrievalIndex | None:
        try:
            index = RetrievalIndex.load(self._folder)
        except PipelineError as error:
            if error.what != self._trouble:
                logger.warning("no retrieval index: %s", error.what)
            self._trouble = error.what
            return None
        self._trouble = ""
        logger.info("retrieval index %s loaded", index.version[:12])
        return index

    def _stamp(self) -> tuple[int, int] | None:
        """What is another one for each index that is made."""
        try:
            found = (self._folder / NAME).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns
