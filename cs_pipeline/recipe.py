"""A recipe: one YAML file, one run, one partition in Dagster.

The files lie in ``cs_pipeline/recipes/`` or in the folder that ``CS_RECIPES`` names; a recipe's name is its file's name.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest
from cs_pipeline.core.yaml_file import key_errors, read_yaml
from cs_pipeline.text.placeholders import PlaceholderMode


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EmbeddedBase(_Part):
    """A very small Llama trained from scratch on the training split; it proves the pipeline and needs no network."""

    source: Literal["embedded"]
    hidden_size: int = Field(128, ge=16, multiple_of=16)
    num_hidden_layers: int = Field(3, ge=1)
    vocab_size: int = Field(2048, ge=300)
    max_steps: int = Field(950, ge=1)
    per_device_train_batch_size: int = Field(8, ge=1, description="blocks per step")
    block_size: int = Field(128, ge=16, description="tokens per block")
    learning_rate: float = Field(6e-3, gt=0)
    known_answers: int = Field(
        0,
        ge=0,
        description="such before each question, as prompt.retrieve.answers says it; blocks are whole examples then",
    )
    without_intents: tuple[str, ...] = Field((), description="rows of these are left out, as held_out_intents says it")
    seed: int = 0

    @model_validator(mode="after")
    def _can_copy(self) -> "EmbeddedBase":
        if self.known_answers and (self.num_hidden_layers < 2 or self.hidden_size < 64 or self.hidden_size % 32):
            raise ValueError(
                "a base that reads known answers needs num_hidden_layers: 2 or more and hidden_size: 64, 96, 128 …"
            )
        return self


class HubBase(_Part):
    """A model of the Hugging Face hub at a pinned revision."""

    source: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    licence: str
    gated: bool = Field(False, description="the hub gives it to accounts alone that have accepted its licence")


class PathBase(_Part):
    """A model in a local folder, as ``save_pretrained`` writes it."""

    source: Literal["path"]
    path: Path


class Lora(_Part):
    """Low-rank adapters on the named linear layers (LoRA, arXiv 2106.09685)."""

    r: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear", "attention"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear",
        description="attention: the projections of query, key, value and output, as this family calls them",
    )
    use_dora: bool = Field(False, description="magnitude and direction apart (DoRA, arXiv 2402.09353)")
    use_rslora: bool = Field(
        False, description="scaled by lora_alpha / sqrt(r) instead of lora_alpha / r (rsLoRA, arXiv 2312.03732)"
    )


TEMPLATES = Path(__file__).parent / "llm" / "templates"
"""The chat templates of this project, each a file with its version in its name; one that was used is never changed."""


class Retrieve(_Part):
    """How many of the usual known answers, and of the nearest passages of the articles, stand before the question."""

    answers: int = Field(ge=0, le=8)
    passages: int = Field(ge=0, le=8)

    @model_validator(mode="after")
    def _something(self) -> "Retrieve":
        if not self.answers + self.passages:
            raise ValueError("nothing is retrieved: leave retrieve out, or ask for an answer or a passage")
        return self


class Prompt(_Part):
    """What stands around the customer's question."""

    template: str = Field("model", description="model: the base's own chat template; else a file of llm/templates/")
    system: str = ""
    route: Literal["none", "intent"] = Field(
        "none", description="intent: the classifier's intent joins the system line"
    )
    retrieve: Retrieve | None = Field(None, description="what the retrieval index gives; null: nothing")

    @model_validator(mode="after")
    def _template_is_there(self) -> "Prompt":
        ours = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
        if self.template not in ("model", *ours):
            raise ValueError(f"there is no template '{self.template}': choose model, {', '.join(ours)}")
        return self

    def template_text(self) -> str | None:
        """The Jinja source of the template, None where it is the base's own."""
        return None if self.template == "model" else (TEMPLATES / f"{self.template}.jinja").read_text()


class Mixture(_Part):
    """How rows of the two sources are mixed for training."""

    company_weight: float = Field(
        1.0, ge=0, description="how often a company row stands in it; 2.5: each twice, half of them once more"
    )
    validation: bool = Field(
        False, description="the validation split is trained on too, but for the rows on which the loss is taken"
    )
    out_of_scope: int = Field(
        0, ge=0, description="how often each question of train/out_of_scope.yaml stands in it: asked of the wrong desk"
    )
    retold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the rows that answer with the known answer before their question instead of their own",
    )


class Trainer(_Part):
    """How long, how fast and in which batches the adapter is trained."""

    max_steps: int | None = Field(None, ge=1)
    num_train_epochs: float | None = Field(None, gt=0)
    learning_rate: float = Field(gt=0)
    per_device_train_batch_size: int = Field(ge=1, description="rows per micro-batch")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches per optimizer step")
    max_length: int = Field(ge=16, description="tokens of prompt and answer; longer rows are dropped and counted")
    warmup_steps: float = Field(0.03, ge=0, description="below 1: a share of all steps")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    optim: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    gradient_checkpointing: bool = Field(
        False, description="less memory, and the forward pass computed twice: where it does not fit otherwise"
    )
    packing: bool = Field(
        True, description="a micro-batch's rows in one sequence without padding, where FlashAttention is; else padded"
    )
    evaluations: int = Field(
        1,
        ge=1,
        description="how often the validation loss is taken, evenly over the run; the weights of the lowest are kept",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="end the run after so many evaluations without a lower validation loss; null: never"
    )
    checkpoint_seconds: float = Field(60, ge=0, description="so much training is lost at most when it is killed")
    seed: int = 0

    @model_validator(mode="after")
    def _one_length(self) -> "Trainer":
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give either max_steps or num_train_epochs, and not both")
        if self.early_stopping_patience is not None and self.early_stopping_patience >= self.evaluations:
            raise ValueError("early_stopping_patience must be below evaluations, else it can never stop the run")
        return self


class Generation(_Part):
    """How answers are written. Decoding is greedy, so that they repeat."""

    max_new_tokens: int = Field(ge=1)
    per_device_eval_batch_size: int = Field(32, ge=1, description="questions answered at once")


class Recipe(_Part):
    """One run."""

    name: str
    description: str
    base: Annotated[EmbeddedBase | HubBase | PathBase, Field(discriminator="source")]
    quantization: Literal["none", "nf4"] = Field(
        description="nf4: 4-bit NormalFloat, double quantisation (arXiv 2305.14314)"
    )
    lora: Lora | None = Field(description="null: all weights are trained")
    prompt: Prompt = Prompt()
    placeholders: PlaceholderMode = PlaceholderMode.KEEP
    train_rows: int | None = Field(None, ge=1, description="rows of the mixture to use, drawn with the seed; null: all")
    mixture: Mixture = Mixture()
    held_out_intents: tuple[str, ...] = Field(
        (), description="no row of these is trained on; the evaluation tells how they are answered all the same"
    )
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

    @model_validator(mode="after")
    def _an_intent_for_every_row(self) -> "Recipe":
        if self.mixture.out_of_scope and self.prompt.route == "intent":
            raise ValueError(
                "mixture.out_of_scope and prompt.route: intent exclude one another: such rows have no intent"
            )
        return self

    @model_validator(mode="after")
    def _held_out_of_both(self) -> "Recipe":
        if self.base.source == "embedded" and set(self.base.without_intents) != set(self.held_out_intents):
            raise ValueError(
                "base.without_intents and held_out_intents must name the same: the embedded base is trained here too"
            )
        return self

    @model_validator(mode="after")
    def _base_reads_what_is_retrieved(self) -> "Recipe":
        answers = self.prompt.retrieve.answers if self.prompt.retrieve else 0
        if self.base.source == "embedded" and self.base.known_answers != answers:
            raise ValueError(
                "base.known_answers and prompt.retrieve.answers must be equal: the embedded base learns here to read them"
            )
        return self

    @model_validator(mode="after")
    def _something_to_retell(self) -> "Recipe":
        if self.mixture.retold and not (self.prompt.retrieve and self.prompt.retrieve.answers):
            raise ValueError("mixture.retold needs known answers: put prompt.retrieve with answers: 1 or more")
        return self

    @model_validator(mode="after")
    def _nothing_of_what_is_held_out(self) -> "Recipe":
        if self.held_out_intents and self.prompt.retrieve:
            raise ValueError(
                "held_out_intents and prompt.retrieve exclude one another: the index holds the answers of every intent"
            )
        return self

    @model_validator(mode="after")
    def _four_bits_stay(self) -> "Recipe":
        if self.lora is None and self.quantization != "none":
            raise ValueError("lora: null trains all weights, and those in nf4 cannot be: put quantization: none")
        return self

    @property
    def method(self) -> str:
        """What is trained, in the field's words: all weights, LoRA, QLoRA, QDoRA, rsLoRA …"""
        if self.lora is None:
            return "all weights"
        scaled = "rs" if self.lora.use_rslora else ""
        return f"{'Q' if self.quantization == 'nf4' else ''}{scaled}{'DoRA' if self.lora.use_dora else 'LoRA'}"

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything that changes the run; not how it is described, how often saved, or how padded."""
        left_out: Any = {"description": True, "trainer": {"checkpoint_seconds", "packing"}}
        return digest(self.model_dump(mode="json", exclude=left_out))


RENAMED_KEYS = {
    "quantisation": "quantization",
    "base.width": "hidden_size",
    "base.layers": "num_hidden_layers",
    "base.vocabulary": "vocab_size",
    "base.steps": "max_steps",
    "base.blocks": "per_device_train_batch_size",
    "base.block_tokens": "block_size",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.dora": "use_dora",
    "lora.rslora": "use_rslora",
    "trainer.steps": "max_steps",
    "trainer.epochs": "num_train_epochs",
    "trainer.batch_size": "per_device_train_batch_size",
    "trainer.accumulation": "gradient_accumulation_steps",
    "trainer.warmup_share": "warmup_steps",
    "trainer.scheduler": "lr_scheduler_type",
    "trainer.optimizer": "optim",
    "trainer.patience": "early_stopping_patience",
    "generation.batch_size": "per_device_eval_batch_size",
}
"""Keys of earlier releases, as section.key, and what they are called now: as transformers and PEFT call them."""


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
    content = read_yaml(path)
    if "name" in content:
        raise PipelineError(f"{path}: 'name' is not a key of a recipe; the file's name is its name.", "Remove the key.")
    if old := [f"{key} is called {RENAMED_KEYS[key]} now" for key, _ in _renamed_keys(content)]:
        raise PipelineError(f"{path}: {'; '.join(old)}.", "Rename these keys; their values stay.")
    return _validated(path, {"name": name} | content)


def read_recipe(path: Path) -> Recipe:
    """The recipe that a training wrote beside its adapter, in this release or an earlier one.

    Raises PipelineError naming the file and the key for anything that is wrong with it.
    """
    content = read_yaml(path)
    for key, section in list(_renamed_keys(content)):
        section[RENAMED_KEYS[key]] = section.pop(key.rpartition(".")[2])
    return _validated(path, content)


def _renamed_keys(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys of RENAMED_KEYS that ``content`` uses, each with the section that holds it."""
    for key in RENAMED_KEYS:
        name, _, old = key.rpartition(".")
        section = content.get(name) if name else content
        if isinstance(section, dict) and old in section:
            yield key, section


def _validated(path: Path, content: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise PipelineError(
            f"{path}: {key_errors(error, 'a recipe')}.",
            "Fix these keys; cs_pipeline/recipe.py explains every key.",
        ) from None
