"""Gives the server the latest build of the lake's retrieval index."""

import logging
import threading

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import MANIFEST_NAME
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.recipe import Recipe, RetrievalSettings
from cs_pipeline.retrieval.index import RetrievalIndex, retrieval_folder
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.serve.models.jobs import NotReady

logger = logging.getLogger(__name__)

_RETRY_AFTER = 10
"""Seconds after which a client should try again when the index is missing."""


class LiveIndex:
    """The index in memory. It is reloaded after every rebuild (an article changed, or a row was forgotten). Thread-safe."""

    def __init__(self, lake: DataLake) -> None:
        self._folder = retrieval_folder(lake)
        self._index: RetrievalIndex | None = None
        self._loaded_stamp: tuple[int, int] | None = None
        self._last_error = ""
        self._lock = threading.Lock()

    def index(self) -> RetrievalIndex | None:
        """The lake's current index, or None if it is missing or damaged."""
        with self._lock:
            stamp = self._stamp()
            if stamp is None or stamp != self._loaded_stamp:
                self._index = None  # dropped before loading: it may hold forgotten rows
                self._loaded_stamp, self._index = stamp, self._load()
            return self._index

    def look_up(self, question: str, wanted: RetrievalSettings) -> list[RetrievedText]:
        """Known answers and passages for ``question``, in placeholder mode ``keep``; empty without an index.

        ``wanted`` sets how many of each kind.
        """
        index = self.index()
        if index is None:
            return []
        return [*index.answers([question], wanted.answers)[0], *index.passages([question], wanted.passages)[0]]

    def retrieve_for(self, recipe: Recipe, question: str, intent: str | None) -> list[RetrievedText]:
        """The texts that a model of ``recipe`` gets in its prompt with ``question``; empty if the recipe does not retrieve.

        Raises NotReady when the index is missing or damaged.
        """
        if recipe.prompt.retrieve is None:
            return []
        index = self.index()
        if index is None:
            raise NotReady(
                "This model needs the retrieval index, which is missing or damaged.",
                "Materialise 'retrieval_index'.",
                _RETRY_AFTER,
            )
        return retrieve(index, recipe.prompt, recipe.placeholders, [question], [intent])[0]

    def _load(self) -> RetrievalIndex | None:
        try:
            index = RetrievalIndex.load(self._folder)
        except PipelineError as error:
            if error.what != self._last_error:
                logger.warning("no retrieval index: %s", error.what)
            self._last_error = error.what
            return None
        self._last_error = ""
        logger.info("retrieval index %s loaded", index.version[:12])
        return index

    def _stamp(self) -> tuple[int, int] | None:
        """Inode and modification time of the manifest, which change with every build."""
        try:
            manifest = (self._folder / MANIFEST_NAME).stat()
        except FileNotFoundError:
            return None
        return manifest.st_ino, manifest.st_mtime_ns
