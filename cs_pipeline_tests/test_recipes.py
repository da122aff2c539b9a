"""Every recipe of the project trains two real steps on a tiny model of its family, with its real tokenizer.

Only the base and the length differ from the recipe: two steps of two rows. Look-ups are built as they are.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from cs_pipeline import recipe as recipe_module
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.schema import PASSAGE
from cs_pipeline.evaluate.cascade import check_prompts
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.llm.model import load_chat_format
from cs_pipeline.llm.prompt import IGNORE_INDEX
from cs_pipeline.recipe import (
    CascadeRecipe,
    EmbeddedBase,
    FineTuneRecipe,
    HubBase,
    LookupRecipe,
    PackageBase,
    PathBase,
    load_fine_tune_recipe,
    load_recipe,
)
from cs_pipeline.retrieval.index import build_index
from cs_pipeline.retrieval.lookup import LookupModel
from cs_pipeline.retrieval.router import Router, router_folder
from cs_pipeline.train.adapter import build_lookup, seen_rows, train_adapter
from cs_pipeline.train.plan.estimate import SHAPES_FILE, config_of, estimate
from cs_pipeline.train.plan.machine_fit import BITEXT_ROWS, Machine, required_memory, training_hours
from cs_pipeline.train.rows import training_rows
from cs_pipeline_tests.support.tiny import tiny_base
from cs_pipeline_tests.train import company_rows, write_split

FOLDER = Path(recipe_module.__file__).parent / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
METHODS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).get("method", "training") for name in NAMES}
TRAINED = [name for name in NAMES if METHODS[name] == "training"]
LOOKUPS = [name for name in NAMES if METHODS[name] == "lookup"]
CASCADES = [name for name in NAMES if METHODS[name] == "cascade"]

PUBLISHED: dict[str, dict[str, Any]] = yaml.safe_load(SHAPES_FILE.read_text())

pytestmark = pytest.mark.filterwarnings(
    # On a CPU, bitsandbytes replaces paged AdamW by its plain one.
    "ignore:Paged optimizers are not supported on CPU:UserWarning"
)

FAMILIES = {
    "google-t5/t5-small": "t5",
    "google/flan-t5-small": "t5",
    "microsoft/phi-2": "phi2",
    "microsoft/Phi-3-mini-4k-instruct": "phi3",
    "microsoft/Phi-4-mini-instruct": "phi4",
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral",
    "meta-llama/Llama-2-7b-chat-hf": "llama2",
    "meta-llama/Llama-3.2-3B-Instruct": "llama3",
    "meta-llama/Llama-3.2-1B-Instruct": "llama3",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "tinyllama",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "smollm2",
    "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen3-1.7B": "qwen3",
    "EleutherAI/gpt-j-6b": "gptj",
}
"""The tiny model that replaces a base."""

ALWAYS = {"manifest.json", "metrics.json", "recipe.yaml", "rows.parquet", "tokenizer_config.json"}
TOKENIZER = {
    *("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja"),
}


@dataclass(frozen=True)
class Trained:
    """The result of a recipe: the adapter's folder, the base's folder, and the hashes of its files before training."""

    recipe: FineTuneRecipe
    folder: Path
    base: Path
    before: dict[str, str]
    lake: DataLake


@pytest.fixture(scope="module")
def small_lake(tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """Twelve training rows and four validation rows with placeholders, line breaks and an intent each."""
    lake = DataLake(tmp_path_factory.mktemp("recipes") / "lake")
    texts = sample_rows(400).drop_duplicates("intent").head(16)
    rows: list[dict[str, Any]] = [
        {**row, "source": "bitext", "context": None, "subject_id": None, "instruction": question, "response": answer}
        for row, question, answer in zip(company_rows(16), texts["instruction"], texts["response"], strict=True)
    ]
    write_split(lake, "train", rows[:12])
    write_split(lake, "validation", rows[12:])
    lake.write("prepare", "knowledge_base", PASSAGE.empty_table(), PASSAGE)
    build_index(lake)
    questions = [row["instruction"] for row in rows]
    router = Router.fit(questions, texts["intent"].tolist(), [row["row_id"] for row in rows])
    router.save(router_folder(lake))
    return lake


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model of a family, created once."""
    folder = tmp_path_factory.mktemp("bases")
    return cache(lambda family: tiny_base(folder / family, family))


@pytest.fixture(params=TRAINED)
def trained(request: pytest.FixtureRequest, small_lake: DataLake, bases: Any) -> Trained:
    recipe = load_fine_tune_recipe(request.param)
    family = FAMILIES.get(str(repository(recipe)), "embedded")
    base = bases(family)
    short = {
        "max_steps": 2,
        "num_train_epochs": None,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
    }
    recipe = recipe.model_copy(
        update={
            "base": PathBase(source="path", path=base),
            "trainer": recipe.trainer.model_copy(update=short),
        }
    )
    before = hashes(base)
    adapter = train_adapter(recipe, small_lake, lambda line: None)
    return Trained(recipe, adapter.folder, base, before, small_lake)


def repository(recipe: FineTuneRecipe) -> str | None:
    """The hub's repository of the recipe's base, quantised or not; None for the embedded base."""
    match recipe.base:
        case HubBase(repo=repo) | PackageBase(quantised_from=repo):
            return repo
    return None


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def test_a_recipe_trains(trained: Trained) -> None:
    assert hashes(trained.base) == trained.before
    names = {path.name for path in trained.folder.iterdir()}
    all_weights = trained.recipe.lora is None
    own = (
        {"model.safetensors", "config.json", "generation_config.json"}
        if all_weights
        else {"adapter_model.safetensors", "adapter_config.json"}
    )
    own |= {"router"} if trained.recipe.prompt.route == "intent" else set()
    assert names - TOKENIZER == ALWAYS | own
    assert_weights_moved(trained)
    assert_labels_are_answer_and_stop_token(trained)
    manifest = read_manifest(trained.folder, "adapter")
    assert manifest["recipe"] == trained.recipe.name
    assert json.loads((trained.folder / "metrics.json").read_text())["steps"] == 2
    assert ("out_of_scope" in manifest["data"]) == bool(trained.recipe.mixture.out_of_scope)
    assert ("retrieval_index" in manifest["data"]) == (trained.recipe.prompt.retrieve is not None)


def assert_weights_moved(trained: Trained) -> None:
    if trained.recipe.lora is None:
        after, before = load_file(trained.folder / "model.safetensors"), load_file(trained.base / "model.safetensors")
        assert after.keys() == before.keys()
        assert any(not after[name].equal(before[name]) for name in after)
    else:
        adapter = load_file(trained.folder / "adapter_model.safetensors")
        last = {name: weight for name, weight in adapter.items() if ".lora_B." in name}
        assert last  # these are initially zero
        assert all(bool(weight.abs().sum() > 0) for weight in last.values())


def assert_labels_are_answer_and_stop_token(trained: Trained) -> None:
    chat = load_chat_format(trained.recipe, trained.base, trained.folder)
    for example in training_rows(trained.recipe, trained.lake, chat, "train").examples:
        answer = [label for label in example.labels if label != IGNORE_INDEX]
        assert answer[-1] == chat.stop_id
        assert chat.stop_id not in answer[:-1]


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_lookup_is_built_without_a_model(name: str, small_lake: DataLake) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, LookupRecipe)
    adapter = build_lookup(recipe, small_lake)
    assert {path.name for path in adapter.folder.iterdir()} == ALWAYS - {"tokenizer_config.json"} | {"lookup.json"}
    assert adapter.is_lookup
    assert "retrieval_index" in adapter.manifest["data"]
    assert seen_rows(adapter.folder).num_rows == 0
    assert 0 <= LookupModel.load(recipe, adapter.folder).min_similarity <= 1
    assert (adapter.metrics["rows"], adapter.metrics["validation_questions"]) == (12, 4)


@pytest.mark.parametrize("name", CASCADES)
def test_a_cascade_has_a_model_that_reads_the_same_texts(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, CascadeRecipe)
    assert recipe.model in TRAINED
    check_prompts(recipe, load_fine_tune_recipe(recipe.model))
    assert recipe.model in recipe.description, "it says what is trained first"


def test_every_hub_base_has_a_tiny_model_and_one_definition() -> None:
    recipes = [load_fine_tune_recipe(name) for name in TRAINED]
    hubs = {recipe.base.repo: recipe.base for recipe in recipes if isinstance(recipe.base, HubBase)}
    assert hubs.keys() == FAMILIES.keys()
    assert {repo for repo, base in hubs.items() if base.gated} == {
        repo for repo in hubs if repo.startswith("meta-llama/")
    }
    assert all(base == hubs[base.repo] for base in (r.base for r in recipes) if isinstance(base, HubBase))


@pytest.mark.parametrize("name", TRAINED)
def test_a_description_says_what_is_published_and_what_is_our_own(name: str) -> None:
    recipe = load_fine_tune_recipe(name)
    if name.endswith("_fast"):
        assert "Differs from the published settings" in recipe.description
        assert load_fine_tune_recipe(published(name)).base == recipe.base
    elif not isinstance(recipe.base, EmbeddedBase):
        assert "published" in recipe.description or "Our own settings" in recipe.description


def published(fast: str) -> str:
    """The recipe with published settings from which the fast recipe ``fast`` is derived."""
    name = fast.removesuffix("_fast")
    return name if name in NAMES else f"{name}_config1"


# The page


GPU = Machine("a GPU", "cuda", 80e9, 2, 120e12)
"""The machine of the page's table; memory and disk do not affect the estimates."""
PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


def row(name: str) -> str:
    """The recipe's row in the table: its YAML keys, and the estimates."""
    if name in CASCADES:
        return f"| `{name}` | that of its model | | | {load_recipe(name).training_method} | as its model | |"
    if name not in TRAINED:
        return f"| `{name}` | none | | | {load_recipe(name).training_method} | any machine | |"
    recipe = load_fine_tune_recipe(name)
    if isinstance(recipe.base, EmbeddedBase):
        return f"| `{name}` | embedded | | | {recipe.training_method} | any machine | |"
    if isinstance(recipe.base, HubBase):
        base = shape = recipe.base.repo
        licence = f"{recipe.base.licence}{', gated' if recipe.base.gated else ''}"
    else:
        assert isinstance(recipe.base, PackageBase)
        shape = f"{recipe.base.package}=={recipe.base.version}"
        base, licence = f"{recipe.base.quantised_from} from the package {recipe.base.package}", recipe.base.licence
    config = config_of(recipe.base)
    assert config is not None
    needs = estimate(recipe, config, GPU.compute, GPU.kind)
    hours = training_hours(recipe, BITEXT_ROWS, needs, GPU.rate)
    time = f"{hours * 60:.0f} min" if hours < 1.5 else f"{hours:.1f} h"
    size = PUBLISHED[shape]["weights"] / 1e9
    return (
        f"| `{name}` | {base} | {licence} | {size:.1f} GB | {recipe.training_method} "
        f"| {required_memory(needs, GPU) / 1e9:.1f} GB | {time} |"
    )


def test_the_page_lists_every_recipe_with_its_estimates() -> None:
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert shown == [row(name) for name in NAMES]
