"""The models that can be requested, from MLflow's versions and aliases, and the champion that answers now."""

import logging
import re
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.base import NO_BASE
from cs_pipeline.serve.models.jobs import NotReady, UnknownModel
from cs_pipeline.serve.models.pool import RETRY_AFTER, LoadedModel, ModelPool, ServedModel
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.tracking import CHALLENGER, CHAMPION, MODEL, find_versions, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<model>[a-z-]+|[1-9]\d{0,8})(?P<base>:base)?")


@dataclass(frozen=True)
class RegistryState:
    """The store's last answer: the versions by number, and the version number of each alias."""

    versions: dict[int, ServedModel]
    aliases: dict[str, int]


class ModelRegistry:
    """Model names, and the version behind ``champion``.

    A thread polls the store every ``seconds``. A new champion loads while the old one still answers, and takes over once it
    is loaded. If it does not load, the old one stays and the load is retried later.
    """

    def __init__(self, lake: DataLake, pool: ModelPool, seconds: float) -> None:
        self._lake = lake
        self._pool = pool
        self._seconds = seconds
        self._champion: LoadedModel | None = None
        self.state = RegistryState({}, {})
        self.failure: tuple[int, str] | None = None
        """The version that is champion but does not load, and why."""
        self.unreachable: str | None = "The model registry has not been asked yet."
        """Why the store does not answer; None while it does. Meanwhile ``state`` keeps its last answer."""
        self._retry_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)
        self._thread.start()

    @property
    def champion(self) -> int | None:
        """The version that answers as champion, or None. It can lag behind the alias."""
        champion = self._champion
        return None if champion is None else champion.served.version

    def resolve(self, name: str) -> ServedModel:
        """The model called ``name``: ``champion``, ``challenger``, ``cs-support`` or a number, each also with ``:base``.

        Raises UnknownModel, also for the base of a look-up, and NotReady when no champion is loaded.
        """
        match = _NAME.fullmatch(name)
        state = self.state
        if match is None:
            raise UnknownModel(self.names())
        if match["model"] in (CHAMPION, MODEL):
            champion = self._champion
            if champion is None:
                raise self._no_champion()
            version = champion.served
        else:
            number = int(match["model"]) if match["model"].isdecimal() else state.aliases.get(match["model"])
            if number not in state.versions:
                raise UnknownModel(self.names())
            version = state.versions[number]
        if not match["base"]:
            return version
        if not version.has_base:
            raise UnknownModel(self.names())
        return replace(version, name=f"{version.version}:base", base=True)

    def names(self) -> list[str]:
        """All valid model names: aliases first, then versions, newest first. Each is followed by its base, if it has one."""
        state, champion = self.state, self._champion
        named = {} if champion is None else {MODEL: champion.served, CHAMPION: champion.served}
        if challenger := state.versions.get(state.aliases.get(CHALLENGER, 0)):
            named[CHALLENGER] = challenger
        named |= {str(number): state.versions[number] for number in sorted(state.versions, reverse=True)}
        return [
            name
            for model, served in named.items()
            for name in ((model, f"{model}:base") if served.has_base else (model,))
        ]

    def problem(self) -> str | None:
        """Why the version with the champion alias does not answer, or None."""
        if self.failure is not None:
            return f"The champion is version {self.failure[0]}. {self.failure[1]}"
        return self.unreachable

    def close(self) -> None:
        """Stops polling and releases the champion."""
        self._closing.set()
        self._thread.join()
        self._replace(None)

    def _no_champion(self) -> NotReady:
        if problem := self.problem():
            return NotReady(problem, "Try again in a moment; the server's log has more.", RETRY_AFTER)
        if CHAMPION in self.state.aliases:
            return NotReady("The champion is still loading.", "Try again in a moment.", 5)
        return NotReady("There is no champion yet.", "Run the full pipeline first: make demo", RETRY_AFTER)

    def _watch(self) -> None:
        while True:
            try:
                self._poll()
                self.unreachable = None
            except Exception as error:
                # Whatever the error, the server continues with the store's last answer.
                if self.unreachable is None or not self.state.versions:
                    logger.warning("the registry does not answer: %s", error)
                self.unreachable = f"The registry does not answer: {error}"
            if self._closing.wait(self._seconds):
                return

    def _poll(self) -> None:
        client = open_store(self._lake)
        known = self.state.versions
        versions = {int(v.version): known.get(int(v.version)) or _describe(client, v) for v in find_versions(client)}
        aliases = client.get_registered_model(MODEL).aliases if versions else {}
        self.state = RegistryState(versions, {alias: int(version) for alias, version in aliases.items()})
        wanted = self.state.aliases.get(CHAMPION)
        if wanted == self.champion:
            self.failure = None
        elif wanted is None:
            logger.warning("no version is champion any more")
            self._replace(None)
        elif self.failure is None or self.failure[0] != wanted or time.monotonic() >= self._retry_at:
            self._load_champion(self.state.versions[wanted])

    def _load_champion(self, version: ServedModel) -> None:
        try:
            loaded = self._pool.hold(version)
        except NotReady as error:
            logger.error(
                "version %s is champion now, but %s still answers: %s", version.name, self.champion, error.what
            )
            self.failure, self._retry_at = (version.version, error.what), time.monotonic() + RETRY_AFTER
            return
        logger.info("champion: version %s, previously %s", version.name, self.champion)
        self._replace(loaded)
        self.failure = None

    def _replace(self, loaded: LoadedModel | None) -> None:
        previous, self._champion = self._champion, loaded
        if previous is not None:
            self._pool.release(previous)


def _describe(client: "MlflowClient", version: Any) -> ServedModel:
    """A version's facts from the store alone: its files may be on another machine."""
    settings = client.get_run(version.run_id).data.params
    base = settings.get("base.source", NO_BASE.source)
    return ServedModel(
        str(version.version),
        int(version.version),
        base=False,
        recipe=version.tags["cs.recipe"],
        placeholders=PlaceholderMode(settings["placeholders"]),
        has_base=base != NO_BASE.source,
        embedded=base == "embedded",
    )
