"""A training of two seconds with everything that an interruption could affect: dropout, epochs, uneven steps."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.recipe import FineTuneRecipe, load_fine_tune_recipe
from cs_pipeline.train.finetune import fine_tune
from cs_pipeline_tests.support.tiny import tiny_base
from cs_pipeline_tests.train import company_rows, write_split

RECIPE: dict[str, Any] = {
    "description": "45 rows in steps of eight for two epochs: the last step of an epoch has five rows.",
    "quantization": "none",
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "trainer": {
        "num_train_epochs": 2,
        "learning_rate": 0.02,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_length": 84,  # training rows have 60 tokens, validation rows 81
    },
    "generation": {"max_new_tokens": 8},
}
STEPS = 12
OTHER_ANSWER = "Why would we send you a bill of 12.50 EUR, Madam? Please pay by card within a fortnight."
"""The answer of the validation rows: it gets less probable as the model memorizes the training answers."""


@dataclass(frozen=True)
class Outcome:
    """The result of a training. Equality ignores what depends on the clock."""

    weights: str
    figures: dict[str, Any]
    metrics: dict[int, dict[str, float]]
    lines: list[str]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and (self.weights, self.equal_figures, self.metrics) == (
            other.weights,
            other.equal_figures,
            other.metrics,
        )

    @property
    def equal_figures(self) -> dict[str, Any]:
        names = (
            "steps",
            "epochs",
            "best_step",
            "validation_loss",
            "validation_loss_before",
            "loss",
            "real_token_share",
        )
        return {name: self.figures[name] for name in names}


@dataclass
class SmallTraining:
    """A lake with rows, and a base for it."""

    lake: DataLake
    base: Path

    @classmethod
    def create(cls, folder: Path) -> "SmallTraining":
        lake = DataLake(folder / "lake")
        write_split(lake, "train", company_rows(45, context=None))
        validation = company_rows(12, context=None, split="validation")
        write_split(lake, "validation", [{**row, "response": OTHER_ANSWER} for row in validation])
        return cls(lake, tiny_base(folder / "base", "embedded"))

    def recipe(self, **trainer: Any) -> FineTuneRecipe:
        content = self.yaml(**trainer)
        return FineTuneRecipe.model_validate({"name": "little", **content})

    def yaml(self, **trainer: Any) -> dict[str, Any]:
        content = copy.deepcopy(RECIPE)
        content["base"] = {"source": "path", "path": str(self.base)}
        content["trainer"].update(trainer)
        return content

    def train(self, recipe: FineTuneRecipe, work: Path) -> Outcome:
        """Trains in this process. ``metrics`` are those passed on; a later value of a step replaces an earlier one."""
        work.mkdir(parents=True, exist_ok=True)
        folder = work.with_name(work.name + ".out")
        folder.mkdir(exist_ok=True)
        metrics: dict[int, dict[str, float]] = {}
        lines: list[str] = []

        def on_metrics(step: int, measured: dict[str, float]) -> None:
            metrics.setdefault(step, {}).update(measured)

        figures, _ = fine_tune(recipe, self.lake, self.base, None, folder, work, lines.append, on_metrics)
        return Outcome(file_sha256(folder / "adapter_model.safetensors"), figures, metrics, lines)


def write_recipe(folder: Path, name: str, content: dict[str, Any]) -> FineTuneRecipe:
    """Writes a recipe into ``folder``, which must be CS_RECIPES, and loads it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return load_fine_tune_recipe(name)
