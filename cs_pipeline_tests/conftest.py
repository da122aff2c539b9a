"""What every test gets: a lake of its own, no network, no settings of the person who runs it."""

import os
import shutil
from pathlib import Path

import dagster as dg
import pytest

from cs_pipeline.lake import DataLake
from cs_pipeline.recipe import Recipe, load_recipe

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and tokenizers that may lie beside the project; the tests that need them skip where they do not."""

RECIPES = Path(__file__).parent / "recipes"
"""Recipes for tests: ``tiny``, and none else."""

os.environ["CS_RECIPES"] = str(RECIPES)  # the partitions are read when the definitions are loaded


def own_world(patch: pytest.MonkeyPatch, lake: Path) -> None:
    """Takes the user's settings away and points ``CS_LAKE`` at ``lake``; one thread, no hub, no telemetry."""
    for name in list(os.environ):
        if name.startswith(("CS_", "MLFLOW_", "HF_", "DAGSTER_")):
            patch.delenv(name)
    patch.setenv("CS_LAKE", str(lake))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads the user's settings, lake, instance or store, or reaches a model hub."""
    own_world(monkeypatch, tmp_path / "lake")


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    return DataLake(tmp_path / "lake")


@pytest.fixture
def own_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes are those for tests; without this fixture they are the project's own."""
    monkeypatch.setenv("CS_RECIPES", str(RECIPES))


@pytest.fixture
def tiny(own_recipes: None) -> Recipe:
    """The recipe that the lakes ``prepared`` and ``champion_lake`` are made with."""
    return load_recipe("tiny")


@pytest.fixture(scope="session")
def small_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the Bitext schema: 810 rows of the project's own grammar, 30 an intent."""
    from cs_pipeline.ingest.sample import sample_rows

    path = tmp_path_factory.mktemp("bitext") / "small.csv"
    sample_rows(810).to_csv(path, index=False)
    return path


def run_job(lake: Path, source: Path, selection: list[str] | None = None) -> dg.ExecuteInProcessResult:
    """The real job for ``tiny`` in this process, on an instance beside ``lake``; ``selection`` of assets, None is all."""
    from cs_pipeline.definitions import defs

    home = lake.with_name("dagster")
    home.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.local_temp(str(home)) as instance:
        own_world(patch, lake)
        patch.setenv("CS_RECIPES", str(RECIPES))
        patch.setenv("CS_BITEXT", str(source))
        return defs.resolve_job_def("support_model").execute_in_process(
            instance=instance,
            partition_key="tiny",
            asset_selection=[dg.AssetKey(name) for name in selection] if selection else None,
            raise_on_error=False,
        )


BEFORE_TRAINING = [
    "bitext_conversations",
    "clean_bitext",
    "bitext_splits",
    "intent_classifier",
    "train_split",
    "validation_split",
    "test_split",
]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, small_csv: Path) -> Path:
    """A lake with everything before training; tests read it and train in copies."""
    lake = tmp_path_factory.mktemp("prepared") / "lake"
    assert run_job(lake, small_csv, BEFORE_TRAINING).success
    return lake


@pytest.fixture(scope="session")
def champion_lake(tmp_path_factory: pytest.TempPathFactory, prepared: Path, small_csv: Path) -> Path:
    """A lake after the whole job; tests read it. MLflow's paths are absolute: a copy of it has no store of its own."""
    lake = tmp_path_factory.mktemp("champion") / "lake"
    shutil.copytree(prepared, lake)
    assert run_job(lake, small_csv).success
    return lake


@pytest.fixture(scope="session")
def bitext_csv() -> Path:
    """The shared file of real Bitext rows."""
    path = SHARED / "bitext" / "bitext_customer_support.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
