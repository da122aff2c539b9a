"""Where a training begins: at the base, or at the adapter of the model that is champion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.llm.base import Base
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.tracking import FORGOTTEN, MODEL, champion_version, open_store


@dataclass(frozen=True)
class ChampionAdapter:
    """The adapter that a training goes on from: its version, folder and manifest."""

    version: int
    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def went_on_from(self) -> str | None:
        """The fingerprint of the adapter that its own training went on from."""
        fingerprint: str | None = self.manifest["start"]["fingerprint"]
        return fingerprint


@dataclass(frozen=True)
class WarmStart:
    """The champion to go on from, None for the base; ``why`` is the sentence for log and manifest."""

    champion: ChampionAdapter | None
    why: str

    @property
    def fingerprint(self) -> str | None:
        return None if self.champion is None else self.champion.fingerprint

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        version = None if self.champion is None else self.champion.version
        return {"why": self.why, "version": version, "fingerprint": self.fingerprint}


def find_warm_start(recipe: Recipe, base: Base, lake: DataLake) -> WarmStart:
    """Where training by ``recipe`` begins now; the champion is looked up by its alias.

    Raises PipelineError when the champion has another base or another LoRA, for then its weights fit nowhere.
    """
    if recipe.start == "base":
        return WarmStart(None, "from the base, as the recipe says")
    version = champion_version(lake)
    if version is None:
        return WarmStart(None, "from the base, for there is no champion yet")
    if FORGOTTEN in open_store(lake).get_model_version(MODEL, str(version.version)).tags:
        # What goes on from it would have seen those rows too.
        return WarmStart(None, f"from the base, for champion {version.version} has seen rows that are to be forgotten")
    folder = version.folder / "adapter"
    found = ChampionAdapter(version.version, folder, read_manifest(folder, "model_version"))
    its_base, its_recipe = found.manifest["base"], read_recipe(folder / "recipe.yaml")
    differs = []
    if its_base["sha256"] != base.sha256:
        differs.append(f"its base is {its_base['name']} ({its_base['sha256']}), not {base.name} ({base.sha256})")
    if its_recipe.lora is None or recipe.lora is None:
        if its_recipe.lora != recipe.lora:
            differs.append(f"it has trained {its_recipe.method}, and this recipe trains {recipe.method}")
    else:
        for what in ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora"):
            its, wanted = getattr(its_recipe.lora, what), getattr(recipe.lora, what)
            if its != wanted:
                differs.append(f"its lora.{what} is {its}, not {wanted}")
    if "start" not in found.manifest:
        differs.append("it does not say which rows it has seen")
    if differs:
        raise PipelineError(
            f"The recipe '{recipe.name}' goes on from the champion, but it cannot from version {version.version}, made by "
            f"'{its_recipe.name}': {'; '.join(differs)}.",
            "Put 'start: base' into the recipe, or give it the base and the lora of the champion's recipe.",
        )
    return WarmStart(found, f"on from champion {version.version}, adapter {found.fingerprint}")
