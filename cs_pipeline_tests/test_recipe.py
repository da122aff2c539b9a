from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.recipe import (
    RENAMED_KEYS,
    EmbeddedBase,
    FineTuneRecipe,
    HubBase,
    LookupRecipe,
    PackageBase,
    PathBase,
    Recipe,
    load_fine_tune_recipe,
    load_recipe,
    read_fine_tune_recipe,
    read_recipe,
    recipe_names,
    recipes_folder,
)
from cs_pipeline_tests.conftest import RECIPES

OWN = Path(__file__).parents[1] / "cs_pipeline" / "recipes"
FILES = sorted([*OWN.glob("*.yaml"), *RECIPES.glob("*.yaml")])
METHODS: dict[Path, str] = {file: yaml.safe_load(file.read_text()).get("method", "training") for file in FILES}
TRAINED = [file for file, method in METHODS.items() if method == "training"]
EMBEDDED: dict[str, Any] = yaml.safe_load((OWN / "embedded.yaml").read_text())

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty recipes folder."""
    path = tmp_path / "recipes"
    path.mkdir()
    monkeypatch.setenv("CS_RECIPES", str(path))
    return path


def changed(change: Change) -> str:
    content = deepcopy(EMBEDDED)
    change(content)
    return yaml.safe_dump(content)


def hub(content: dict[str, Any]) -> dict[str, Any]:
    content["base"] = {"source": "hub", "repo": "a/b", "revision": "0" * 40, "licence": "MIT"}
    return content


def package(content: dict[str, Any]) -> dict[str, Any]:
    content["base"] = {
        "source": "package",
        "package": "some-model",
        "version": "1.0",
        "wheel_sha256": "0" * 64,
        "file": "some_model/model.gguf",
        "file_sha256": "0" * 64,
        "licence": "MIT",
        "quantised_from": "a/b",
    }
    return content


# Every recipe


def test_the_recipes_of_the_project_are_found() -> None:
    assert recipes_folder() == OWN
    assert recipe_names() == sorted(path.stem for path in OWN.glob("*.yaml"))
    assert {"embedded", "smoke", "lookup"} <= set(recipe_names())
    assert {file.stem for file, method in METHODS.items() if method == "lookup"} == {"lookup", "tiny_lookup"}


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_recipe_loads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS_RECIPES", str(file.parent))
    recipe = load_recipe(file.stem)
    assert recipe.name == file.stem
    assert isinstance(recipe, LookupRecipe) == (METHODS[file] == "lookup")
    assert isinstance(recipe, FineTuneRecipe) == (file in TRAINED)
    if isinstance(recipe, FineTuneRecipe):
        assert isinstance(recipe.base, EmbeddedBase | HubBase | PackageBase | PathBase)
        assert recipe == load_fine_tune_recipe(file.stem)
    assert recipe.description.strip()
    assert len(recipe.fingerprint) == 16


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_written_recipe_is_read_back(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CS_RECIPES", str(file.parent))
    recipe = load_recipe(file.stem)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    again = read_recipe(tmp_path / "recipe.yaml")
    assert type(again) is type(recipe)
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


def test_a_folder_base_and_a_list_of_layers_are_read_back(folder: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["base"] = {"source": "path", "path": "/models/é"}
        content["lora"]["target_modules"] = ["q_proj", "v_proj"]

    (folder / "mine.yaml").write_text(changed(change))
    recipe = load_fine_tune_recipe("mine")
    assert recipe.base == PathBase(source="path", path=Path("/models/é"))
    assert recipe.lora
    assert recipe.lora.target_modules == ("q_proj", "v_proj")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert read_fine_tune_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_recipe_cannot_be_changed(folder: Path) -> None:
    recipe = load_recipe_of(folder, lambda content: None)
    for part, name in ((recipe, "quantization"), (recipe.trainer, "max_steps"), (recipe.base, "hidden_size")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, name, 1)


# Errors in a recipe


def load_recipe_of(folder: Path, change: Change) -> FineTuneRecipe:
    (folder / "mine.yaml").write_text(changed(change))
    return load_fine_tune_recipe("mine")


@pytest.mark.parametrize(
    ("change", "complaints"),
    [
        (lambda c: c.update(quantized="nf4"), ["'quantized' is not a key of a recipe"]),
        (lambda c: c["trainer"].update({"learning rate": 1}), ["'trainer.learning rate' is not a key of a recipe"]),
        (lambda c: c["base"].update(depth=3), ["'base.depth' is not a key of a recipe"]),
        (lambda c: hub(c)["base"].update(path="x"), ["'base.path' is not a key of a recipe"]),
        (lambda c: c.update(name="other"), ["'name' is not a key of a recipe"]),
        (lambda c: c.update(name="mine"), ["'name' is not a key of a recipe"]),
        (lambda c: c.update({1: 2}), ["'1' keys should be strings"]),
        (lambda c: c.pop("description"), ["'description' is missing"]),
        (lambda c: c.pop("base"), ["'base' is missing"]),
        (lambda c: c.update(base={}), ["'base.source' is missing"]),
        (lambda c: c.update(base={"source": "path"}), ["'base.path' is missing"]),
        (lambda c: hub(c)["base"].pop("revision"), ["'base.revision' is missing"]),
        (lambda c: c["lora"].pop("r"), ["'lora.r' is missing"]),
        (lambda c: c["trainer"].pop("max_length"), ["'trainer.max_length' is missing"]),
        (lambda c: c["base"].update(source="web"), ["'base'", "'web'", "'embedded', 'hub', 'package', 'path'"]),
        (lambda c: hub(c)["base"].update(revision="main"), ["'base.revision'", "[0-9a-f]{40}"]),
        (lambda c: package(c)["base"].pop("wheel_sha256"), ["'base.wheel_sha256' is missing"]),
        (lambda c: package(c)["base"].update(file="../model.gguf"), ["'base.file'", "gguf"]),
        (lambda c: package(c)["base"].update(file="/model.gguf"), ["'base.file'", "gguf"]),
        (lambda c: hub(c)["base"].update(repo="https://huggingface.co/a/b"), ["'base.repo'"]),
        (lambda c: c["trainer"].update(num_train_epochs=1), ["'trainer' give either max_steps or num_train_epochs"]),
        (lambda c: c["trainer"].pop("max_steps"), ["'trainer' give either max_steps or num_train_epochs"]),
        (lambda c: c["trainer"].update(max_steps=0), ["'trainer.max_steps'", "greater than or equal to 1"]),
        (lambda c: c["trainer"].update(max_steps="many"), ["'trainer.max_steps'", "valid integer"]),
        (lambda c: c["trainer"].update(max_steps=[1]), ["'trainer.max_steps'", "valid integer"]),
        (lambda c: c["trainer"].update(learning_rate=float("inf")), ["'trainer.learning_rate'", "finite"]),
        (lambda c: c["trainer"].update(learning_rate=float("nan")), ["'trainer.learning_rate'", "finite"]),
        (lambda c: c["trainer"].update(learning_rate=-1), ["'trainer.learning_rate'", "greater than 0"]),
        (lambda c: c["trainer"].update(lr_scheduler_type="step"), ["'trainer.lr_scheduler_type'", "'cosine'"]),
        (lambda c: c.update(trainer=None), ["'trainer'", "dictionary"]),
        (lambda c: c.update(quantization="int8"), ["'quantization'", "'nf4'"]),
        (lambda c: c.update(placeholders="kept"), ["'placeholders'", "'keep'", "'realistic'"]),
        (lambda c: c["lora"].update(target_modules="q_proj"), ["'lora.target_modules'", "'all-linear'"]),
        (lambda c: c["lora"].update(target_modules=[]), ["'lora.target_modules'", "at least 1 item"]),
        (lambda c: c["base"].update(hidden_size=100), ["'base.hidden_size'", "multiple of 16"]),
        (
            lambda c: c["mixture"].update(company_weight=-0.5),
            ["'mixture.company_weight'", "greater than or equal to 0"],
        ),
        (lambda c: c["mixture"].update(company_weight=float("inf")), ["'mixture.company_weight'", "finite"]),
        (lambda c: c["mixture"].update(bitext_weight=2), ["'mixture.bitext_weight' is not a key of a recipe"]),
        (lambda c: c["mixture"].update(out_of_scope=1), ["mixture.out_of_scope", "prompt.route: intent"]),
        (
            lambda c: c["prompt"].update(retrieve={"answers": 0, "passages": 0}),
            ["'prompt.retrieve' nothing is retrieved"],
        ),
        (lambda c: c["prompt"].update(retrieve={"answers": 1}), ["'prompt.retrieve.passages' is missing"]),
        (lambda c: c["prompt"].update(retrieve={"answers": -1, "passages": 1}), ["'prompt.retrieve.answers'"]),
        (lambda c: c["prompt"].update(retrieve={"answers": 1, "passages": 0}), ["base.known_answers"]),
        (lambda c: c["base"].update(known_answers=1), ["base.known_answers and prompt.retrieve.answers"]),
        (
            lambda c: (
                hub(c)["prompt"].update(retrieve={"answers": 1, "passages": 0}),
                c.update(held_out_intents=["x"]),
            ),
            ["held_out_intents and prompt.retrieve"],
        ),
        (lambda c: c.update(start="challenger"), ["'start'", "'base' or 'champion'"]),
        (lambda c: c["generation"].update(max_new_tokens=512), ["generation.max_new_tokens", "trainer.max_length"]),
        (
            lambda c: (c["lora"].pop("r"), c.update(more=1), c["prompt"].update(route="maybe")),
            ["'lora.r' is missing", "'more' is not a key of a recipe", "'prompt.route'"],
        ),
    ],
)
def test_a_wrong_key_is_reported_with_file_and_key(folder: Path, change: Change, complaints: list[str]) -> None:
    with pytest.raises(PipelineError) as raised:
        load_recipe_of(folder, change)
    assert str(folder / "mine.yaml") in raised.value.what
    for complaint in complaints:
        assert complaint in raised.value.what
    assert "pydantic" not in str(raised.value)
    assert raised.value.what.count("\n") == 0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "contains no keys"),
        (b"# nothing but a comment\n", "contains no keys"),
        (b"just a sentence", "contains no keys"),
        (b"- a\n- list\n", "contains no keys"),
        (b"lora: {r: 8", "cannot be read as YAML"),
        (b"lora: {r: 8, r: 16}", "'r' appears twice"),
        (b"lora:\n\tr: 8", "line 2"),
        (b"description: \xff\xfe", "cannot be read as YAML"),
        (b"description: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_a_broken_file_is_reported(folder: Path, content: bytes, complaint: str) -> None:
    (folder / "mine.yaml").write_bytes(content)
    reads: list[Callable[[], Recipe]] = [
        lambda: load_recipe("mine"),
        lambda: load_fine_tune_recipe("mine"),
        lambda: read_recipe(folder / "mine.yaml"),
        lambda: read_fine_tune_recipe(folder / "mine.yaml"),
    ]
    for read in reads:
        with pytest.raises(PipelineError) as raised:
            read()
        assert str(folder / "mine.yaml") in raised.value.what
        assert complaint in raised.value.what


def test_a_missing_recipe_is_reported_with_the_available_ones(folder: Path) -> None:
    with pytest.raises(PipelineError, match="no recipe 'mine'") as raised:
        load_fine_tune_recipe("mine")
    assert raised.value.fix == "Choose one of: none."
    for name in ("b", "a"):
        (folder / f"{name}.yaml").write_text(changed(lambda content: None))
    for name in ("mine", "../recipes/a", "a.yaml", ""):
        with pytest.raises(PipelineError, match=f"no recipe '{name}'") as raised:
            load_fine_tune_recipe(name)
        assert str(folder) in raised.value.what
        assert raised.value.fix == "Choose one of: a, b."
    with pytest.raises(PipelineError, match=r"gone\.yaml cannot be read"):
        read_fine_tune_recipe(folder / "gone.yaml")


# Look-ups

LOOKUP: dict[str, Any] = {"description": "Copies.", "method": "lookup"}


def lookup_of(folder: Path, content: dict[str, Any]) -> LookupRecipe:
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe("mine")
    assert isinstance(recipe, LookupRecipe)
    return recipe


def test_a_lookup_retrieves_one_known_answer_of_the_routed_intent(folder: Path) -> None:
    recipe = lookup_of(folder, LOOKUP)
    assert recipe.training_method == "look-up"
    assert recipe.prompt.retrieve is not None
    assert (recipe.prompt.retrieve.answers, recipe.prompt.retrieve.passages) == (1, 0)
    assert recipe.prompt.route == "intent"
    assert recipe.handover_share == 0.005
    assert recipe.placeholders == "keep"
    changed = lookup_of(folder, {**LOOKUP, "placeholders": "generic", "evaluation": {"robustness_cases": 2}})
    assert (changed.placeholders, changed.evaluation.robustness_cases) == ("generic", 2)


def test_the_route_of_a_lookup_can_be_changed_and_the_rest_of_its_prompt_spelt_out(folder: Path) -> None:
    recipe = lookup_of(folder, {**LOOKUP, "prompt": {"route": "none"}})
    assert recipe.prompt == lookup_of(folder, LOOKUP).prompt.model_copy(update={"route": "none"})
    spelt_out = {"route": "intent", "retrieve": {"answers": 1, "passages": 0}, "system": "", "template": "model"}
    assert lookup_of(folder, {**LOOKUP, "prompt": spelt_out}) == lookup_of(folder, LOOKUP)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "guess"}, "'method' input should be 'lookup'"),
        ({"method": None}, "'method' input should be 'lookup'"),
        ({"description": None}, "'description'"),
        ({"prompt": {"system": "Be brief."}}, "a look-up has no prompt: of prompt's keys, only route can be changed"),
        ({"prompt": {"template": "t5_v1"}}, "only route can be changed"),
        ({"prompt": {"retrieve": None}}, "only route can be changed"),
        ({"prompt": {"retrieve": {"answers": 2, "passages": 0}}}, "only route can be changed"),
        ({"prompt": {"retrieve": {"answers": 1, "passages": 1}}}, "only route can be changed"),
        ({"prompt": {"route": "maybe"}}, "'prompt.route'"),
        ({"handover_share": -0.01}, "'handover_share' input should be greater than or equal to 0"),
        ({"handover_share": 1}, "'handover_share' input should be less than 1"),
        ({"handover_share": "some"}, "'handover_share'"),
        ({"handover_shares": 0.1}, "'handover_shares' is not a key of a recipe"),
        ({"base": EMBEDDED["base"]}, "'base' is not a key of a recipe"),
        ({"trainer": EMBEDDED["trainer"]}, "'trainer' is not a key of a recipe"),
        ({"start": "champion"}, "'start' is not a key of a recipe"),
    ],
)
def test_a_wrong_key_of_a_lookup_is_reported(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PipelineError) as raised:
        lookup_of(folder, LOOKUP | changes)
    assert str(folder / "mine.yaml") in raised.value.what
    assert complaint.lower() in raised.value.what.lower()
    assert "pydantic" not in str(raised.value)


def test_a_fine_tune_has_no_method(folder: Path) -> None:
    with pytest.raises(PipelineError, match="'handover_share' is not a key of a recipe"):
        load_recipe_of(folder, lambda content: content.update(handover_share=0.1))
    with pytest.raises(PipelineError) as raised:
        load_recipe_of(folder, lambda content: content.update(method="lookup"))
    for key in ("base", "lora", "trainer", "generation"):
        assert f"'{key}' is not a key of a recipe" in raised.value.what


def test_a_lookup_is_refused_where_a_model_is_trained(folder: Path) -> None:
    saved = folder / "saved.yaml"
    saved.write_text(yaml.safe_dump(lookup_of(folder, LOOKUP).model_dump(mode="json")))
    reads: list[Callable[[], FineTuneRecipe]] = [
        lambda: load_fine_tune_recipe("mine"),
        lambda: read_fine_tune_recipe(saved),
    ]
    for read in reads:
        with pytest.raises(PipelineError, match="The recipe 'mine' is a look-up and trains nothing") as raised:
            read()
        assert raised.value.fix == "Choose a recipe that trains a model."


def test_what_affects_a_lookups_answers_changes_its_fingerprint(folder: Path) -> None:
    plain = lookup_of(folder, LOOKUP)
    same: list[dict[str, Any]] = [
        {"description": "In other words."},
        {"evaluation": {"timed_answers": 1}},
        {"handover_share": 0.005},
    ]
    assert {lookup_of(folder, LOOKUP | change).fingerprint for change in same} == {plain.fingerprint}
    others: list[dict[str, Any]] = [{"prompt": {"route": "none"}}, {"placeholders": "strip"}, {"handover_share": 0.01}]
    assert len({plain.fingerprint, *(lookup_of(folder, LOOKUP | change).fingerprint for change in others)}) == 4
    assert plain.model_copy(update={"name": "yours"}).fingerprint != plain.fingerprint


# Keys of earlier releases


def with_old_key(content: dict[str, Any], key: str) -> dict[str, Any]:
    """``content`` with the value of a key of RENAMED_KEYS under its old name."""
    content = deepcopy(content)
    section, _, old = key.rpartition(".")
    part = content[section] if section else content
    part[old] = part.pop(RENAMED_KEYS[key])
    return content


@pytest.mark.parametrize("key", RENAMED_KEYS)
def test_an_old_key_is_refused_with_its_new_name(folder: Path, key: str) -> None:
    whole = FineTuneRecipe.model_validate({**EMBEDDED, "name": "mine"}).model_dump(mode="json", exclude={"name"})
    (folder / "mine.yaml").write_text(yaml.safe_dump(with_old_key(whole, key)))
    with pytest.raises(PipelineError) as raised:
        load_fine_tune_recipe("mine")
    assert str(folder / "mine.yaml") in raised.value.what
    assert f"{key} is called {RENAMED_KEYS[key]} now" in raised.value.what


@pytest.mark.parametrize("file", TRAINED, ids=[file.stem for file in TRAINED])
def test_a_recipe_written_by_an_earlier_release_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CS_RECIPES", str(file.parent))
    recipe = load_fine_tune_recipe(file.stem)
    content = recipe.model_dump(mode="json")
    for key in RENAMED_KEYS:
        if (key.startswith("base.") and recipe.base.source != "embedded") or (
            key.startswith("lora.") and not recipe.lora
        ):
            continue
        content = with_old_key(content, key)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert read_fine_tune_recipe(tmp_path / "recipe.yaml") == recipe


# The fingerprint


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


OTHER: dict[str, Any] = {
    "name": "another",
    "description": None,  # changes nothing, below
    "base.source": None,  # another source is another base, below
    "base.without_intents": None,  # goes with held_out_intents, below
    "held_out_intents": None,
    "base.repo": "a/c",
    "base.revision": "1" * 40,
    "base.licence": "Apache-2.0",
    "base.path": "/models/c",
    "base.package": "other-model",
    "base.version": "1.1",
    "base.wheel_sha256": "1" * 64,
    "base.file": "some_model/other.gguf",
    "base.file_sha256": "1" * 64,
    "base.quantised_from": "a/c",
    "quantization": "none",
    "lora.target_modules": ["q_proj"],
    "prompt.template": "t5_v1",
    "prompt.system": "Be brief.",
    "prompt.route": "none",
    "prompt.retrieve": None,  # below, and an embedded base goes with it
    "base.known_answers": None,
    "placeholders": "strip",
    "train_rows": 7,
    "mixture.out_of_scope": None,  # not beside an intent, below
    "mixture.retold": None,  # not without known answers, below
    "start": "champion",
    "trainer.num_train_epochs": None,  # not beside max_steps, below
    "trainer.early_stopping_patience": None,  # not without evaluations, below
    "trainer.checkpoint_seconds": None,  # changes nothing
    "trainer.packing": None,  # likewise
    "evaluation.robustness_cases": None,  # changes no model
    "evaluation.timed_answers": None,  # likewise
    "evaluation.baseline_questions": None,  # likewise
    "evaluation.test_rows": None,  # likewise
    "trainer.lr_scheduler_type": "linear",
    "trainer.optim": "paged_adamw_8bit",
    "trainer.gradient_checkpointing": True,
    "trainer.warmup_steps": 0.25,
    "base.hidden_size": 256,
}
SOURCES = {
    "embedded": EMBEDDED["base"],
    "hub": hub({})["base"],
    "package": package({})["base"],
    "path": {"source": "path", "path": "/models/b"},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_field_but_the_description_changes_the_fingerprint(source: str) -> None:
    whole = FineTuneRecipe.model_validate({**EMBEDDED, "name": "mine", "base": SOURCES[source]}).model_dump(mode="json")
    recipe = FineTuneRecipe.model_validate(whole)
    fingerprints = {recipe.fingerprint}
    changes = 0
    for path, value in leaves(whole):
        key = ".".join(path)
        other = OTHER[key] if key in OTHER else value + 1 if isinstance(value, int) else value + 0.125
        if other is None:
            continue
        content = deepcopy(whole)
        part = content
        for step in path[:-1]:
            part = part[step]
        assert part[path[-1]] != other
        part[path[-1]] = other
        fingerprints.add(FineTuneRecipe.model_validate(content).fingerprint)
        changes += 1
    assert changes > 20
    assert len(fingerprints) == changes + 1
    held_out = {**deepcopy(whole), "held_out_intents": ["get_refund"]}
    if source == "embedded":
        with pytest.raises(ValidationError, match="must name the same"):
            FineTuneRecipe.model_validate(held_out)
        held_out["base"]["without_intents"] = ["get_refund"]
    assert FineTuneRecipe.model_validate(held_out).fingerprint not in fingerprints
    for wanted in ({"answers": 1, "passages": 0}, {"answers": 1, "passages": 2}, {"answers": 2, "passages": 0}):
        reading = deepcopy(whole)
        reading["prompt"]["retrieve"] = wanted
        if source == "embedded":
            reading["base"]["known_answers"] = wanted["answers"]
        fingerprints.add(FineTuneRecipe.model_validate(reading).fingerprint)
    reading["mixture"]["retold"] = 0.5
    fingerprints.add(FineTuneRecipe.model_validate(reading).fingerprint)
    assert len(fingerprints) == changes + 5
    described = FineTuneRecipe.model_validate({**whole, "description": "in other words"})
    assert described != recipe
    assert described.fingerprint == recipe.fingerprint


def test_company_rows_count_once_by_default(folder: Path) -> None:
    recipe = load_recipe_of(folder, lambda content: (content.pop("mixture"), content.pop("start")))
    assert (recipe.mixture.company_weight, recipe.start) == (1.0, "base")


def test_source_and_epochs_change_the_fingerprint() -> None:
    recipes = [FineTuneRecipe.model_validate({**EMBEDDED, "name": "mine", "base": base}) for base in SOURCES.values()]
    for epochs in (1, 2):
        trainer = {**EMBEDDED["trainer"], "max_steps": None, "num_train_epochs": epochs}
        recipes.append(FineTuneRecipe.model_validate({**EMBEDDED, "name": "mine", "trainer": trainer}))
    assert len({recipe.fingerprint for recipe in recipes}) == len(SOURCES) + 2


def test_keys_that_need_other_keys_change_the_fingerprint_too() -> None:
    plain = {**EMBEDDED, "name": "mine", "prompt": {}, "trainer": {**EMBEDDED["trainer"], "evaluations": 3}}
    others = [
        plain,
        {**plain, "mixture": {**EMBEDDED["mixture"], "out_of_scope": 1}},
        {**plain, "trainer": {**plain["trainer"], "early_stopping_patience": 1}},
    ]
    assert len({FineTuneRecipe.model_validate(content).fingerprint for content in others}) == 3
    seldom = {**plain, "trainer": {**plain["trainer"], "checkpoint_seconds": 1e9}}
    assert FineTuneRecipe.model_validate(seldom).fingerprint == FineTuneRecipe.model_validate(plain).fingerprint


def test_a_default_value_does_not_change_the_fingerprint(folder: Path) -> None:
    plain = load_recipe_of(folder, lambda content: None)
    spelt_out = load_recipe_of(folder, lambda content: content["trainer"].update(gradient_accumulation_steps=1, seed=0))
    assert spelt_out.fingerprint == plain.fingerprint
