"""What every test gets: a lake of its own, no network, no settings of the person who runs it."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
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
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it once; a sum over other threads is another sum


@contextmanager
def own_world(lake: Path) -> Iterator[pytest.MonkeyPatch]:
    """The environment without the user's settings, with ``CS_LAKE`` at ``lake``: no hub, no telemetry."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("CS_", "MLFLOW_", "HF_", "DAGSTER_")):
                patch.delenv(name)
        patch.setenv("CS_LAKE", str(lake))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield patch


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path) -> Iterator[None]:
    """No test reads the user's settings, lake, instance or store, or reaches a model hub."""
    with own_world(tmp_path / "lake"):
        yield


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    return DataLake(tmp_path / "lake")


@pytest.fixture
def own_recipes(own_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
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
    off = {"telemetry": {"enabled": False}}
    with own_world(lake) as patch, dg.DagsterInstance.local_temp(str(home), overrides=off) as instance:
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
    "conversations",
    "train_split",
    "validation_split",
    "test_split",
]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, small_csv: Path) -> Path:
    """A lake with everything before training; tests read it, and train in copies."""
    lake = tmp_path_factory.mktemp("prepared") / "lake"
    assert run_job(lake, small_csv, BEFORE_TRAINING).success
    return lake


@pytest.fixture(scope="session")
def champion_lake(tmp_path_factory: pytest.TempPathFactory, small_csv: Path) -> Path:
    """A lake after the whole job, with version 1 as champion; tests read it, and change copies (``copy_lake``)."""
    lake = tmp_path_factory.mktemp("champion") / "lake"
    assert run_job(lake, small_csv).success
    return lake


def copy_lake(lake: Path, to: Path) -> DataLake:
    """A copy of ``lake`` with an MLflow store of its own: in its database the addresses of files are absolute."""
    shutil.copytree(lake, to)
    with sqlite3.connect(to / "register" / "mlflow.db") as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (lake.as_uri(), to.as_uri()))
    database.close()
    return DataLake(to)


@pytest.fixture(scope="session")
def bitext_csv() -> Path:
    """The shared file of real Bitext rows."""
    path = SHARED / "bitext" / "bitext_customer_support.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
