"""The base model a recipe names: from the hub, from a folder, or the embedded one, trained here from scratch."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, file_sha256
from cs_pipeline.core.manifest import MANIFEST_NAME, content_hash, read_manifest
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.llm.hub import fetch
from cs_pipeline.llm.model import missing_files
from cs_pipeline.llm.prompt import FOUND_FORM
from cs_pipeline.recipe import TEMPLATES, EmbeddedBase, HubBase, PathBase, Recipe

logger = logging.getLogger(__name__)

TEMPLATE = (TEMPLATES / "embedded_v1.jinja").read_text()
"""The embedded base's chat template: writes its transcripts, with an optional system line before them."""


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


def embedded_folder(spec: EmbeddedBase, lake: DataLake) -> Path:
    """Where the base of ``spec`` and of ``bitext_splits`` as it is now lies or will lie."""
    form = (FOUND_FORM,) if spec.known_answers else ()
    return lake.path(
        "train",
        "base_model",
        digest(spec.model_dump(), embedded_data(lake), TEMPLATE, CODE_VERSIONS["base_model"], *form),
    )


def embedded_data(lake: DataLake) -> dict[str, str]:
    """The tables that the embedded base is trained on, with their sha256."""
    return {"bitext_splits": file_sha256(lake.table("prepare", "bitext_splits"))}


def find_base(recipe: Recipe, lake: DataLake, report: Callable[[str], None] = logger.info) -> Base:
    """The base of ``recipe``, which for ``embedded`` must have been trained before; the hub's is fetched if need be.

    Raises PipelineError when it is not there, was changed, or the hub does not give it.
    """
    spec = recipe.base
    if isinstance(spec, HubBase | PathBase):
        return find_hub_or_folder_base(spec, report)
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
    return isinstance(recipe.base, EmbeddedBase) and not (embedded_folder(recipe.base, lake) / MANIFEST_NAME).exists()


def find_hub_or_folder_base(spec: HubBase | PathBase, report: Callable[[str], None] = logger.info) -> Base:
    """A base that needs no lake; what is missing of a hub's is fetched, and ``report`` gets lines of its progress.

    Raises PipelineError when it is not there or the hub does not give it.
    """
    if isinstance(spec, PathBase):
        return _from_folder(spec.path.absolute())
    folder = fetch(spec, report)
    # The revision is a git commit: with the repository's name it stands for the content.
    return Base("hub", spec.repo, spec.revision, digest(spec.repo, spec.revision), str(folder))


def _from_folder(folder: Path) -> Base:
    lacks = missing_files(folder)
    if lacks:
        raise PipelineError(
            f"The base model's folder {folder} lacks {', '.join(lacks)}.",
            "Name a folder that save_pretrained wrote, model and tokenizer both, with safetensors weights.",
        )
    files = sorted(path for path in folder.glob("*") if path.is_file())
    content = digest({path.name: file_sha256(path) for path in files if path.name != MANIFEST_NAME})
    return Base("path", folder.name, None, content, str(folder))
