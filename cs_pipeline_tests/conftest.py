"""What every test gets: a lake of its own, no network, no settings of the person who runs it."""

import os
from pathlib import Path

import dagster as dg
import pytest

from cs_pipeline.lake import DataLake

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and tokenizers that may lie beside the project; the tests that need them skip where they do not."""


RECIPES = Path(__file__).parent / "recipes"
"""Recipes for tests."""
os.environ["CS_RECIPES"] = str(RECIPES)  # the partitions are read when the definitions are loaded


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads the user's settings, lake, instance or store, or reaches a model hub."""
    for name in list(os.environ):
        if name.startswith(("CS_", "MLFLOW_", "HF_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CS_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def lake(tmp_path: Path) -> DataLake:
    return DataLake(tmp_path / "lake")


@pytest.fixture(scope="session")
def small_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the Bitext schema: 810 rows of the project's own grammar, 30 an intent."""
    from cs_pipeline.ingest.sample import sample_rows

    path = tmp_path_factory.mktemp("bitext") / "small.csv"
    sample_rows(810).to_csv(path, index=False)
    return path


def run_job(recipe: str, lake: Path, source: Path, selection: list[str] | None = None) -> dg.ExecuteInProcessResult:
    """The real job on an instance of its own, in this process; ``selection`` is a list of asset names, None is all."""
    from cs_pipeline.definitions import defs

    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.local_temp(str(lake.parent / "dagster")) as instance:
        patch.setenv("CS_LAKE", str(lake))
        patch.setenv("CS_RECIPES", str(RECIPES))
        patch.setenv("CS_BITEXT", str(source))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        return defs.resolve_job_def("support_model").execute_in_process(
            instance=instance,
            partition_key=recipe,
            asset_selection=[dg.AssetKey(name) for name in selection] if selection else None,
            raise_on_error=False,
        )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, small_csv: Path) -> Path:
    """A lake with everything before training; take a copy before changing it."""
    lake = tmp_path_factory.mktemp("prepared") / "lake"
    before_training = ["bitext_conversations", "clean_bitext", "bitext_splits", "intent_classifier"]
    sides = ["train_split", "validation_split", "test_split"]
    assert run_job("tiny", lake, small_csv, [*before_training, *sides]).success
    return lake


@pytest.fixture(scope="session")
def champion_lake(tmp_path_factory: pytest.TempPathFactory, small_csv: Path) -> Path:
    """A lake after the whole job for the recipe ``tiny``; take a copy of it for tests that change it."""
    lake = tmp_path_factory.mktemp("champion") / "lake"
    assert run_job("tiny", lake, small_csv).success
    return lake


@pytest.fixture(scope="session")
def bitext_csv() -> Path:
    """The shared file of real Bitext rows."""
    path = SHARED / "bitext" / "bitext_customer_support.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
