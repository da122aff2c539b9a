"""The models in memory: loaded on demand, on a shared base where possible. The least recently used one is evicted.

A look-up is loaded like a model, and takes no memory for weights.
"""

import gc
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import (
    compute_dtype,
    load_base,
    load_chat_format,
    main_memory,
    reads_earlier_turns,
    stop_ids_of,
)
from cs_pipeline.recipe import (
    CascadeRecipe,
    FineTuneRecipe,
    LookupRecipe,
    Recipe,
    read_fine_tune_recipe,
    read_recipe,
)
from cs_pipeline.retrieval.lookup import MODEL_FOLDER, LookupModel
from cs_pipeline.retrieval.router import PromptIntents, prompt_intents
from cs_pipeline.serve.models.engine import Engine
from cs_pipeline.serve.models.jobs import NotReady, Variant
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.tracking import get_version, open_store
from cs_pipeline.train.plan.estimate import NF4_BYTES

logger = logging.getLogger(__name__)

RETRY_AFTER = 30
"""Seconds after which a client should retry if a model did not load or there was no memory for it."""

_LOAD_LOCK = threading.Lock()
"""One load at a time per process. Two loads would count the same memory as free, and with transformers 5.23, loading in two
threads at once leaves weights of one model on the meta device."""


@dataclass(frozen=True)
class ServedModel:
    """A model that can answer. ``name`` is unique: "3" for version 3, "3:base" for its base.

    ``placeholders`` is the placeholder mode of its recipe. A look-up has no base. ``embedded`` marks the demo's very small
    model, whose answers are not fit for customers.
    """

    name: str
    version: int
    base: bool
    recipe: str
    placeholders: PlaceholderMode
    has_base: bool
    embedded: bool


WeightsKey = tuple[str, ...]
"""Identifies the weights of an engine. Models with equal keys share one engine."""


@dataclass(eq=False)
class LoadedModel:
    """A version in memory. ``users`` counts who holds it: the running answers, and the registry if it is champion."""

    served: ServedModel
    recipe: Recipe
    users: int = field(default=1, init=False)
    last_used: float = field(default_factory=time.monotonic, init=False)


@dataclass(eq=False)
class LoadedLanguageModel(LoadedModel):
    """A fine-tune, or the base of one. ``intents`` gives the intents that its prompts name: those that it was trained
    with."""

    recipe: FineTuneRecipe
    intents: PromptIntents
    weights: WeightsKey
    engine: Engine
    variant: Variant
    reads_earlier_turns: bool
    lookup: LookupModel | None = None
    """The look-up of a cascade, which is asked first."""


@dataclass(eq=False)
class LoadedLookup(LoadedModel):
    """A look-up. It has no weights: its known answers are in the lake's retrieval index."""

    lookup: LookupModel


class ModelPool:
    """All models in memory, with at most ``limit`` bytes of weights. Thread-safe."""

    def __init__(self, lake: DataLake, limit: int) -> None:
        # Imported before any thread loads a model: text/personal.py hides these libraries while it loads presidio.
        import torch  # noqa: F401
        import transformers  # noqa: F401

        self._lake = lake
        self._limit = limit
        self._loaded: dict[str, LoadedModel] = {}
        self._engines: dict[WeightsKey, Engine] = {}
        self._folders: dict[int, Path] = {}
        self._lock = threading.Lock()

    def hold(self, served: ServedModel) -> LoadedModel:
        """Returns the model, loading it if needed. It stays in memory until ``release``.

        Raises NotReady when it does not load or there is no memory for it now.
        """
        loaded = self._hold_if_loaded(served.name)
        if loaded is None:
            with _LOAD_LOCK:
                loaded = self._hold_if_loaded(served.name) or self._load(served)
        return loaded

    def release(self, loaded: LoadedModel) -> None:
        """Ends one ``hold``."""
        with self._lock:
            loaded.users -= 1
            loaded.last_used = time.monotonic()

    def usage(self) -> dict[str, dict[str, int]]:
        """The models in memory by name: their ``users``, and the ``bytes`` of their weights, shared ones included."""
        with self._lock:
            return {name: {"users": m.users, "bytes": _weight_bytes(m)} for name, m in self._loaded.items()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that all weights take."""
        with self._lock:
            return sum(engine.weight_bytes for engine in self._engines.values())

    def close(self) -> None:
        """Answers the queued questions, then unloads all models."""
        with _LOAD_LOCK:
            for name in list(self._loaded):
                self._unload(name)

    def _hold_if_loaded(self, name: str) -> LoadedModel | None:
        with self._lock:
            loaded = self._loaded.get(name)
            if loaded is not None:
                loaded.users += 1
                loaded.last_used = time.monotonic()
            return loaded

    def _load(self, served: ServedModel) -> LoadedModel:
        try:
            return self._load_files(served)
        except NotReady:
            raise
        except Exception as error:
            logger.exception("model %s does not load", served.name)
            why = error.what if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
            raise NotReady(f"Model {served.name} does not load: {why}", "See the server's log.", RETRY_AFTER) from error

    def _load_files(self, served: ServedModel) -> LoadedModel:
        started = time.monotonic()
        folder = self._folder(served.version)
        recipe = read_recipe(folder / "adapter" / "recipe.yaml")
        base = base_of_version(recipe, folder)  # verifies both manifests
        loaded: LoadedModel
        if isinstance(recipe, LookupRecipe):
            loaded = LoadedLookup(served, recipe, LookupModel.load(recipe, folder / "adapter"))
        elif isinstance(recipe, CascadeRecipe):
            assert base is not None
            model = folder / "adapter" / MODEL_FOLDER
            loaded = self._load_language_model(served, read_fine_tune_recipe(model / "recipe.yaml"), base, model)
            if not served.base:
                loaded.lookup = LookupModel.load(recipe, folder / "adapter")
        else:
            assert isinstance(recipe, FineTuneRecipe)
            assert base is not None
            loaded = self._load_language_model(served, recipe, base, folder / "adapter")
        with self._lock:
            self._loaded[served.name] = loaded
        seconds = time.monotonic() - started
        logger.info("model %s loaded in %.1f s; weights take %.2f GB", served.name, seconds, self.weight_bytes / 1e9)
        return loaded

    def _load_language_model(
        self, served: ServedModel, recipe: FineTuneRecipe, base: Path, adapter: Path
    ) -> LoadedLanguageModel:
        manifest = read_manifest(adapter, "model_version")
        shared = served.base or recipe.lora is not None
        key = (manifest["base"]["sha256"], recipe.quantization) if shared else (manifest["fingerprint"],)
        adapter_name = None if served.base or not shared else f"v{served.version}"
        adapter_bytes = 0 if adapter_name is None else _expected_bytes(adapter, "none")
        if key in self._engines:
            self._make_room(adapter_bytes)
        new_engine = key not in self._engines  # checked after making room, which may have evicted it
        if new_engine:
            source = base if shared else adapter
            self._make_room(_expected_bytes(source, recipe.quantization) + adapter_bytes)
            self._engines[key] = Engine(_load_weights(source, recipe.quantization))
        engine = self._engines[key]
        try:
            chat = load_chat_format(recipe, base, None if served.base else adapter)
            if adapter_name is not None:
                engine.attach(str(adapter), adapter_name)
            stops = frozenset(chat.stop_ids | stop_ids_of(engine.model))
            variant = Variant(chat, stops, adapter_name, recipe.generation.per_device_eval_batch_size)
            intents, reads = (
                prompt_intents(recipe, adapter, None),
                reads_earlier_turns(None if served.base else adapter),
            )
            return LoadedLanguageModel(served, recipe, intents, key, engine, variant, reads)
        except BaseException:
            if new_engine:
                self._engines.pop(key).close()
            raise

    def _folder(self, version: int) -> Path:
        """The version's files, downloaded once if the store is remote."""
        if version not in self._folders or not self._folders[version].exists():
            self._folders[version] = get_version(open_store(self._lake), version).folder
        return self._folders[version]

    def _make_room(self, needed: int) -> None:
        """Evicts the least recently used models until ``needed`` bytes fit. Raises NotReady when they cannot."""
        while (used := self.weight_bytes) + needed > self._limit:
            with self._lock:
                idle = [name for name, loaded in self._loaded.items() if not loaded.users]
                oldest = min(idle, key=lambda name: self._loaded[name].last_used, default=None)
            if oldest is None:
                raise NotReady(
                    f"The model takes {needed / 1e9:.2f} GB; {used / 1e9:.2f} of {self._limit / 1e9:.2f} GB are in use.",
                    "Try again when other answers are finished, or give the server more memory (CS_SERVE_MEMORY_GB).",
                    RETRY_AFTER,
                )
            self._unload(oldest, only_idle=True)

    def _unload(self, name: str, *, only_idle: bool = False) -> None:
        with self._lock:
            if only_idle and self._loaded[name].users:
                return  # a question has arrived in the meantime
            loaded = self._loaded.pop(name)
        if isinstance(loaded, LoadedLanguageModel):
            self._unload_weights(loaded)
        logger.info("model %s unloaded", name)
        del loaded
        _free_memory()

    def _unload_weights(self, loaded: LoadedLanguageModel) -> None:
        """Releases what ``loaded`` does not share with the models that remain."""
        with self._lock:
            others = [model.weights for model in self._loaded.values() if isinstance(model, LoadedLanguageModel)]
            is_last = loaded.weights not in others
            if is_last:
                del self._engines[loaded.weights]
        if is_last:
            loaded.engine.close()
        elif loaded.variant.adapter is not None:
            loaded.engine.detach(loaded.variant.adapter)


def _weight_bytes(loaded: LoadedModel) -> int:
    return loaded.engine.weight_bytes if isinstance(loaded, LoadedLanguageModel) else 0


def _load_weights(folder: Path, quantization: str) -> Any:
    """The model in ``folder``, ready to answer. On a CPU, NF4 is dequantized, as in ``SupportModel``."""
    import torch

    model = load_base(folder, quantization)
    if quantization == "nf4" and not torch.cuda.is_available():
        model = model.dequantize()
    return model.eval()


def _expected_bytes(folder: Path, quantization: str) -> int:
    """Bytes of memory that the weights in ``folder`` will take, from the shapes in their files.

    A folder without config.json has an adapter, whose weights are float32.
    """
    import math

    import torch
    from safetensors import safe_open

    config = folder / "config.json"
    if quantization == "nf4" and torch.cuda.is_available():
        bytes_each = NF4_BYTES
    else:
        bytes_each = float(compute_dtype(read_json(config)).itemsize) if config.exists() else 4.0
    parameters = 0
    for path in folder.glob("*model*.safetensors"):
        with safe_open(path, framework="np") as file:
            parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return int(parameters * bytes_each)


def memory_limit(gigabytes: float | None) -> int:
    """``gigabytes`` in bytes; by default half of the main memory, or four fifths of the GPU's."""
    import torch

    if gigabytes is not None:
        return int(gigabytes * 1e9)
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1] * 0.8)
    return int(main_memory().total * 0.5)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
