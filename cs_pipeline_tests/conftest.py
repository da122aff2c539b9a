"""What every test gets: a lake of its own, no network, no settings of the person who runs it."""

import os
from pathlib import Path

import pytest

from cs_pipeline.lake import DataLake

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and tokenizers that may lie beside the project; the tests that need them skip where they do not."""


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
def bitext_csv() -> Path:
    """The shared file of real Bitext rows."""
    path = SHARED / "bitext" / "bitext_customer_support.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
