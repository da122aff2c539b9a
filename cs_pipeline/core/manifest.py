"""The manifest of a folder, such as an adapter or an index: its files and their hashes. Readers check it before use."""

from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest, file_sha256, read_json, write_json

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes ``manifest.json`` with ``facts`` and the sha256 of every other file in ``folder``; returns the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    manifest = {**facts, "files": {str(path.relative_to(folder)): file_sha256(path) for path in files}}
    write_json(folder / MANIFEST_NAME, manifest)
    return manifest


def read_manifest(folder: Path, asset: str) -> dict[str, Any]:
    """The manifest of ``folder``, after checking the hash of every file.

    Raises PipelineError naming the first file that is missing, changed or added.
    """
    fix = (
        f"Delete {folder} and materialise '{asset}' again. Do not load the folder: its content is not what was written."
    )
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST_NAME)
        files: dict[str, str] = dict(manifest["files"])
    except FileNotFoundError:
        raise PipelineError(
            f"{folder} has no {MANIFEST_NAME}: '{asset}' was not finished there.",
            fix if folder.exists() else f"Materialise '{asset}' first.",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{folder / MANIFEST_NAME} is damaged: {error!r}.", fix) from error
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST_NAME}
    for name in sorted(found | set(files)):
        if name not in found:
            raise PipelineError(f"{folder / name} is missing.", fix)
        if name not in files:
            raise PipelineError(f"{folder / name} was added after the folder was written.", fix)
        if file_sha256(folder / name) != files[name]:
            raise PipelineError(f"{folder / name} was changed after it was written: its sha256 differs.", fix)
    return manifest


def content_hash(manifest: dict[str, Any]) -> str:
    """A hash of the names and contents of a manifest's files: 16 hex digits."""
    return digest(manifest["files"])
