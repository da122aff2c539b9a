"""The models in memory: loaded when they are asked for, on a shared base where that goes; what is unused longest leaves."""

import gc
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import load_base, load_chat, stops_of
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.serve.models.engine import Engine
from cs_pipeline.serve.models.jobs import Variant
from cs_pipeline.serve.models.jobs import NotReady
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.tracking import get_version, open_store
from cs_pipeline.train.plan.estimate import NF4_BYTES

logger = logging.getLogger(__name__)

RETRY = 30
"""Seconds after which to ask again for a model that finds no memory now, or does not load."""

LOADING = threading.Lock()
"""One model at a time in a process: two would each take the memory that the other has seen free, and in transformers 5.23
two threads that load at once leave weights of one on the meta device."""


@dataclass(frozen=True)
class ServedModel:
    """A model that may answer. ``name`` is unique and resolves to itself: "3", or "3:base" for the base of version 3.

    ``placeholders`` is how its recipe writes them; ``embedded`` whether it is the demo's very small model, whose answers are
    no good for customers.
    """

    name: str
    version: int
    base: bool
    recipe: str
    placeholders: PlaceholderMode
    embedded: bool


Weights = tuple[str, ...]
"""What stands for the weights of an engine: those whose parts are equal are loaded once."""


class LoadedModel:
    """A version in memory; ``users`` are the answers that it is giving, and the alias that holds it."""

    def __init__(self, served: ServedModel, recipe: Recipe, weights: Weights, engine: Engine, variant: Variant) -> None:
        self.served = served
        self.recipe = recipe
        self.weights = weights
        self.engine = engine
        self.variant = variant
        self.classifier: TextClassifier | None = None
        self.users = 0
        self.used = time.monotonic()


class ModelPool:
    """All models in memory, at most ``limit`` bytes of weights. Thread-safe."""

    def __init__(self, lake: DataLake, limit: int) -> None:
        # Not first in the thread that loads: text/personal.py hides them while another thread loads presidio.
        import torch  # noqa: F401
        import transformers  # noqa: F401

        self._lake = lake
        self._limit = limit
        self._loaded: dict[str, LoadedModel] = {}
        self._engines: dict[Weights, Engine] = {}
        self._folders: dict[int, Path] = {}
        self._lock = threading.Lock()

    def hold(self, served: ServedModel) -> LoadedModel:
        """The model, loaded if it must be; it stays until ``release``.

        Raises NotReady where there is no memory for it now, or it does not load.
        """
        found = self._held(served.name)
        if found is None:
            with LOADING:
                found = self._held(served.name) or self._load(served)
        return found

    def release(self, loaded: LoadedModel) -> None:
        """Undoes one ``hold``."""
        with self._lock:
            loaded.users -= 1
            loaded.used = time.monotonic()

    def figures(self) -> dict[str, dict[str, int]]:
        """By name, what is in memory: how many ``users`` it has, and the ``bytes`` of the weights it shares or has."""
        with self._lock:
            return {name: {"users": m.users, "bytes": m.engine.bytes} for name, m in self._loaded.items()}

    @property
    def bytes(self) -> int:
        """What all weights take."""
        with self._lock:
            return sum(engine.bytes for engine in self._engines.values())

    def close(self) -> None:
        """Unloads everything, after what waits is answered."""
        with LOADING:
            for name in list(self._loaded):
                self._unload(name)

    def _held(self, name: str) -> LoadedModel | None:
        with self._lock:
            found = self._loaded.get(name)
            if found is not None:
                found.users += 1
                found.used = time.monotonic()
            return found

    def _load(self, served: ServedModel) -> LoadedModel:
        try:
            return self._loaded_now(served)
        except NotReady:
            raise
        except Exception as error:
            logger.exception("model %s does not load", served.name)
            why = error.what if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
            raise NotReady(f"Model {served.name} does not load: {why}", "See the server's log.", RETRY) from error

    def _loaded_now(self, served: ServedModel) -> LoadedModel:
        started = time.monotonic()
        folder = self._folder(served.version)
        adapter = folder / "adapter"
        recipe = read_recipe(adapter / "recipe.yaml")
        base = base_of_version(recipe, folder)  # verifies both manifests
        manifest = read_manifest(adapter, "model_version")
        shared = served.base or recipe.lora is not None
        weights = (manifest["base"]["sha256"], recipe.quantization) if shared else (manifest["fingerprint"],)
        name = None if served.base or not shared else f"v{served.version}"
        beside = 0 if name is None else _expected(adapter, "none")
        if weights in self._engines:
            self._make_room(beside)
        fresh = weights not in self._engines  # which may be so because room was needed
        if fresh:
            whole = base if shared else adapter
            self._make_room(_expected(whole, recipe.quantization) + beside)
            self._engines[weights] = Engine(_weights(whole, recipe.quantization))
        engine = self._engines[weights]
        try:
            chat = load_chat(recipe, base, None if served.base else adapter)
            if name is not None:
                engine.attach(str(adapter), name)
            stops = frozenset(chat.stops | stops_of(engine.model))
            loaded = LoadedModel(served, recipe, weights, engine, Variant(chat, stops, name, recipe.generation.per_device_eval_batch_size))
            loaded.classifier = self._classifier(recipe, adapter)
        except BaseException:
            if fresh:
                self._engines.pop(weights).close()
            raise
        loaded.users = 1
        with self._lock:
            self._loaded[served.name] = loaded
        took = time.monotonic() - started
        logger.info("model %s loaded in %.1f s; weights take %.2f GB", served.name, took, self.bytes / 1e9)
        return loaded

    def _folder(self, version: int) -> Path:
        """The version's files; a store that is not on this disk is asked for them once."""
        if version not in self._folders or not self._folders[version].exists():
            self._folders[version] = get_version(open_store(self._lake), version).folder
        return self._folders[version]

    def _classifier(self, recipe: Recipe, adapter: Path) -> TextClassifier | None:
        """The version's own, else the lake's, else none."""
        own, lakes = adapter / "intent_classifier", self._lake.path("prepare", "intent_classifier")
        if recipe.prompt.route == "intent":
            return TextClassifier.load(own)
        return TextClassifier.load(lakes) if lakes.exists() else None

    def _make_room(self, needed: int) -> None:
        """Unloads what was not used for longest, until ``needed`` bytes fit. Raises NotReady where they do not."""
        while self.bytes + needed > self._limit:
            with self._lock:
                idle = [name for name, loaded in self._loaded.items() if not loaded.users]
                oldest = min(idle, key=lambda name: self._loaded[name].used, default=None)
            if oldest is None:
                raise NotReady(
                    f"The model takes {needed / 1e9:.2f} GB; {self.bytes / 1e9:.2f} of {self._limit / 1e9:.2f} are in use.",
                    "DeskRequest again when others are answered, or give the server more (CS_SERVE_MEMORY_GB).",
                    RETRY,
                )
            self._unload(oldest, only_idle=True)

    def _unload(self, name: str, *, only_idle: bool = False) -> None:
        with self._lock:
            if only_idle and self._loaded[name].users:
                return  # somebody has asked meanwhile
            loaded = self._loaded.pop(name)
            alone = all(other.weights != loaded.weights for other in self._loaded.values())
            if alone:
                del self._engines[loaded.weights]
        if alone:
            loaded.engine.close()
        elif loaded.variant.adapter is not None:
            loaded.engine.detach(loaded.variant.adapter)
        logger.info("model %s unloaded", name)
        del loaded
        _give_back()


def _weights(folder: Path, quantization: str) -> Any:
    """The model in ``folder`` as it answers: NF4 is unpacked on a CPU, as in ``SupportModel``."""
    import torch

    model = load_base(folder, quantization)
    if quantization == "nf4" and not torch.cuda.is_available():
        model = model.dequantize()
    return model.eval()


def _expected(folder: Path, quantization: str) -> int:
    """Bytes that the weights in ``folder`` will take, by the shapes in their files."""
    import math

    import torch
    from safetensors import safe_open

    each = 4.0 if not torch.cuda.is_available() else NF4_BYTES if quantization == "nf4" else 2.0
    numbers = 0
    for path in folder.glob("*model*.safetensors"):
        with safe_open(path, framework="np") as file:
            numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return int(numbers * each)


def memory_limit(gigabytes: float | None) -> int:
    """``gigabytes`` in bytes; without them half of this machine's memory, or four fifths of its GPU's."""
    import psutil
    import torch

    if gigabytes is not None:
        return int(gigabytes * 1e9)
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1] * 0.8)
    return int(psutil.virtual_memory().total * 0.5)


def _give_back() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
