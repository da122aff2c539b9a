"""Downloads base models from the Hugging Face hub at a pinned revision, with resume and verification.

Files are kept in the hub library's own cache (``HF_HUB_CACHE``), so this project and other tools share downloads. This
module downloads them itself, because the library restarts an interrupted file from the beginning, and one file can be five
gigabytes. Only safetensors and text files are requested: no pickle, no code.
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
from cs_pipeline.llm.model import missing_files, weight_files
from cs_pipeline.recipe import HubBase

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_TEXT_SUFFIXES = (".json", ".txt", ".jinja", ".model")
"""Suffixes of the tokenizer's and the configuration's files; ``.model`` is sentencepiece's vocabulary."""
SPARE_BYTES = 500_000_000
"""Bytes that a download leaves free, because a full disk breaks databases."""


@dataclass(frozen=True)
class _CacheEntry:
    """A repository in the cache: ``blobs`` holds file contents by hash; ``snapshot`` holds a revision's links to them."""

    blobs: Path
    snapshot: Path


def cached_base(spec: HubBase) -> Path | None:
    """The folder of ``spec`` in the cache if it is complete, else None. Does not use the network."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _cache_entry(spec).snapshot
    if missing_files(folder):
        return None
    try:  # the cache has a list only if another tool began the download; text files may then be missing
        listed = [file.path for file in get_cached_repo_tree(spec.repo, revision=spec.revision)]
    except CachedRepoTreeNotFoundError:
        return folder  # downloaded by this module: weights come last, so a folder with weights is complete
    return folder if all((folder / name).exists() for name in listed if _is_text(name)) else None


def fetch_base(spec: HubBase, report: Callable[[str], None]) -> Path:
    """The complete folder of ``spec``. Missing files are downloaded and compared with the hub's hashes.

    ``report`` gets lines with megabytes, rate and time left. An interrupted download is resumed. Raises PipelineError if
    the hub cannot be reached or refuses, if it has no such revision or no safetensors, or if the disk is too full.
    """
    if (folder := cached_base(spec)) is not None:
        return folder
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    title, entry = _title(spec), _cache_entry(spec)
    token = os.environ.get("HF_TOKEN") or False
    with _hub_errors(spec):
        # Not recursive: the repository's folders contain formats for other tools.
        tree = HfApi(token=token).list_repo_tree(spec.repo, revision=spec.revision)
        files = {file.path: file for file in tree if isinstance(file, RepoFile)}
        # Anybody can list the files of a gated model; only requesting one shows whether this account has access.
        get_hf_file_metadata(hf_hub_url(spec.repo, "config.json", revision=spec.revision), token=token)
    for name in filter(_is_text, files):
        _get(spec, files[name], entry, report)
    weights = weight_files(entry.snapshot)
    if missing := [name for name in weights if name not in files]:
        raise PipelineError(
            f"{title} has no safetensors weights: {', '.join(missing)} is missing.",
            "Choose a revision that has them; pickles are never loaded. You can convert a model that you trust with "
            "transformers (from_pretrained, save_pretrained) and use it as 'base: {source: path, path: FOLDER}'.",
        )
    _check_disk(spec, entry, sum(_size(files[name]) - _bytes_present(files[name], entry) for name in weights))
    for name in weights:
        _get(spec, files[name], entry, report)
    if missing := missing_files(entry.snapshot):
        raise PipelineError(
            f"{title} lacks {', '.join(missing)}.", "Choose a revision with a complete model and its tokenizer."
        )
    return entry.snapshot


def cache_folder() -> Path:
    """The hub library's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _get(spec: HubBase, file: "RepoFile", entry: _CacheEntry, report: Callable[[str], None]) -> None:
    """Downloads one file unless it is present, and links its name in the revision to its content."""
    from huggingface_hub import hf_hub_url

    link, blob = entry.snapshot / file.path, _blob(file, entry)
    if not blob.exists() or blob.stat().st_size != _size(file):
        url = hf_hub_url(spec.repo, file.path, revision=spec.revision)
        sha256 = file.lfs.sha256 if file.lfs else None
        git_blob = None if file.lfs else file.blob_id  # the blob of a large file is only a pointer with its sha256
        try:
            download(RemoteFile("hub", spec.revision, url, _size(file), git_blob, sha256), blob, report=report)
        except PipelineError as error:
            raise PipelineError(
                f"{_title(spec)} could not be downloaded: {error.what}", _or_without_hub(error.fix)
            ) from error
        except OSError as error:
            raise PipelineError(
                f"{_title(spec)} could not be saved: {error}.", _or_without_hub("Check the disk.")
            ) from error
    if not link.exists():
        make_folder(link.parent)
        link.unlink(missing_ok=True)  # it may be a link whose target was deleted
        link.symlink_to(os.path.relpath(blob, link.parent))


def _check_disk(spec: HubBase, entry: _CacheEntry, needed: int) -> None:
    free = shutil.disk_usage(entry.snapshot).free
    if needed + SPARE_BYTES > free:
        raise PipelineError(
            f"{_title(spec)} needs {needed / 1e9:,.1f} GB more in {cache_folder()}, and {free / 1e9:,.1f} GB are free.",
            "Free disk space, or set HF_HOME to a folder on a larger disk.",
        )


@contextmanager
def _hub_errors(spec: HubBase) -> Iterator[None]:
    from httpx2 import HTTPError  # huggingface_hub does not wrap these
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    title = _title(spec)
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PipelineError(
            f"{title} is not complete in {cache_folder()}, and HF_HUB_OFFLINE forbids downloading it.",
            _or_without_hub("Unset HF_HUB_OFFLINE, or copy the cache from a machine that has it."),
        ) from error
    except GatedRepoError as error:
        with_token = "with that HF_TOKEN" if os.environ.get("HF_TOKEN") else "without HF_TOKEN"
        raise PipelineError(
            f"{title} is gated ({spec.licence}), and the hub refuses to send it {with_token}.",
            f"Accept its licence at https://huggingface.co/{spec.repo}, then set HF_TOKEN to a token of that account.",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PipelineError(
            f"{title} is not on the hub, or is private.",
            "Fix base.repo and base.revision in the recipe; for a private model set HF_TOKEN.",
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise PipelineError(
                f"{title} could not be downloaded: the hub answered {error.response.status_code}.",
                "Set HF_TOKEN to a valid token with access to it, or unset it for a public model.",
            ) from error
        raise PipelineError(
            f"{title} could not be downloaded: the hub cannot be reached or closed the connection ({type(error).__name__}).",
            _or_without_hub("Check the network and HF_HUB_OFFLINE and run again; the download resumes."),
        ) from error


def _or_without_hub(fix: str) -> str:
    path_base = "'base: {source: path, path: FOLDER}'"
    return f"{fix} Or use a recipe with {path_base}, or the recipe 'embedded', which needs no hub."


def _title(spec: HubBase) -> str:
    return f"The base model {spec.repo} at revision {spec.revision}"


def _cache_entry(spec: HubBase) -> _CacheEntry:
    storage = cache_folder() / f"models--{spec.repo.replace('/', '--')}"
    return _CacheEntry(storage / "blobs", storage / "snapshots" / spec.revision)


def _blob(file: "RepoFile", entry: _CacheEntry) -> Path:
    return entry.blobs / (file.lfs.sha256 if file.lfs else file.blob_id)


def _size(file: "RepoFile") -> int:
    return file.lfs.size if file.lfs else file.size


def _bytes_present(file: "RepoFile", entry: _CacheEntry) -> int:
    """Bytes already on disk, including those of an interrupted download."""
    blob = _blob(file, entry)
    return next((path.stat().st_size for path in (blob, blob.with_name(f"{blob.name}.part")) if path.exists()), 0)


def _is_text(name: str) -> bool:
    return "/" not in name and name.endswith(_TEXT_SUFFIXES)
