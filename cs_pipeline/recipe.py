"""A recipe: one YAML file, one run, one partition in Dagster.

The files lie in ``cs_pipeline/recipes/`` or in the folder that ``CS_RECIPES`` names; a recipe's name is its file's name.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import digest
from cs_pipeline.placeholders import PlaceholderMode
from cs_pipeline.yaml_file import key_errors, read_yaml


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EmbeddedBase(_Part):
    """A very small Llama trained from scratch on the training split; it proves the pipeline and needs no network."""

    source: Literal["embedded"]
    width: int = Field(128, ge=16, multiple_of=16)
    layers: int = Field(3, ge=1)
    vocabulary: int = Field(2048, ge=300)
    steps: int = Field(950, ge=1)
    blocks: int = Field(8, ge=1, description="blocks per step")
    block_tokens: int = Field(128, ge=16)
    learning_rate: float = Field(6e-3, gt=0)
    seed: int = 0


class HubBase(_Part):
    """A model of the Hugging Face hub at a pinned revision."""

    source: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    licence: str


class PathBase(_Part):
    """A model in a local folder, as ``save_pretrained`` writes it."""

    source: Literal["path"]
    path: Path


class Lora(_Part):
    """Low-rank adapters on the named linear layers (LoRA, arXiv 2106.09685)."""

    r: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"


class Prompt(_Part):
    """What stands around the customer's question."""

    system: str = ""
    route: Literal["none", "intent"] = Field(
        "none", description="intent: the classifier's intent joins the system line"
    )


class Mixture(_Part):
    """How rows of the two sources are mixed for training."""

    company_weight: float = Field(
        1.0, ge=0, description="how often a company row stands in it; 2.5: each twice, half of them once more"
    )


class Trainer(_Part):
    """How long, how fast and in which batches the adapter is trained."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1, description="rows per micro-batch")
    accumulation: int = Field(1, ge=1, description="micro-batches per optimizer step")
    max_length: int = Field(ge=16, description="tokens of prompt and answer; longer rows are dropped and counted")
    warmup_share: float = Field(0.03, ge=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    gradient_checkpointing: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _one_length(self) -> "Trainer":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and not both")
        return self


class Generation(_Part):
    """How answers are written. Decoding is greedy, so that they repeat."""

    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(32, ge=1, description="questions answered at once")


class Recipe(_Part):
    """One run."""

    name: str
    description: str
    base: Annotated[EmbeddedBase | HubBase | PathBase, Field(discriminator="source")]
    quantisation: Literal["none", "nf4"] = Field(
        description="nf4: 4-bit NormalFloat, double quantisation (arXiv 2305.14314)"
    )
    lora: Lora
    prompt: Prompt = Prompt()
    placeholders: PlaceholderMode = PlaceholderMode.KEEP
    train_rows: int | None = Field(None, ge=1, description="rows of the mixture to use, drawn with the seed; null: all")
    mixture: Mixture = Mixture()
    start: Literal["base", "champion"] = Field(
        "base", description="champion: training goes on from the champion's adapter; its base and lora must be these"
    )
    trainer: Trainer
    generation: Generation

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> "Recipe":
        if self.generation.max_new_tokens >= self.trainer.max_length and self.base.source == "embedded":
            raise ValueError(
                "generation.max_new_tokens must be below trainer.max_length: the model never saw longer text"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that changes the run; the description does not."""
        return digest(self.model_dump(mode="json", exclude={"description"}))


def recipes_folder() -> Path:
    """``CS_RECIPES``, else the package's own recipes."""
    return Path(os.environ.get("CS_RECIPES") or Path(__file__).parent / "recipes")


def recipe_names() -> list[str]:
    """The names of all recipes, sorted; loading none of them."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe ``name``. Raises PipelineError naming the file and the key for anything that is wrong with it."""
    path = recipes_folder() / f"{name}.yaml"
    if name not in recipe_names():
        raise PipelineError(
            f"There is no recipe '{name}' in {recipes_folder()}.",
            f"Choose one of: {', '.join(recipe_names()) or 'none'}.",
        )
    return _parsed(path, {"name": name})


def read_recipe(path: Path) -> Recipe:
    """The recipe that a training has written beside its adapter, its name inside. Raises PipelineError likewise."""
    return _parsed(path, {})


def _parsed(path: Path, known: dict[str, Any]) -> Recipe:
    content = read_yaml(path)
    if known.keys() & content.keys():
        raise PipelineError(f"{path}: 'name' is no key of a recipe; it is called as its file is.", "Take the key out.")
    try:
        return Recipe.model_validate(known | content)
    except ValidationError as error:
        raise PipelineError(
            f"{path}: {key_errors(error, 'a recipe')}.",
            "Mend these keys; every key and its meaning stands in cs_pipeline/recipe.py.",
        ) from None
