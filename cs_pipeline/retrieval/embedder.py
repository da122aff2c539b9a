"""A sentence-embedding model, from the hub at a pinned revision or from a folder."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest, file_sha256

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_MAX_TOKENS = 256
"""Longer texts are truncated; a passage has about 150 tokens."""
_BATCH_SIZE = 64


class Embedder:
    """The model ``name``, which is ORG/MODEL@REVISION or a folder. ``sha256`` is the hash of its files.

    Raises PipelineError if the model is missing or its download fails. A model's pickles and code are never loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        hub = _HUB.fullmatch(name)
        self._folder = _download(hub["repo"], hub["revision"]) if hub else Path(name)
        missing = [file for file in ("config.json", "tokenizer.json", "model.safetensors") if not self._has(file)]
        if missing:
            raise PipelineError(
                f"The embedding model {name} has no {', '.join(missing)}.",
                "Set CS_EMBEDDER to ORG/MODEL@REVISION, with 40 hex digits, or to a folder that save_pretrained wrote.",
            )
        self.sha256 = digest(
            {path.name: file_sha256(path) for path in sorted(self._folder.iterdir()) if path.is_file()}
        )

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The mean of the last hidden layer over each text's tokens, scaled to length 1, float32: [texts, width]."""
        import torch

        tokenizer, model = self._model
        rows = [np.zeros((0, model.config.hidden_size), np.float32)]
        for start in range(0, len(texts), _BATCH_SIZE):
            batch = tokenizer(
                list(texts[start : start + _BATCH_SIZE]),
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            rows.append(torch.nn.functional.normalize(means, dim=1).float().numpy())
        return np.concatenate(rows)

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        model = AutoModel.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
        return tokenizer, model.eval()

    def _has(self, file: str) -> bool:
        return (self._folder / file).is_file()


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
