"""The base model a recipe names: from the hub, from a folder, or the embedded one, trained here from scratch."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake, digest, file_sha256
from cs_pipeline.recipe import EmbeddedBase, HubBase, PathBase, Recipe
from cs_pipeline.train.manifest import NAME, content_hash, read_manifest

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Weights as safetensors and what the tokenizer needs; never a pickle, never code."""


@dataclass(frozen=True)
class Base:
    """A base model on this disk. ``sha256`` stands for its content; ``revision`` is the hub's, where there is one."""

    source: str
    name: str
    revision: str | None
    sha256: str
    path: str

    def facts(self) -> dict[str, Any]:
        """What lineage keeps of it: everything but where it lies here."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def find_base(recipe: Recipe, lake: DataLake) -> Base:
    """The base of ``recipe``, which for ``embedded`` must have been trained before.

    Raises PipelineError when it is not there, was changed, or the hub does not give it.
    """
    spec = recipe.base
    if isinstance(spec, HubBase | PathBase):
        return find_hub_or_folder_base(spec)
    from cs_pipeline.train.embedded import embedded_folder  # numpy and pyarrow alone; torch only when it trains

    folder = embedded_folder(spec, lake)
    manifest = read_manifest(folder, "base_model")
    return Base(
        "embedded", f"embedded ({manifest['parameters']:,} parameters)", None, content_hash(manifest), str(folder)
    )


def base_of_version(recipe: Recipe, folder: Path) -> Path:
    """Where the base of a registered version lies, whose ``adapter/`` and perhaps ``base/`` are in ``folder``.

    Raises PipelineError when adapter or base are not what the version was made of.
    """
    trained_on = read_manifest(folder / "adapter", "model_version")["base"]
    if isinstance(recipe.base, EmbeddedBase):
        base, sha256 = folder / "base", content_hash(read_manifest(folder / "base", "model_version"))
    else:  # models of the hub and of folders are not copied into the registry
        found = find_hub_or_folder_base(recipe.base)
        base, sha256 = Path(found.path), found.sha256
    if sha256 != trained_on["sha256"]:
        raise PipelineError(
            f"{base} is not the base model {trained_on['name']} that the version in {folder} was trained on.",
            "Put the former model back, or train and register the recipe again.",
        )
    return base


def needs_training(recipe: Recipe, lake: DataLake) -> bool:
    """True where the base is the embedded one and has not been trained on Bitext's present training rows."""
    from cs_pipeline.train.embedded import embedded_folder

    return isinstance(recipe.base, EmbeddedBase) and not (embedded_folder(recipe.base, lake) / NAME).exists()


def find_hub_or_folder_base(spec: HubBase | PathBase) -> Base:
    """A base that needs no lake. Raises PipelineError when it is not there or the hub does not give it."""
    if isinstance(spec, PathBase):
        return _from_folder(spec.path.absolute())
    folder = _from_hub(spec)
    # The revision is a git commit: with the repository's name it stands for the content.
    return Base("hub", spec.repo, spec.revision, digest(spec.repo, spec.revision), str(folder))


def _from_folder(folder: Path) -> Base:
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    names = {path.name for path in files}
    lacking = [name for name in ("config.json", "tokenizer_config.json") if name not in names]
    if not any(path.suffix == ".safetensors" for path in files):
        lacking.append("*.safetensors")
    if lacking:
        raise PipelineError(
            f"The base model's folder {folder} lacks {', '.join(lacking)}.",
            "Name a folder that save_pretrained wrote, model and tokenizer both, with safetensors weights.",
        )
    content = digest({path.name: file_sha256(path) for path in files if path.name != NAME})
    return Base("path", folder.name, None, content, str(folder))


def _from_hub(spec: HubBase) -> Path:
    from httpx2 import HTTPError  # what huggingface_hub lets through when a download breaks off
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"The base model {spec.repo} at revision {spec.revision}"
    token = os.environ.get("HF_TOKEN")
    try:
        folder = Path(
            snapshot_download(spec.repo, revision=spec.revision, allow_patterns=_HUB_FILES, token=token or False)
        )
    except GatedRepoError as error:
        raise PipelineError(
            f"{what} is gated ({spec.licence}).",
            f"Accept its licence at https://huggingface.co/{spec.repo}, then set HF_TOKEN to a token of that account.",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PipelineError(
            f"{what} is not on the hub, or not for everybody.",
            "Mend base.repo and base.revision in the recipe; for a private model set HF_TOKEN.",
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise PipelineError(
                f"{what} could not be fetched: the hub answered {error.response.status_code}.",
                "Set HF_TOKEN to a token that is valid and may read it, or unset it for a model that is for everybody.",
            ) from error
        raise PipelineError(
            f"{what} could not be fetched: the hub cannot be reached or broke off ({type(error).__name__}).",
            "Check the network and HF_HUB_OFFLINE and run again; the download resumes. Or use a recipe with "
            "'base: {source: path, path: FOLDER}', or the recipe 'embedded', which needs no hub.",
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise PipelineError(
            f"{what} has no safetensors weights.", "Choose a revision that has; pickles are never loaded."
        )
    return folder
