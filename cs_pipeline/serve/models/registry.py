"""Which models there are: MLflow's versions and aliases, looked up every few seconds, and the champion that answers."""

import logging
import re
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.models.pool import RETRY, Loaded, Pool, Served
from cs_pipeline.serve.models.refusals import NotReady, UnknownModel
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.tracking import CHALLENGER, CHAMPION, MODEL, find_versions, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<model>[a-z-]+|[1-9]\d{0,8})(?P<base>:base)?")


@dataclass(frozen=True)
class KnownModels:
    """What the store said last: the versions by number, and the numbers that hold aliases."""

    versions: dict[int, Served]
    aliases: dict[str, int]


class Registry:
    """Names of models, and the version that ``champion`` stands for.

    A thread looks at the alias every ``seconds``. A new champion is loaded beside the old one, and answers from when it is
    loaded; one that does not load leaves the old one in its place, and is tried again after a while.
    """

    def __init__(self, lake: DataLake, pool: Pool, seconds: float) -> None:
        self._lake = lake
        self._pool = pool
        self._seconds = seconds
        self._known = KnownModels({}, {})
        self._champion: Loaded | None = None
        self.failure: tuple[int, str] | None = None
        """The version that is champion and does not load, and why."""
        self.silent: str | None = "The store was not asked yet."
        """Why the store does not answer, None while it does; names are those it said last."""
        self.swaps = 0
        self._again = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)
        self._thread.start()

    @property
    def known(self) -> KnownModels:
        return self._known

    @property
    def champion(self) -> int | None:
        """The version that answers as champion, which may be behind the alias; None where none does."""
        held = self._champion
        return None if held is None else held.served.version

    def resolve(self, name: str) -> Served:
        """The model that ``name`` stands for: ``champion``, ``challenger``, ``cs-support``, a number, each with ``:base``.

        Raises UnknownModel, and NotReady for a champion that is not there.
        """
        found = _NAME.fullmatch(name)
        known = self._known
        if found is None:
            raise UnknownModel(self.names())
        if found["model"] in (CHAMPION, MODEL):
            held = self._champion
            if held is None:
                raise self._no_champion()
            version = held.served
        else:
            number = int(found["model"]) if found["model"].isdecimal() else known.aliases.get(found["model"])
            if number not in known.versions:
                raise UnknownModel(self.names())
            version = known.versions[number]
        return replace(version, name=f"{version.version}:base", base=True) if found["base"] else version

    def names(self) -> list[str]:
        """Every name that stands for a model now: those of aliases first, then versions, the newest first."""
        known = self._known
        champion = [] if self._champion is None else [MODEL, CHAMPION]
        challenger = [CHALLENGER] if CHALLENGER in known.aliases else []
        own = [*champion, *challenger, *map(str, sorted(known.versions, reverse=True))]
        return [name for model in own for name in (model, f"{model}:base")]

    def trouble(self) -> str | None:
        """What hinders the champion that the alias names, or None."""
        if self.failure is not None:
            return f"The champion is version {self.failure[0]}. {self.failure[1]}"
        return self.silent

    def close(self) -> None:
        """Ends the watching, and lets the champion go."""
        self._end.set()
        self._thread.join()
        self._replace(None)

    def _no_champion(self) -> NotReady:
        if trouble := self.trouble():
            return NotReady(trouble, "Ask again in a moment; the server's log says more.", RETRY)
        if CHAMPION in self._known.aliases:
            return NotReady("The champion is being loaded.", "Ask again in a moment.", 5)
        return NotReady("There is no champion yet.", "Run the whole job first: make demo", RETRY)

    def _watch(self) -> None:
        while True:
            try:
                self._look()
                self.silent = None
            except Exception as error:
                # Whatever is wrong with the store: what was known of it stays true enough to answer by.
                if self.silent is None or not self._known.versions:
                    logger.warning("the registry does not answer: %s", error)
                self.silent = f"The registry does not answer: {error}"
            if self._end.wait(self._seconds):
                return

    def _look(self) -> None:
        client = open_store(self._lake)
        known = self._known.versions
        versions = {int(v.version): known.get(int(v.version)) or _described(client, v) for v in find_versions(client)}
        aliases = client.get_registered_model(MODEL).aliases if versions else {}
        self._known = KnownModels(versions, {alias: int(version) for alias, version in aliases.items()})
        wanted = self._known.aliases.get(CHAMPION)
        if wanted == self.champion:
            self.failure = None
        elif wanted is None:
            logger.warning("no version is champion any more")
            self._replace(None)
        elif self.failure is None or self.failure[0] != wanted or time.monotonic() >= self._again:
            self._take(self._known.versions[wanted])

    def _take(self, version: Served) -> None:
        try:
            loaded = self._pool.hold(version)
        except NotReady as error:
            logger.error(
                "version %s is champion now, and %s still answers: %s", version.name, self.champion, error.what
            )
            self.failure, self._again = (version.version, error.what), time.monotonic() + RETRY
            return
        logger.info("champion: version %s, before it %s", version.name, self.champion)
        self._replace(loaded)
        self.failure = None

    def _replace(self, loaded: Loaded | None) -> None:
        before, self._champion = self._champion, loaded
        if before is not None:
            self._pool.release(before)
            self.swaps += 1


def _described(client: "MlflowClient", version: Any) -> Served:
    """What the store says of a version, without its files: they may have to come from another machine."""
    settings = client.get_run(version.run_id).data.params
    return Served(
        str(version.version),
        int(version.version),
        base=False,
        recipe=version.tags["cs.recipe"],
        placeholders=PlaceholderMode(settings["placeholders"]),
        embedded=settings["base.source"] == "embedded",
    )
