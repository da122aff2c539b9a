"""What makes a folder of weights or of an index trustworthy: a list of its files and their hashes, written last."""

from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest, file_sha256, read_json, write_json

NAME = "manifest.json"


def write_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes ``manifest.json`` with ``facts`` and the sha256 of every other file below ``folder``, and returns it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    manifest = {**facts, "files": {str(path.relative_to(folder)): file_sha256(path) for path in files}}
    write_json(folder / NAME, manifest)
    return manifest


def read_manifest(folder: Path, asset: str) -> dict[str, Any]:
    """The manifest of ``folder``, after every file in it was compared with its hash.

    Raises PipelineError naming the first file that is missing, changed or was added.
    """
    fix = f"Delete {folder} and materialise '{asset}' again; do not load it, what lies there is not what was made."
    try:
        manifest: dict[str, Any] = read_json(folder / NAME)
        files: dict[str, str] = dict(manifest["files"])
    except FileNotFoundError:
        raise PipelineError(f"{folder} holds no {NAME}: '{asset}' was not finished there.", fix) from None
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{folder / NAME} is damaged: {error!r}.", fix) from error
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {NAME}
    for name in sorted(found | set(files)):
        if name not in found:
            raise PipelineError(f"{folder / name} is missing.", fix)
        if name not in files:
            raise PipelineError(f"{folder / name} was added after it was made.", fix)
        if file_sha256(folder / name) != files[name]:
            raise PipelineError(f"{folder / name} was changed after it was made: its sha256 is another.", fix)
    return manifest


def content_hash(manifest: dict[str, Any]) -> str:
    """16 hex digits that stand for the files of a manifest."""
    return digest(manifest["files"])
