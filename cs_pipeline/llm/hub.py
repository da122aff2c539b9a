"""A base model of the hub on this disk: fetched once at its pinned revision, resumed, verified, found again offline.

Files lie in the hub library's own cache (``HF_HUB_CACHE``): what other tools fetched is used here, and the other way
round. They are fetched by our own download, because the library's begins an interrupted file anew, and a shard has
five gigabytes. Only safetensors and texts are ever asked for: no pickle, no code.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cs_pipeline.core.download import RemoteFile, download
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import make_folder
from cs_pipeline.llm.model import missing_files, shards
from cs_pipeline.recipe import HubBase

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_TEXTS = (".json", ".txt", ".jinja", ".model")
"""What the tokenizer and the configuration need; ``.model`` is sentencepiece's vocabulary."""
SPARE = 500_000_000
"""Bytes that stay free beside the download: a disk that is full to the last byte breaks databases."""


@dataclass(frozen=True)
class _Place:
    """Where the cache keeps a repository: contents by their hash, and for each revision links to them by name."""

    blobs: Path
    snapshot: Path


def cached(spec: HubBase) -> Path | None:
    """The folder of ``spec`` in the cache if all of it is there, else None; nobody is asked over the network."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _place(spec).snapshot
    if missing_files(folder):
        return None
    try:  # a list of the repository's files is there when another tool began to fetch it
        listed = [file.path for file in get_cached_repo_tree(spec.repo, revision=spec.revision)]
    except CachedRepoTreeNotFoundError:
        return folder  # fetched by us: weights come last, so what has them is whole
    return folder if all((folder / name).exists() for name in listed if _is_text(name)) else None


def fetch(spec: HubBase, report: Callable[[str], None]) -> Path:
    """The folder of ``spec``, all of it, after what is missing was fetched and compared with the hub's hashes.

    ``report`` gets lines with megabytes, rate and time left; a call that was interrupted goes on where it stopped. Raises
    PipelineError when the hub cannot be reached, refuses, has no such revision or no safetensors, or the disk is too full.
    """
    folder = cached(spec)
    if folder is not None:
        return folder
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    what, place = _what(spec), _place(spec)
    token = os.environ.get("HF_TOKEN") or False
    with _explained(spec):
        # Folders in the repository hold other tools' formats.
        tree = HfApi(token=token).list_repo_tree(spec.repo, revision=spec.revision)
        files = {file.path: file for file in tree if isinstance(file, RepoFile)}
        # The list is open to everybody; only a file tells whether its licence must have been accepted.
        get_hf_file_metadata(hf_hub_url(spec.repo, "config.json", revision=spec.revision), token=token)
    for name in filter(_is_text, files):
        _get(spec, files[name], place, report)
    needed = shards(place.snapshot)
    missing = [name for name in needed if name not in files]
    if missing:
        raise PipelineError(
            f"{what} has no safetensors weights: {', '.join(missing)} is not there.",
            "Choose a revision that has them; pickles are never loaded. A model that you trust can be converted with "
            "transformers (from_pretrained, save_pretrained) and named as 'base: {source: path, path: FOLDER}'.",
        )
    _room(spec, place, sum(_size(files[name]) - _have(files[name], place) for name in needed))
    for name in needed:
        _get(spec, files[name], place, report)
    lacks = missing_files(place.snapshot)
    if lacks:
        raise PipelineError(
            f"{what} lacks {', '.join(lacks)}.", "Choose a revision that holds a whole model and its tokenizer."
        )
    return place.snapshot


def cache_folder() -> Path:
    """Where the hub library keeps what it has fetched."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _get(spec: HubBase, file: "RepoFile", place: _Place, report: Callable[[str], None]) -> None:
    """Fetches one file unless it is there, and links its name in the revision to its content."""
    from huggingface_hub import hf_hub_url

    link, blob = place.snapshot / file.path, _blob(file, place)
    if not blob.exists() or blob.stat().st_size != _size(file):
        url = hf_hub_url(spec.repo, file.path, revision=spec.revision)
        sha256 = file.lfs.sha256 if file.lfs else None
        git_blob = None if file.lfs else file.blob_id  # of a large file git has but a note of its sha256
        try:
            download(RemoteFile("hub", spec.revision, url, _size(file), git_blob, sha256), blob, report=report)
        except PipelineError as error:
            raise PipelineError(f"{_what(spec)} could not be fetched: {error.what}", _elsewhere(error.fix)) from error
        except OSError as error:
            raise PipelineError(
                f"{_what(spec)} could not be kept: {error}.", _elsewhere("Look at the disk.")
            ) from error
    if not link.exists():
        make_folder(link.parent)
        link.unlink(missing_ok=True)  # a link to a content that was taken away
        link.symlink_to(os.path.relpath(blob, link.parent))


def _room(spec: HubBase, place: _Place, needed: int) -> None:
    free = shutil.disk_usage(place.snapshot).free
    if needed + SPARE > free:
        raise PipelineError(
            f"{_what(spec)} needs {needed / 1e9:,.1f} GB more in {cache_folder()}, and {free / 1e9:,.1f} GB are free.",
            "Free the disk, or set HF_HOME to a folder on a larger one.",
        )


@contextmanager
def _explained(spec: HubBase) -> Iterator[None]:
    from httpx2 import HTTPError  # what huggingface_hub lets through
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = _what(spec)
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PipelineError(
            f"{what} is not whole in {cache_folder()}, and HF_HUB_OFFLINE forbids fetching it.",
            _elsewhere("Unset HF_HUB_OFFLINE, or copy the cache of a machine that has it."),
        ) from error
    except GatedRepoError as error:
        with_token = "with that HF_TOKEN" if os.environ.get("HF_TOKEN") else "without HF_TOKEN"
        raise PipelineError(
            f"{what} is gated ({spec.licence}), and {with_token} the hub does not give it.",
            f"Accept its licence at https://huggingface.co/{spec.repo}, then set HF_TOKEN to a token of that account.",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PipelineError(
            f"{what} is not on the hub, or not for everybody.",
            "Fix base.repo and base.revision in the recipe; for a private model set HF_TOKEN.",
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise PipelineError(
                f"{what} could not be fetched: the hub answered {error.response.status_code}.",
                "Set HF_TOKEN to a token that is valid and may read it, or unset it for a model that is for everybody.",
            ) from error
        raise PipelineError(
            f"{what} could not be fetched: the hub cannot be reached or broke off ({type(error).__name__}).",
            _elsewhere("Check the network and HF_HUB_OFFLINE and run again; the download resumes."),
        ) from error


def _elsewhere(fix: str) -> str:
    folder = "'base: {source: path, path: FOLDER}'"
    return f"{fix} Or use a recipe with {folder}, or the recipe 'embedded', which needs no hub."


def _what(spec: HubBase) -> str:
    return f"The base model {spec.repo} at revision {spec.revision}"


def _place(spec: HubBase) -> _Place:
    storage = cache_folder() / f"models--{spec.repo.replace('/', '--')}"
    return _Place(storage / "blobs", storage / "snapshots" / spec.revision)


def _blob(file: "RepoFile", place: _Place) -> Path:
    return place.blobs / (file.lfs.sha256 if file.lfs else file.blob_id)


def _size(file: "RepoFile") -> int:
    return file.lfs.size if file.lfs else file.size


def _have(file: "RepoFile", place: _Place) -> int:
    """Bytes of it that are here already, those of an interrupted download too."""
    blob = _blob(file, place)
    return next((path.stat().st_size for path in (blob, blob.with_name(f"{blob.name}.part")) if path.exists()), 0)


def _is_text(name: str) -> bool:
    return "/" not in name and name.endswith(_TEXTS)
