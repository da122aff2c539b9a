"""Decides which weights training starts from: the base, or the champion's adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.llm.base import Base
from cs_pipeline.recipe import FineTuneRecipe, read_recipe
from cs_pipeline.tracking import FORGOTTEN, MODEL, champion_version, open_store


@dataclass(frozen=True)
class ChampionAdapter:
    """The champion's adapter: its model version, folder and manifest."""

    version: int
    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def parent(self) -> str | None:
        """The fingerprint of the adapter that this adapter was warm-started from, if any."""
        fingerprint: str | None = self.manifest["start"]["fingerprint"]
        return fingerprint


@dataclass(frozen=True)
class TrainingStart:
    """Where training starts: from ``champion``, or from the base if it is None. ``why`` is for log and manifest."""

    champion: ChampionAdapter | None
    why: str

    @property
    def fingerprint(self) -> str | None:
        return None if self.champion is None else self.champion.fingerprint

    def facts(self) -> dict[str, Any]:
        """The entry in the adapter's manifest."""
        version = None if self.champion is None else self.champion.version
        return {"why": self.why, "version": version, "fingerprint": self.fingerprint}


def find_training_start(recipe: FineTuneRecipe, base: Base, lake: DataLake) -> TrainingStart:
    """Decides whether training of ``recipe`` starts from ``base`` or from the current champion.

    Raises PipelineError if it should start from the champion, but the champion's base or LoRA settings differ from the
    recipe's, so that its weights would not fit.
    """
    if recipe.start == "base":
        return TrainingStart(None, "from the base, as the recipe says")
    version = champion_version(lake)
    if version is None:
        return TrainingStart(None, "from the base, because there is no champion yet")
    if FORGOTTEN in open_store(lake).get_model_version(MODEL, str(version.version)).tags:
        # An adapter that continued from this champion would also have seen the rows that must be forgotten.
        return TrainingStart(
            None, f"from the base, because champion {version.version} has seen rows that must be forgotten"
        )
    folder = version.folder / "adapter"
    champion = ChampionAdapter(version.version, folder, read_manifest(folder, "model_version"))
    its_base, its_recipe = champion.manifest["base"], read_recipe(folder / "recipe.yaml")
    if not isinstance(its_recipe, FineTuneRecipe):
        return TrainingStart(
            None, f"from the base, because champion {version.version} is a {its_recipe.training_method}"
        )
    differences = []
    if its_base["sha256"] != base.sha256:
        differences.append(f"its base is {its_base['name']} ({its_base['sha256']}), not {base.name} ({base.sha256})")
    if its_recipe.lora is None or recipe.lora is None:
        if its_recipe.lora != recipe.lora:
            differences.append(
                f"it was trained with {its_recipe.training_method}, and this recipe trains {recipe.training_method}"
            )
    else:
        for key in ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora"):
            its, wanted = getattr(its_recipe.lora, key), getattr(recipe.lora, key)
            if its != wanted:
                differences.append(f"its lora.{key} is {its}, not {wanted}")
    if "start" not in champion.manifest:
        differences.append("it does not record which rows it has seen")
    if differences:
        raise PipelineError(
            f"The recipe '{recipe.name}' starts from the champion, but version {version.version}, made with the recipe "
            f"'{its_recipe.name}', does not fit: {'; '.join(differences)}.",
            "Set 'start: base' in the recipe, or give it the base and the lora of the champion's recipe.",
        )
    return TrainingStart(champion, f"from champion {version.version}, adapter {champion.fingerprint}")
